"""Reads JSON whose rows are documents or conversations: one a line, an array, or single objects.

The content decides which, not the suffix. Lines are divided into units; anything else is read as a
stream by the first unit.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import itertools
import json
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from data.readers import arrays, storage
from data.readers.fields import Fields, make_record
from data.readers.records import (
    CUT_OFF,
    MAX_RECORD_BYTES,
    READ_BYTES,
    Corrupt,
    Item,
    Skipped,
    corrupt,
)
from data.readers.units import Unit

HEAD_BYTES = 1 << 16
NOT_JSON = "jsonl: line is not JSON"


def read(unit: Unit, fields: Fields) -> Iterator[Item]:
    """The rows that begin in a unit; the first unit has all rows of a file that is not lines.

    A file that holds one object alone and no text, as data sets have to describe themselves, is
    skipped.
    """
    items = _read_rows(unit, fields)
    first = list(itertools.islice(items, 2))
    if len(first) == 1 and isinstance(first[0], Corrupt) and first[0].fields and (
            not unit.start and unit.stop >= (storage.size_bytes(unit.path) or 0)):
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
            lines, stop = (storage.decompress(file, codec), None) if codec else (file, stop)
            if not is_lines(lines.peek(HEAD_BYTES)):
                if not unit.start:
                    yield from _weigh_rest(arrays.read_values(lines, name, fields), file)
                return
            for offset, line, num_bytes in split_lines(lines, unit.start, stop):
                place = f"{name}@{offset}"
                if is_overlong(line):
                    yield Corrupt(place, "jsonl: line is too long", 0 if codec else num_bytes)
                elif line.strip():
                    item = _parse_line(line, place, fields)
                    if isinstance(item, Corrupt):
                        item = _weigh(item, line, file, 0 if codec else num_bytes)
                    yield item
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        yield corrupt(f"{name}@{offset}", "jsonl", error)


def is_lines(head: bytes) -> bool:
    """Whether a file that begins so holds a row a line: no array, indented object or UTF-16.

    A first line that breaks off looks as that of an indented object, but the next is another row.
    """
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    first, newline, rest = head.partition(b"\n")
    return not head.startswith((b"[", *arrays.UTF_16)) and not (
        newline and first.rstrip().endswith((b"{", b"[", b",")) and not rest.startswith(b"{"))


def _weigh_rest(items: Iterator[Item], file: BinaryIO) -> Iterator[Item]:
    """The items of an array; damage that ends it weighs what follows in the file, too."""
    for item in items:
        if isinstance(item, Corrupt) and item.num_bytes:
            place = file.tell()
            size = file.seek(0, io.SEEK_END)
            item = dataclasses.replace(item, num_bytes=size if item.reason.endswith(CUT_OFF)
                                       else min(size, item.num_bytes + size - place))
        yield item


def _weigh(item: Corrupt, line: bytes, file: BinaryIO, num_bytes: int) -> Corrupt:
    """The item with the bytes that it stands for: a last line that breaks off, for the file's."""
    if item.reason == NOT_JSON and not line.endswith(b"\n"):
        return Corrupt(item.source, f"jsonl: {CUT_OFF}", file.seek(0, io.SEEK_END))
    return dataclasses.replace(item, num_bytes=num_bytes)


def split_lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes, int]]:
    """Offset, line and its length for lines that begin in [start, stop), truncated if overlong."""
    offset = start
    if start:   # a line begun before `start` belongs to the previous unit
        file.seek(start - 1)
        offset += _skip_line(file) - 1
    while stop is None or offset < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        num_bytes = len(line) + (_skip_line(file) if is_overlong(line) else 0)
        yield offset, line, num_bytes
        offset += num_bytes


def is_overlong(line: bytes) -> bool:
    """Whether a line of `split_lines` was truncated."""
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
        return Corrupt(place, NOT_JSON)
    if not isinstance(row, dict):
        return Corrupt(place, "jsonl: line is not an object")
    return make_record(row, place, "jsonl", fields)
