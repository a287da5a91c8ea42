"""SciQ (arXiv 1707.06209), rows with the columns of allenai/sciq: a benchmark in one small file."""

from __future__ import annotations

from eval.benchmarks.form import Form, Item, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.readers import Row, text_of


def _read(row: Row) -> Item:
    options = ("distractor1", "distractor2", "distractor3", "correct_answer")
    support = text_of(row["support"]).lstrip()
    return Item({"question": text_of(row["question"]), "support": support,
                 "passage": support + "\n" * bool(support)},
                tuple(text_of(row[name]) for name in options), (3,))


open_sciq = Benchmark(
    "sciq", ("sciq",),
    (Layout(("question", "support", "distractor1", "correct_answer"), _read),),
    {"harness": Form("{support}\nQuestion: {question}\nAnswer:", baseline="Answer:"),
     "cloze": Form("{passage}Question: {question}\nAnswer:", baseline="Answer:")})
