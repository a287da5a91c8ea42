"""ARC (arXiv 1803.05457) and OpenBookQA (arXiv 1809.02789).

Rows have the columns of the Hugging Face datasets allenai/ai2_arc and allenai/openbookqa, or those
of LLM-Foundry. Forms: `harness` is lm-evaluation-harness@4e7e0d4; `cloze`
and `letter` are OLMES (arXiv 2406.08446); `core` is `eval.benchmarks.core`.
"""

from __future__ import annotations

from eval.benchmarks.core import core_form
from eval.benchmarks.form import Form, Item, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.olmes import LINE
from eval.benchmarks.readers import Row, foundry, read_labelled, text_of, with_fields

QUESTION = "Question: {question}\nAnswer:"
LISTED = "Question: {question}\n{options}Answer:"
OLMES = {"cloze": Form(QUESTION, num_shots=5, fixed=True, baseline="Answer:",
                       normalisation="char"),
         "letter": Form(LISTED, " {letter}", LINE, num_shots=5, fixed=True)}


def _read_question(row: Row) -> Item:
    return read_labelled(row, question=text_of(row["question"]))


def _read_stem(row: Row) -> Item:
    return read_labelled(row, question=text_of(row["question_stem"]))


def _arc(name: str) -> Benchmark:
    of_query = with_fields(lambda row: {"question": row["query"].removeprefix("Question: ")})
    return Benchmark(
        name, (name,),
        (Layout(("question", "choices", "answerKey"), _read_question), foundry(of_query)),
        {"harness": Form(QUESTION, baseline="Answer:"), **OLMES, **core_form(name)})


open_arc_easy = _arc("arc_easy")
open_arc_challenge = _arc("arc_challenge")
open_openbookqa = Benchmark(
    "openbookqa", ("openbookqa", "openbook_qa"),
    (Layout(("question_stem", "choices", "answerKey"), _read_stem),
     foundry(with_fields(lambda row: {"question": row["query"]}))),
    {"harness": Form("{question}", baseline="Answer:"), **OLMES,
     **core_form("openbook_qa")})
