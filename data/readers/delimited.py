"""Reads CSV and TSV with a header, whose rows are documents or conversations.

Quoting is RFC 4180's: a quoted value may hold line ends, so a file is one unit. The delimiter of a
CSV file is the most frequent one of its header.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from data.readers import storage
from data.readers.arrays import UTF_16
from data.readers.fields import Fields, make_record
from data.readers.records import MAX_RECORD_BYTES, Corrupt, Item, corrupt
from data.readers.units import Unit, format_of

DELIMITERS = ",;\t|"
HEAD_BYTES = 1 << 16

csv.field_size_limit(MAX_RECORD_BYTES)      # of the process; it is 128 kB otherwise


def read(unit: Unit, fields: Fields) -> Iterator[Item]:
    """The rows of a file, numbered without the header."""
    name, kind = posixpath.basename(unit.path), format_of(unit.path)
    number = 0
    try:
        with storage.open_binary(unit.path) as file:
            rows = open_table(file, kind)
            header = next(rows, None)
            while header is not None:
                try:
                    values = next(rows, None)
                except csv.Error:
                    yield Corrupt(f"{name}@{number}", f"{kind}: value is too large or misquoted")
                    number += 1
                    continue
                if values is None:
                    break
                if values:      # no empty line
                    yield _read_row(header, values, f"{name}@{number}", kind, fields)
                    number += 1
    except (OSError, EOFError, ValueError, csv.Error, pa.ArrowException) as error:
        yield corrupt(f"{name}@{number}", kind, error, storage.size_bytes(unit.path) or 0)


def open_table(file: BinaryIO, kind: str) -> Any:
    """The csv reader of a file, compressed or not, of which the first row is the header.

    Args:
        kind: csv or tsv.
    """
    codec = storage.codec_of(file)
    stream = storage.decompress(file, codec) if codec else file
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    encoding = "utf-16" if head.startswith(UTF_16) else "utf-8-sig"
    text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
    first = head.decode(encoding, "replace").partition("\n")[0]
    delimiter = "\t" if kind == "tsv" else max(DELIMITERS, key=first.count)
    # TSV is often written without quoting, so that a value may begin with a quotation.
    return csv.reader(text, delimiter=delimiter, strict=kind == "csv")


def _read_row(header: list[str], values: list[str], place: str, kind: str, fields: Fields) -> Item:
    if len(values) != len(header):
        return Corrupt(place, f"{kind}: row has not as many values as the header has names")
    row = {name.strip(): _decodable(value) for name, value in zip(header, values)}
    return make_record(row, place, kind, fields)


def _decodable(value: str) -> str | bytes:
    """A value, as bytes where it is not UTF-8, so that its encoding is found as that of a file."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape")
    return value
