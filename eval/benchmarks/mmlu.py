"""MMLU (arXiv 2009.03300) in the forms whose scores are known to disagree.

Rows have the columns of cais/mmlu: ``question``, ``choices``, ``answer`` and ``subject``; the
files are named mmlu_test and mmlu_dev, and the solved examples are the first five of dev of the
question's own subject, in the file's order. The forms:

    harness         lm-evaluation-harness@4e7e0d4: no "Question:", letters
    original        hendrycks/test@4450500: as before, with two spaces before the subject
    helm            stanford-crfm/helm@63754d0: "Question: "; it orders the examples by a draw
    continuation    lm-evaluation-harness' mmlu_continuation: the answers' texts
    letter, cloze   OLMES (arXiv 2406.08446), after the paper: its request files have no MMLU

The original drops examples while a prompt has more than 2,048 tokens; here the rule for items that
are longer than the context holds.
"""

from __future__ import annotations

from eval.benchmarks.form import LETTERS, Form, Item, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.olmes import LINE
from eval.benchmarks.readers import Row, index_of, text_of, texts_of

ABOUT = "The following are multiple choice questions (with answers) about {about}.\n\n"
DEV = {"num_shots": 5, "examples": "mmlu_dev"}


def _read(row: Row) -> Item:
    subject, question, answer = (row[name] for name in ("subject", "question", "answer"))
    is_letter = isinstance(answer, str) and len(answer) == 1 and answer in LETTERS
    return Item({"question": text_of(question), "stripped": question.strip(),
                 "about": text_of(subject).replace("_", " ")}, texts_of(row["choices"]),
                (LETTERS.index(answer) if is_letter else index_of(answer),), group=subject)


open_mmlu = Benchmark(
    "mmlu", ("mmlu_test",), (Layout(("question", "choices", "answer", "subject"), _read),),
    {"harness": Form("{stripped}\n{options}Answer:", " {letter}", header=ABOUT, **DEV),
     "original": Form("{question}\n{options}Answer:", " {letter}",
                      header=ABOUT.replace("{", " {"), **DEV),
     "helm": Form("Question: {question}\n{options}Answer:", " {letter}", header=ABOUT, **DEV),
     "continuation": Form(
         "Question: {stripped}\nAnswer:", baseline="Answer:",
         header="The following are questions (with answers) about {about}.\n\n", **DEV),
     "letter": Form("Question: {stripped}\n{options}Answer:", " {letter}", LINE, ABOUT, **DEV),
     "cloze": Form("Question: {stripped}\nAnswer:", header=ABOUT, baseline="Answer:", **DEV)})
