"""The in-context-learning tasks of LLM-Foundry as the CORE metric asks them (arXiv 2406.11794).

Kinds, shots and delimiters are those of eval/heavy.yaml of mlfoundations/dclm@361714b; examples are
drawn from the item's own file as karpathy/nanochat@92d63d4 does, whose prompts these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from eval.benchmarks.form import Form, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.readers import LANGUAGE, SCHEMA, foundry

ANSWER = "\nAnswer: "
# Shots and delimiter, by kind and name.
CHOICES = {
    "mmlu_zeroshot": (0, "Answer: "), "hellaswag_zeroshot": (0, " "), "arc_easy": (10, ANSWER),
    "arc_challenge": (10, ANSWER), "mmlu_fewshot": (5, ANSWER),
    "bigbench_misconceptions": (10, " "), "copa": (0, " "), "siqa": (10, " "),
    "commonsense_qa": (10, " "), "piqa": (10, ANSWER), "openbook_qa": (0, " "),
    "bigbench_novel_concepts": (10, " "), "bigbench_strange_stories": (10, " "),
    "bigbench_strategy_qa": (10, " "), "hellaswag": (10, " "),
    "bigbench_language_identification": (10, " "), "bigbench_conceptual_combinations": (10, " "),
    "bigbench_elementary_math_qa": (10, " "), "agi_eval_lsat_ar": (3, " "),
    "bigbench_logical_deduction": (10, " "), "math_qa": (10, " "), "logi_qa": (10, ANSWER),
    "agi_eval_lsat_rc": (3, " "), "agi_eval_lsat_lr": (3, " "),
    "bigbench_understanding_fables": (10, " "), "boolq": (10, ANSWER), "agi_eval_sat_en": (3, " "),
    "winogender_mc_female": (10, " "), "winogender_mc_male": (10, " "),
    "enterprise_pii_classification": (10, " "), "bbq": (3, " "), "gpqa_main": (5, ANSWER),
    "gpqa_diamond": (5, ANSWER)}
SCHEMAS = {"winograd": (0, " "), "winogrande": (0, " ")}
CONTINUATIONS = {
    "jeopardy": (10, ANSWER), "bigbench_qa_wikidata": (10, " "), "lambada_openai": (0, " "),
    "bigbench_conlang_translation": (0, " "), "bigbench_dyck_languages": (10, " "),
    "bigbench_cs_algorithms": (10, " "), "bigbench_operators": (10, " "),
    "bigbench_repeat_copy_logic": (10, " "), "simple_arithmetic_nospaces": (10, " "),
    "simple_arithmetic_withspaces": (10, " "), "pubmed_qa_labeled": (10, " "), "squad": (10, " "),
    "coqa": (0, " ")}
STEMS = {"jeopardy": "jeopardy_all", "winograd": "winograd_wsc", "mmlu_zeroshot": "mmlu",
         "mmlu_fewshot": "mmlu", "hellaswag_zeroshot": "hellaswag"}


def _make_form(context: str, option: str, num_shots: int, delimiter: str) -> Form:
    """The delimiter's last space belongs to the option, and to its first token."""
    stem = delimiter.rstrip(" ")
    return Form(context + stem, delimiter[len(stem):] + option, num_shots=num_shots, is_core=True,
                normalisation="token")


CORE: Mapping[str, tuple[Form, Layout]] = MappingProxyType(
    {name: (_make_form("{query}", "{choice}", *rest), foundry()) for name, rest in CHOICES.items()}
    | {name: (_make_form("{start}", "{choice}", *rest), SCHEMA) for name, rest in SCHEMAS.items()}
    | {name: (_make_form("{context}", "{choice}", *rest), LANGUAGE)
       for name, rest in CONTINUATIONS.items()})


def core_form(name: str) -> Mapping[str, Form]:
    """The form `core` of a task of the table, beside other forms of the benchmark."""
    return {"core": CORE[name][0]}


def core_task(name: str) -> Benchmark:
    """A task that is asked in the form `core` alone."""
    form, layout = CORE[name]
    return Benchmark(name, (name, STEMS[name]) if name in STEMS else (name,), (layout,),
                     {"core": form})
