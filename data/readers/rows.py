"""Reads JSONL and Parquet, whose rows are documents or conversations."""

from __future__ import annotations

import dataclasses
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.readers import conversations, storage
from data.readers.records import (
    CUT_OFF,
    MAX_RECORD_BYTES,
    READ_BYTES,
    Corrupt,
    Item,
    RawRecord,
    corrupt,
)
from data.readers.units import Unit

COLUMNS = ("text", "source", "url", "domain", "id", *conversations.FIELDS)
NOT_JSON = "jsonl: line is not JSON"
METADATA = ("metadata", "meta")     # whose field `url` is read too, as Dolma has it


def read_jsonl(unit: Unit) -> Iterator[Item]:
    """The lines that begin in a unit; the first unit has all lines of a compressed file."""
    name, offset = posixpath.basename(unit.path), unit.start
    try:
        with storage.open_binary(unit.path) as file:
            codec, stop = storage.codec_of(file), unit.stop
            if codec and unit.start:
                return
            lines, stop = (storage.decompress(file, codec), None) if codec else (file, stop)
            for offset, line, num_bytes in _lines(lines, unit.start, stop):
                place = f"{name}@{offset}"
                if _is_overlong(line):
                    yield Corrupt(place, "jsonl: line is too long", 0 if codec else num_bytes)
                elif line.strip():
                    item = _parse_line(line, place)
                    if isinstance(item, Corrupt):
                        item = _weigh(item, line, file, 0 if codec else num_bytes)
                    yield item
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        yield corrupt(f"{name}@{offset}", "jsonl", error)


def _weigh(item: Corrupt, line: bytes, file: BinaryIO, num_bytes: int) -> Corrupt:
    """The item with the bytes that it stands for: a last line that breaks off, for the file's."""
    if item.reason == NOT_JSON and not line.endswith(b"\n"):
        return Corrupt(item.source, f"jsonl: {CUT_OFF}", file.seek(0, io.SEEK_END))
    return dataclasses.replace(item, num_bytes=num_bytes)


def _lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[tuple[int, bytes, int]]:
    """Offset, line and its length for lines that begin in [start, stop), truncated if overlong."""
    offset = start
    if start:   # a line begun before `start` belongs to the previous unit
        file.seek(start - 1)
        offset += _skip_line(file) - 1
    while stop is None or offset < stop:
        line = file.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        num_bytes = len(line) + (_skip_line(file) if _is_overlong(line) else 0)
        yield offset, line, num_bytes
        offset += num_bytes


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


def _parse_line(line: bytes, place: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return Corrupt(place, NOT_JSON)
    if not isinstance(fields, dict):
        return Corrupt(place, "jsonl: line is not an object")
    return _from_fields(fields, place, "jsonl")


def _from_fields(fields: Mapping[str, Any], place: str, kind: str) -> Item:
    """Makes a record from the fields text (or messages), source or url, domain and id."""
    text, domain = fields.get("text"), fields.get("domain")
    if text is None:
        messages = next((fields[name] for name in conversations.FIELDS if fields.get(name)), None)
        if messages is None:
            return Corrupt(place, f"{kind}: no field `text` or `messages`")
        text = conversations.render(messages)
        domain = domain or conversations.DOMAIN
        if text is None:
            return Corrupt(place, f"{kind}: messages are not roles and contents")
    elif not isinstance(text, str):
        return Corrupt(place, f"{kind}: `text` is not a string")
    if len(text) > MAX_RECORD_BYTES:
        return Corrupt(place, f"{kind}: record is too large")
    id_ = fields.get("id")
    return RawRecord(_find_source(fields) or place, text, "text/plain",
                     None if domain is None else str(domain), None if id_ is None else str(id_))


def _find_source(fields: Mapping[str, Any]) -> str:
    """The first URL of the fields, else their source: the name of a collection, of a file."""
    inner = [fields[name].get("url") for name in METADATA if isinstance(fields.get(name), Mapping)]
    named = [str(value) for value in (fields.get("source"), fields.get("url"), *inner) if value]
    return next((value for value in named if "://" in value), (named or [""])[0])


def read_parquet(unit: Unit) -> Iterator[Item]:
    """The row groups that begin in a unit."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as raw:
            file = pq.ParquetFile(raw)
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            columns += [f"{name}.url" for name in METADATA if _has_url(file.schema_arrow, name)]
            if not {"text", *conversations.FIELDS} & set(columns):
                if not unit.start:
                    yield Corrupt(name, "parquet: no field `text` or `messages`",
                                  storage.size_bytes(unit.path) or 0)
                return
            for group in range(file.metadata.num_row_groups):
                if unit.start <= _group_start(file.metadata.row_group(group)) < unit.stop:
                    yield from _read_group(file, group, columns, name)
    except (pa.ArrowException, OSError, ValueError) as error:
        damage = corrupt(name, "parquet", error, storage.size_bytes(unit.path) or 0)
        if not unit.start:
            yield damage


def _has_url(schema: pa.Schema, name: str) -> bool:
    """Whether a column of a Parquet file is a struct with a field `url`."""
    place = schema.get_field_index(name)
    return place >= 0 and pa.types.is_struct(schema.field(place).type) and (
        schema.field(place).type.get_field_index("url") >= 0)


def _group_start(group: pq.RowGroupMetaData) -> int:
    """The first byte of a row group."""
    column = group.column(0)
    starts = column.dictionary_page_offset, column.data_page_offset
    return min(start for start in starts if start is not None)


def _group_bytes(group: pq.RowGroupMetaData, row: int) -> int:
    """About the bytes of a row group in its file from a row on."""
    num_bytes = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return num_bytes * (group.num_rows - row) // max(group.num_rows, 1)


def _read_group(file: pq.ParquetFile, group: int, columns: list[str], name: str) -> Iterator[Item]:
    row = 0
    try:
        for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
            for fields in batch.to_pylist():
                yield _from_fields(fields, f"{name}@{group}+{row}", "parquet")
                row += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield corrupt(f"{name}@{group}+{row}", "parquet", error,
                      _group_bytes(file.metadata.row_group(group), row))
