"""BoolQ, LAMBADA and AGIEval's LSAT-AR.

Rows have the columns of the Hugging Face datasets aps/super_glue (boolq), google/boolq,
EleutherAI/lambada_openai and hails/agieval-lsat-ar, or those of LLM-Foundry. The passages of
LLM-Foundry and google/boolq lack the titles that those of SuperGLUE begin with, so that their
prompts are shorter than the ones that lm-evaluation-harness and OLMES have been run with. Forms:
`harness` is lm-evaluation-harness@4e7e0d4; `cloze` and `letter` are OLMES (arXiv 2406.08446);
`core` is `eval.benchmarks.core`.
"""

from __future__ import annotations

from eval.benchmarks.core import core_form
from eval.benchmarks.form import Form, Item, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.olmes import LINE
from eval.benchmarks.readers import (
    LANGUAGE,
    Row,
    foundry,
    index_of,
    read_choices,
    text_of,
    with_fields,
)

NO_YES = ("no", "yes")


def _read_boolq(row: Row) -> Item:
    return Item({"passage": text_of(row["passage"]), "question": text_of(row["question"])}, NO_YES,
                (index_of(row["label"]),))


def _read_plain_boolq(row: Row) -> Item:
    if not isinstance(row["answer"], bool):
        raise TypeError("an answer that is neither true nor false")
    return _read_boolq({**row, "label": int(row["answer"])})


def _split_boolq(row: Row) -> dict[str, str]:
    passage, found, question = text_of(row["query"]).rpartition("\nQuestion: ")
    if not found:
        raise ValueError("no question in the query")
    return {"passage": passage.removeprefix("Passage: "), "question": question.removesuffix("?")}


def _read_lambada(row: Row) -> Item:
    context, _, word = text_of(row["text"]).rpartition(" ")
    return Item({"context": context}, (word,), (0,))


_BOOLQ = {"num_shots": 5, "fixed": True, "order": (1, 0)}
open_boolq = Benchmark(
    "boolq", ("boolq",),
    (Layout(("passage", "question", "label"), _read_boolq),
     Layout(("passage", "question", "answer"), _read_plain_boolq),
     foundry(with_fields(_split_boolq))),
    {"harness": Form("{passage}\nQuestion: {question}?\nAnswer:", baseline="Answer:"),
     "cloze": Form("{passage}\nQuestion: {question}?\nAnswer:", **_BOOLQ),
     "letter": Form("{passage}\nQuestion: {question}?\n{options}Answer:", " {letter}", LINE,
                    **_BOOLQ),
     **core_form("boolq")})
# The whole last word is one option: right if the model says it greedily, and its perplexity.
open_lambada_openai = Benchmark(
    "lambada_openai", ("lambada_openai", "lambada"), (Layout(("text",), _read_lambada), LANGUAGE),
    {"harness": Form("{context}"), **core_form("lambada_openai")})
open_agieval_lsat_ar = Benchmark(
    "agieval_lsat_ar", ("agieval_lsat_ar", "agi_eval_lsat_ar"), (foundry(read_choices),),
    {"harness": Form("{query}", baseline="Answer:"), **core_form("agi_eval_lsat_ar")})
