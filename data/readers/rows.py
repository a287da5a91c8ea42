"""Reads JSON whose rows are documents or conversations: one a line, an array, or single objects.

The content decides which, not the suffix. Lines are divided into units; anything else is read as a
stream by the first unit.
"""

from __future__ import annotations

import codecs
import itertools
import json
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from data.readers import arrays, storage
from data.readers.fields import Fields, make_record
from data.readers.records import (
    MAX_RECORD_BYTES,
    READ_BYTES,
    Corrupt,
    Item,
    Skipped,
    failure_kind,
)
from data.readers.units import Unit

HEAD_BYTES = 1 << 16


def read(unit: Unit, fields: Fields) -> Iterator[Item]:
    """The rows that begin in a unit; the first unit has all rows of a file that is not lines.

    A file that holds one object alone and no text, as data sets have to describe themselves, is
    skipped.
    """
    items = _read_rows(unit, fields)
    first = list(itertools.islice(items, 2))
    if len(first) == 1 and isinstance(first[0], Corrupt) and first[0].fields and (
            not unit.start and unit.stop >= storage.size_bytes(unit.path)):
        yield Skipped(first[0].source, "json: object without a text", first[0].fields)
        return
    yield from first
    yield from items


def _read_rows(unit: Unit, fields: Fields) -> Iterator[Item]:
    name, offset = posixpath.basename(unit.path), unit.start
    try:
        with storage.open_binary(unit.path) as file:
            codec, stop = storage.codec_of(file), unit.stop
            if codec and unit.start:
                return
            if codec:
                file, stop = storage.decompress(file, codec), None
            if not _is_lines(file.peek(HEAD_BYTES)):
                if not unit.start:
                    yield from arrays.read_values(file, name, fields)
                return
            for offset, line in _lines(file, unit.start, stop):
                place = f"{name}@{offset}"
                if _is_overlong(line):
                    yield Corrupt(place, "jsonl: line is too long")
                elif line.strip():
                    yield _parse_line(line, place, fields)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        yield Corrupt(f"{name}@{offset}", f"jsonl: {failure_kind(error)}")


def _is_lines(head: bytes) -> bool:
    """Whether a file that begins so holds a row a line: no array, indented object or UTF-16."""
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    first, newline, _ = head.partition(b"\n")
    return not head.startswith((b"[", *arrays.UTF_16)) and not (
        newline and first.rstrip().endswith((b"{", b"[", b",")))


def _lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Offsets and lines that begin in [start, stop); an overlong line is truncated."""
    offset = start
    if start:   # a line begun before `start` belongs to the previous unit
        file.seek(start - 1)
        offset += _skip_line(file) - 1
    while stop is None or offset < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        yield offset, line
        offset += len(line)
        if _is_overlong(line):
            offset += _skip_line(file)


def _is_overlong(line: bytes) -> bool:
    return len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n")


def _skip_line(file: BinaryIO) -> int:
    """Skips to the end of a line; returns the number of bytes."""
    num_bytes = 0
    while part := file.readline(READ_BYTES):
        num_bytes += len(part)
        if part.endswith(b"\n"):
            break
    return num_bytes


def _parse_line(line: bytes, place: str, fields: Fields) -> Item:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Corrupt(place, "jsonl: line is not JSON")
    if not isinstance(row, dict):
        return Corrupt(place, "jsonl: line is not an object")
    return make_record(row, place, "jsonl", fields)
