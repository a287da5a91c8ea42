"""Task files: benchmark items, the texts that training documents must not contain."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError, require_file

# Usual names of benchmark fields, in the order in which they are joined.
KNOWN_FIELDS = (
    "context", "ctx", "passage", "article", "premise", "text", "input", "instruction", "question",
    "query", "prompt", "problem", "goal", "sentence", "hypothesis", "choices", "options",
    "endings", "A", "B", "C", "D", "answer", "solution", "canonical_solution", "target",
    "completion", "output")

REMEDY = "fix config.curate.contamination.tasks"


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a task.

    Attributes:
        task: folder and file name, e.g. ``gsm8k/test``.
        number: its row in the file, from 0.
        fields: its texts, in the order of the fields.
    """

    task: str
    number: int
    fields: tuple[str, ...]


def read_items(path: str | Path, fields: Sequence[str],
               skipped: Counter[str]) -> Iterator[Item]:
    """Items of a JSONL, CSV or Parquet file; the first two may be compressed (.gz, .zst, .bz2).

    Args:
        fields: names of the fields to read; without any, the present ones of `KNOWN_FIELDS`.
        skipped: counter of unusable rows, by reason.

    Raises:
        UserError: a missing file, an unknown format, none of the fields, or no item.
    """
    path = require_file("contamination.tasks", path, REMEDY)
    task, num_items = f"{path.parent.name}/{path.name.partition('.')[0]}", 0
    names: tuple[str, ...] | None = None
    for number, row in enumerate(_rows(path)):
        if row is None:
            skipped["damaged"] += 1
            continue
        if names is None:
            names = tuple(name for name in fields or KNOWN_FIELDS if name in row)
            if not names:
                raise UserError(
                    f"contamination.fields={list(fields)!r}",
                    f"{path.name} has the fields {', '.join(map(str, row))}",
                    "name those that hold an item's text")
        texts = tuple(text for name in names if (text := " ".join(_strings(row.get(name)))))
        if texts:
            num_items += 1
            yield Item(task, number, texts)
        else:
            skipped["empty"] += 1
    if not num_items:
        raise UserError(f"contamination.tasks={str(path)!r}", "holds no item", REMEDY)


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """Rows of a file; None for a damaged row."""
    kind = next((suffix for suffix in path.suffixes if suffix in (".jsonl", ".csv", ".parquet")),
                None)
    if kind is None:
        raise UserError(f"contamination.tasks={str(path)!r}",
                        "is not a .jsonl, .csv or .parquet file", REMEDY)
    try:
        if kind == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1024):
                    yield from batch.to_pylist()
            return
        with pa.input_stream(str(path), compression="detect") as stream, \
                io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as lines:
            if kind == ".csv":
                yield from csv.DictReader(lines)
            else:
                yield from (_parse(line) for line in lines if line.strip())
    except (OSError, EOFError, csv.Error, pa.ArrowInvalid) as error:
        raise UserError(f"contamination.tasks={str(path)!r}", f"cannot be read ({error})",
                        REMEDY) from None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _strings(value: Any) -> Iterator[str]:
    """All strings in a nested value. Numbers are skipped: they are labels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
