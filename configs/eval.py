"""Evaluation of any model directory, ours or imported.

    python -m eval.run --model=DIR --config.eval.texts=news.txt,pages.jsonl
    python -m eval.run --model=DIR --config.eval.data=BENCHMARKS --config.eval.tasks.hellaswag=-1
    python -m eval.run --model=DIR --config=configs/eval.py:suite --config.eval.data=BENCHMARKS

`data` is a folder with files of benchmarks, anywhere below it: JSON lines, CSV or Parquet in the
layouts of the Hugging Face datasets or of LLM-Foundry. Variants:

    any     nothing but questions that need no file: what a fresh model directory can be asked
    suite   the usual benchmarks of multiple choice, without examples, as lm-evaluation-harness asks
            them, and GSM8K
    core    the 22 tasks of CORE, as DataComp-LM asks them
    mmlu    MMLU in all forms, whose scores disagree

`python -m eval.inspect table runs/eval/NAME` prints their scores, and CORE.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import make_eval, parse_variant

VARIANTS = ("any", "suite", "core", "mmlu")

# Numbers of items; -1 is all.
SUITE = dict(hellaswag=-1, arc_easy=-1, arc_challenge=-1, piqa=-1, winogrande=-1, openbookqa=-1,
             boolq=-1, lambada_openai=-1, mmlu=-1, mmlu_continuation=-1, gsm8k=100)


# Of those that are asked in several forms the one of CORE.
CORE = {name: -1 for name in (
    "hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy_core",
    "arc_challenge_core", "copa_core", "commonsense_qa_core", "piqa_core", "openbook_qa",
    "lambada_openai_core", "hellaswag_core", "winograd", "winogrande_core",
    "bigbench_dyck_languages", "agi_eval_lsat_ar", "bigbench_cs_algorithms", "bigbench_operators",
    "bigbench_repeat_copy_logic", "squad", "coqa", "boolq_core",
    "bigbench_language_identification")}
MMLU = dict(mmlu=-1, mmlu_original=-1, mmlu_helm=-1, mmlu_letter=-1, mmlu_continuation=-1,
            mmlu_cloze=-1)
TASKS = dict(any=dict(turns=100, verifiable=100), suite=SUITE, core=CORE, mmlu=MMLU)


def get_config(arg: str | None = None) -> ConfigDict:
    return ConfigDict(dict(eval=make_eval(tasks=dict(TASKS[parse_variant(arg, VARIANTS)]))))
