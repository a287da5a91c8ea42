"""Evaluation of any model directory, ours or imported.

    python -m eval.run --model=DIR --config.eval.texts=news.txt,pages.jsonl
    python -m eval.run --model=DIR --config.eval.data=BENCHMARKS --config.eval.tasks.hellaswag=-1
    python -m eval.run --model=DIR --config=configs/eval.py:suite --config.eval.data=BENCHMARKS

`data` is a folder with files of benchmarks, anywhere below it: JSON lines, CSV or Parquet in the
layouts of the Hugging Face datasets or of LLM-Foundry. Variants:

    any     nothing but questions that need no file: what a fresh model directory can be asked
    suite   the usual benchmarks of multiple choice, without examples, as lm-evaluation-harness asks
            them, and GSM8K
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.common import make_eval, parse_variant

VARIANTS = ("any", "suite")

# Numbers of items; -1 is all.
SUITE = dict(hellaswag=-1, arc_easy=-1, arc_challenge=-1, piqa=-1, winogrande=-1, openbookqa=-1,
             boolq=-1, lambada_openai=-1, mmlu=-1, mmlu_continuation=-1, gsm8k=100)


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    tasks = dict(SUITE) if variant == "suite" else dict(turns=100, verifiable=100)
    return ConfigDict(dict(eval=make_eval(tasks=tasks)))
