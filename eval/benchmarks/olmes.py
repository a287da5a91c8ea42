"""The fixed solved examples of OLMES, five for each benchmark (arXiv 2406.08446).

They are read from a file olmes_examples in the folder of the benchmarks' files. Its rows have the
columns of the benchmarks' own rows, and ``benchmark``, the name; `scripts.olmes_examples` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.errors import UserError
from data.layouts.rows import Damaged, read_rows
from eval.benchmarks.source import Source

LINE = " {letter}. {choice}\n"
EXAMPLES = "olmes_examples"
MAKE = ("have one file, made with `python -m scripts.olmes_examples --requests=FOLDER "
        "--out=FOLDER/olmes_examples.jsonl`")


def fixed_examples(source: Source, benchmark: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The benchmark's examples in their order, each with its place.

    Raises:
        UserError: there is no such file or several, a row of it is damaged or names no benchmark,
            or it has no example of this one.
    """
    path, num = source.find(EXAMPLES, remedy=MAKE), 0
    for place, row in read_rows(path):
        if isinstance(row, Damaged):
            raise UserError(place, row.what, MAKE)
        if "benchmark" not in row:
            raise UserError(place, "names no benchmark", MAKE)
        if row["benchmark"] == benchmark:
            num += 1
            yield place, row
    if not num:
        raise UserError(str(path), f"has no example of {benchmark}", MAKE)
