"""Task files: benchmark items, the texts that training documents must not contain."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError, require_file

# Usual names of benchmark fields, in the order in which they are joined. Case, spaces and
# underscores do not matter.
KNOWN_FIELDS = (
    "context", "ctx", "passage", "article", "story", "premise", "text", "content", "input",
    "inputs", "instruction", "instructions", "question", "query", "prompt", "turns", "problem",
    "goal", "sentence", "hypothesis", "choices", "options", "endings", "A", "B", "C", "D",
    "mc1_targets", "mc2_targets", "answer", "answers", "best_answer", "correct_answers",
    "incorrect_answers", "solution", "canonical_solution", "target", "targets", "completion",
    "output", "response")
_RANKS = {name.lower().replace("_", ""): rank for rank, name in enumerate(KNOWN_FIELDS)}

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")    # of its files, which have no header
MAX_NAME_WORDS = 4          # of a cell in a header
MAX_CELL_CHARS = 1 << 24    # the csv module's own limit is 128 KiB
MAX_DEPTH = 4               # of objects in a row that may hold fields

REMEDY = "correct the list of task files"


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a task.

    Attributes:
        task: folder and file name, e.g. ``gsm8k/test``.
        number: its row in the file, from 0.
        fields: its texts, in the order of the fields.
        names: of these fields.
        others: of the row's other fields.
        path: the file.
    """

    task: str
    number: int
    fields: tuple[str, ...]
    names: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    path: str = ""


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files of paths, and of folders with all that lies in them, each once.

    Raises:
        UserError: a path does not exist, or a folder holds no file of `FORMATS`.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = require_file("contamination.tasks", given, REMEDY)
        files = sorted(file for file in path.rglob("*") if _format_of(file)) \
            if path.is_dir() else [path]
        if not files:
            raise UserError(f"contamination.tasks={str(path)!r}",
                            f"holds no file of {', '.join(FORMATS)}", REMEDY)
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def read_items(path: Path, fields: Sequence[str], skipped: Counter[str]) -> Iterator[Item]:
    """Items of a file of `FORMATS`; all but Parquet may be compressed (.gz, .zst, .bz2, .xz).

    A JSON file holds rows in a list, at its top or in one of its fields. The columns of a table
    without a header are called 0, 1, ..., or, of the layout of MMLU, question, A to D and answer.

    Args:
        fields: names of the fields to read, with dots for those in objects; without any, the
            present ones of `KNOWN_FIELDS`, in objects only where the row itself has none.
        skipped: counter of unusable rows, by reason.

    Raises:
        UserError: an unknown format, none of the fields, or no item.
    """
    task, num_items = f"{path.parent.name}/{path.name.partition('.')[0]}", 0
    chosen: dict[tuple[str, ...], tuple[str, ...]] = {}     # by the fields of a row
    others: dict[tuple[str, ...], tuple[str, ...]] = {}
    for number, row in enumerate(_rows(path)):
        if row is None:
            skipped["damaged"] += 1
            continue
        keys = tuple(_paths(row))
        if keys not in chosen:
            chosen[keys] = _choose(keys, fields)
            others[keys] = tuple(key for key in keys if key not in chosen[keys])
        texts = tuple(text for name in chosen[keys]
                      if (text := " ".join(_strings(_value(row, name)))))
        if texts:
            num_items += 1
            yield Item(task, number, texts, chosen[keys], others[keys], str(path))
        else:
            skipped["empty"] += 1
    if not num_items and any(chosen) and not any(chosen.values()):
        looked_for = ", ".join(fields) if fields else "the usual ones (question, text, ...)"
        raise UserError(f"contamination.fields={list(fields)!r}",
                        f"{path} has the fields {', '.join(next(iter(chosen)))}, and not "
                        f"{looked_for}",
                        "name those that hold an item's text")
    if not num_items:
        raise UserError(f"contamination.tasks={str(path)!r}", "holds no item", REMEDY)


def _format_of(path: Path) -> str | None:
    return next((suffix for suffix in path.suffixes if suffix in FORMATS), None)


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """Rows of a file; None for a damaged row."""
    kind = _format_of(path)
    if kind is None:
        raise UserError(f"contamination.tasks={str(path)!r}",
                        f"is not a file of {', '.join(FORMATS)}", REMEDY)
    try:
        if kind == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(1024):
                    yield from batch.to_pylist()
            return
        with _open(path) as stream, \
                io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="") as lines:
            if kind in (".csv", ".tsv"):
                yield from _table_rows(lines, "\t" if kind == ".tsv" else ",")
            elif kind == ".json":
                yield from _json_rows(lines.read())
            else:
                yield from (_parse(line) for line in lines if line.strip())
    except (OSError, EOFError, csv.Error, lzma.LZMAError, pa.ArrowInvalid) as error:
        raise UserError(f"contamination.tasks={str(path)!r}", f"cannot be read ({error})",
                        REMEDY) from None


def _open(path: Path) -> Any:
    return (lzma.open(path) if path.suffix == ".xz"
            else pa.input_stream(str(path), compression="detect"))


def _table_rows(lines: Iterable[str], delimiter: str) -> Iterator[dict[str, Any]]:
    """Rows of a table as dictionaries; a first row that is no header counts as well."""
    csv.field_size_limit(MAX_CELL_CHARS)
    rows = (row for row in csv.reader(lines, delimiter=delimiter) if row)
    first = next(rows, None)
    if first is None:
        return
    names: Sequence[str] = [cell.strip() for cell in first]
    if not _is_header(names):
        is_mmlu = len(first) == len(MMLU_COLUMNS) and first[-1].strip() in ("A", "B", "C", "D")
        names = MMLU_COLUMNS if is_mmlu else [str(column) for column in range(len(first))]
        yield dict(zip(names, first))
    for row in rows:
        yield dict(zip(names, row))


def _is_header(cells: Sequence[str]) -> bool:
    """Whether cells may be names of columns: distinct, short, neither numbers nor sentences."""
    if any(_rank(cell) is not None and len(cell) > 1 for cell in cells):
        return len(set(cells)) == len(cells)
    return len(set(cells)) == len(cells) and all(
        cell and len(cell.split()) <= MAX_NAME_WORDS and cell[-1] not in ".?!:;,"
        and not cell.lstrip("+-").replace(".", "", 1).isdecimal() for cell in cells)


def _json_rows(content: str) -> Iterator[dict[str, Any] | None]:
    """Rows of a JSON file: a list, a list in a field of an object, or one object a line."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        yield from (_parse(line) for line in content.splitlines() if line.strip())
        return
    if isinstance(value, dict):
        lists = [part for part in value.values()
                 if isinstance(part, list) and part and isinstance(part[0], dict)]
        value = max(lists, key=len, default=[value])
    yield from (row if isinstance(row, dict) else None for row in value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _paths(row: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[str]:
    """Names of a row's fields; those in objects with dots, behind the object's own."""
    for name, value in row.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and depth < MAX_DEPTH:
            yield from _paths(value, f"{prefix}{name}.", depth + 1)


def _choose(paths: Sequence[str], fields: Sequence[str]) -> tuple[str, ...]:
    """The fields to read of a row, given the paths of all of its fields."""
    if fields:
        return tuple(name for name in fields if name in paths)
    for depth in range(MAX_DEPTH):
        level = [(_rank(path.rpartition(".")[2]), path) for path in paths
                 if path.count(".") == depth]
        if known := sorted(pair for pair in level if pair[0] is not None):
            return tuple(path for _, path in known)
    is_table = all(path == str(column) for column, path in enumerate(paths))
    return tuple(paths) if is_table else ()


def _rank(name: str) -> int | None:
    """Place of a name among `KNOWN_FIELDS`; None for another."""
    return _RANKS.get(name.lower().replace("_", "").replace(" ", ""))


def _value(row: Any, path: str) -> Any:
    """The value at a path of `_paths`."""
    if path in row:
        return row[path]
    for name in sorted(row, key=len, reverse=True):
        if path.startswith(f"{name}.") and isinstance(row[name], dict):
            return _value(row[name], path[len(name) + 1:])
    return None


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
