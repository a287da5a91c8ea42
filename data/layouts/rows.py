"""The rows of files of examples, one after the other, each with its place; damage is one of them.

JSON lines, JSON arrays, CSV and TSV, plain or compressed, and tables of Arrow. The suffix decides
between these, the content whether JSON is lines.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError, first_line
from core.progress import log
from data.readers import arrays, columns, delimited, rows, storage
from data.readers.records import MAX_RECORD_BYTES, Corrupt, is_of_storage
from data.readers.units import FORMATS, ROWS, TABLES, format_of

KINDS = frozenset((ROWS | TABLES).values())
SUFFIXES = ", ".join((*ROWS, *TABLES))
TOO_LONG = f"is longer than {MAX_RECORD_BYTES >> 20} MiB"


@dataclasses.dataclass(frozen=True)
class Damaged:
    """What stands where a row should: `reason` is a word to count it by, `what` a predicate."""

    reason: str
    what: str


@functools.lru_cache(maxsize=1024)
def log_once(message: str) -> None:
    """Logs a line, once however often a file is read."""
    log(message)


def find_files(path: Path) -> list[Path]:
    """The file, or the files of rows in a folder and below it, sorted.

    Others are named in a line of the log.

    Raises:
        UserError: there is no such file or folder, or nothing in it can hold rows.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(str(path), "no such file", "correct the name")
    if not path.is_dir():
        if format_of(str(path)) not in KINDS:
            raise UserError(str(path), "its name ends in none of the formats of rows",
                            f"rename it to one of {SUFFIXES}, which may be compressed")
        return [path]
    names = [name for name in storage.list_files(os.fspath(path))
             if not any(part.startswith(".") for part in Path(name).parts)]
    held = [name for name in names if format_of(name) in KINDS]
    if not held:
        raise UserError(str(path), "holds no file of rows", f"name files of {SUFFIXES}")
    if left_out := sorted(set(names) - set(held)):
        log_once(f"{path}: not read, as they hold no rows: {left_out[0]}"
                 + (f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""))
    return [path / name for name in held]


def name_of(path: Path) -> str:
    """A file's name without the suffix of its format; a folder's name."""
    suffix = next((suffix for suffix in sorted(FORMATS, key=len, reverse=True)
                   if path.name.lower().endswith(suffix)), "")
    return path.name[:len(path.name) - len(suffix)] or path.name


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file as dictionaries, each with its place, ``FILE, line 3``.

    Of arrays and tables the place is ``FILE, row 3``. What is damaged, and what is no object,
    comes as `Damaged`. Memory is that of one row, of a table that of a batch of them.

    Raises:
        UserError: the file cannot be opened.
    """
    kind, place = format_of(str(path)), "row 0"
    try:
        with storage.open_binary(os.fspath(path)) as file:
            if kind in ("csv", "tsv"):
                table = delimited.open_table(file, kind)    # kept until the file is closed
                found = _read_table(table)
            elif kind in ("parquet", "arrow"):
                found = _number(_read_columns(file, kind))
            else:
                found = _read_json(file, path)
            for place, row in found:
                yield f"{path}, {place}", row
    except (OSError, EOFError, ValueError, csv.Error, pa.ArrowException) as error:
        if is_of_storage(error):
            raise storage.as_passing(error, os.fspath(path)) from error
        yield f"{path}, after {place}", Damaged(
            "broken_file", f"the rest cannot be read ({first_line(error)})")


def _read_json(file: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    codec = storage.codec_of(file)
    stream = storage.decompress(file, codec) if codec else file
    if rows.is_lines(stream.peek(rows.HEAD_BYTES)):
        yield from _read_lines(stream, path)
        return
    for number, value in enumerate(arrays.parse_values(stream), start=1):
        yield f"row {number}", (Damaged(
            "broken_line", f"is damaged ({value.reason.removeprefix('json: ')})")
            if isinstance(value, Corrupt) else _check_object(value))


def _read_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    blank: list[int] = []
    for number, (_, line, _) in enumerate(rows.split_lines(stream, 0, None), start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            yield f"line {number}", _parse_line(line)
        elif len(blank) < 2:
            blank.append(number)
    if blank:
        log_once(f"{path}, line {blank[0]}: skipped as blank"
                 + (", and so are more" if len(blank) > 1 else ""))


def _parse_line(line: bytes) -> Any:
    if rows.is_overlong(line):
        return Damaged("broken_line", TOO_LONG)
    try:
        return _check_object(json.loads(line.decode()))
    except UnicodeDecodeError as error:
        return Damaged("broken_line", f"is not UTF-8 text ({error.reason})")
    except RecursionError:
        return Damaged("broken_line", "is not valid JSON (it is nested too deeply)")
    except ValueError as error:
        return Damaged("broken_line", f"is not valid JSON ({error})")


def _check_object(value: Any) -> Any:
    return value if isinstance(value, dict) else Damaged("broken_line", "is no JSON object")


def _read_table(table: Any) -> Iterator[tuple[str, Any]]:
    """The rows of a csv reader; the line of a row is its first, as a value may hold line ends."""
    header = [name.strip() for name in next(table, [])]
    while True:
        place = f"line {table.line_num + 1}"
        try:
            values = next(table, None)
        except csv.Error as error:
            yield place, Damaged("broken_line", f"is misquoted, or a value is too large ({error})")
            continue
        if values is None:
            return
        if not values:      # an empty line
            continue
        if len(values) != len(header):
            yield place, Damaged("broken_line", f"has {len(values)} values, and the header "
                                 f"{len(header)} names")
        else:
            yield place, dict(zip(header, values))


def _read_columns(file: BinaryIO, kind: str) -> Iterator[dict[str, Any]]:
    if kind == "parquet":
        table = pq.ParquetFile(file)
        batches = table.iter_batches(columns.BATCH_ROWS)
    elif file.peek(len(columns.FILE_MAGIC)).startswith(columns.FILE_MAGIC):
        table = pa.ipc.open_file(file)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        batches = pa.ipc.open_stream(file)
    for batch in batches:
        for start in range(0, batch.num_rows, columns.BATCH_ROWS):
            for row in columns.to_rows(batch.slice(start, columns.BATCH_ROWS))[0]:
                yield {name: _without_nulls(value) for name, value in row.items()}


def _number(found: Iterator[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(found, start=1):
        yield f"row {number}", row


def _without_nulls(value: Any) -> Any:
    """The value without fields that are null: a table gives every struct the fields of all."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
