"""Reads JSON that is not one row a line: arrays, and objects over several lines.

Values are decoded one after the other, so that memory is that of one row.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from data.readers.fields import Fields, make_record
from data.readers.records import CUT_OFF, MAX_RECORD_BYTES, READ_BYTES, Corrupt, Item

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LONGEST_MARK = len(r"\ud800\udc00")    # that an error in a cut value may stand before
BETWEEN = re.compile(r"[\s,]*")
_UNDECODED = re.compile("[\udc80-\udcff]")      # bytes that are not UTF-8


def read_values(file: BinaryIO, name: str, fields: Fields) -> Iterator[Item]:
    """The objects of a file or of its arrays, numbered; damage weighs the bytes that were read.

    Of an object without a text whose fields hold one list of objects, ``{"data": [...]}``, these
    are the rows.
    """
    number = 0
    for value in parse_values(file):
        for row in _unwrap(value, fields):
            place = f"{name}@{number}"
            number += 1
            if isinstance(row, Corrupt):
                yield dataclasses.replace(row, source=place)
            elif isinstance(row, dict):
                yield make_record(row, place, "json", fields)
            else:
                yield Corrupt(place, "json: element is not an object")


def _unwrap(value: Any, fields: Fields) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(make_record(value, "", "", fields), Corrupt):
        return [value]
    lists = [inner for inner in value.values()
             if isinstance(inner, list) and inner and isinstance(inner[0], dict)]
    return lists[0] if len(lists) == 1 else [value]


class _Text:
    """The text of a file in UTF-8, or UTF-16 with its mark, read as far as needed.

    Bytes that are not UTF-8 become surrogates.
    """

    def __init__(self, file: BinaryIO):
        encoding = "utf-16" if file.peek(2).startswith(UTF_16) else "utf-8-sig"
        self._file = file
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        self.text, self.position, self.is_whole = "", 0, False

    @property
    def num_bytes(self) -> int:
        """Bytes from the position to the end of what was read."""
        return len(self.text[self.position:].encode("utf-8", "surrogatepass"))

    def extend(self) -> None:
        """Drops what lies before the position, and at least doubles the rest."""
        parts, missing = [], max(READ_BYTES, len(self.text) - self.position)
        while missing > 0 and (part := self._file.read1(missing)):  # gives what precedes damage
            parts.append(part)
            missing -= len(part)
        self.is_whole = not parts
        self.text = self.text[self.position:] + self._decoder.decode(b"".join(parts), not parts)
        self.position = 0

    def skip(self) -> str:
        """Skips blanks and commas; returns the next character, empty at the end."""
        while True:
            self.position = BETWEEN.match(self.text, self.position).end()
            if self.position < len(self.text) or self.is_whole:
                return self.text[self.position:self.position + 1]
            self.extend()


def parse_values(file: BinaryIO) -> Iterator[Any]:
    """Elements of arrays, values outside of them; `Corrupt` where one or the rest is damaged."""
    text, decoder, depth = _Text(file), json.JSONDecoder(), 0
    while character := text.skip():
        if (character == "[" and not depth) or (character == "]" and depth):
            depth = 1 - depth
            text.position += 1
            continue
        try:
            value, end = decoder.raw_decode(text.text, text.position)
        except (ValueError, RecursionError) as error:
            num_chars = len(text.text) - text.position
            if text.is_whole or num_chars > MAX_RECORD_BYTES or not _may_go_on(error, text.text):
                yield Corrupt("", "json: record is too large" if num_chars > MAX_RECORD_BYTES else
                              f"json: {CUT_OFF}" if _may_go_on(error, text.text)
                              else "json: damaged", text.num_bytes)
                return
            text.extend()
            continue
        if end == len(text.text) and not text.is_whole:     # a number may go on
            text.extend()
            continue
        if _UNDECODED.search(text.text, text.position, end):
            value = Corrupt("", "json: record is not UTF-8")
        text.position = end
        yield value
    if depth:
        yield Corrupt("", f"json: {CUT_OFF}", 1)


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether an error is that of a value whose end is not there yet."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated") or error.pos > len(text.rstrip()) - LONGEST_MARK)
