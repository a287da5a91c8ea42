"""Reads tables of Arrow, whose rows are documents or conversations: Parquet, Feather, IPC files.

Only the columns that are needed are read. Columns of bytes, as of images, are needed as a text
alone.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.readers import storage
from data.readers.fields import TEXT_FIELDS, Fields, make_record
from data.readers.records import Item, corrupt
from data.readers.units import Unit

BATCH_ROWS = 1024
FILE_MAGIC = b"ARROW1"


def read_parquet(unit: Unit, fields: Fields) -> Iterator[Item]:
    """The row groups that begin in a unit."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as raw:
            file = pq.ParquetFile(raw)
            columns, unread = _select(file.schema_arrow, fields)
            for group in range(file.metadata.num_row_groups):
                if unit.start <= _group_start(file.metadata.row_group(group)) < unit.stop:
                    batches = file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns)
                    weigh = functools.partial(_rest_bytes, file.metadata.row_group(group))
                    yield from _read_batches(batches, f"{name}@{group}+", "parquet", fields,
                                             unread, weigh)
    except (pa.ArrowException, OSError, ValueError) as error:
        damage = corrupt(name, "parquet", error, storage.size_bytes(unit.path) or 0)
        if not unit.start:
            yield damage


def read_arrow(unit: Unit, fields: Fields) -> Iterator[Item]:
    """The rows of a file in Arrow's format of files (Feather) or of streams (Hugging Face's)."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as raw:
            is_file = raw.peek(len(FILE_MAGIC)).startswith(FILE_MAGIC)
            if is_file:
                file = pa.ipc.open_file(raw)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            else:
                file = batches = pa.ipc.open_stream(raw)
            columns, unread = _select(file.schema, fields)
            tops = list(dict.fromkeys(column.partition(".")[0] if column not in file.schema.names
                                      else column for column in columns))
            parts = (batch.select(tops).slice(start, BATCH_ROWS) for batch in batches
                     for start in range(0, batch.num_rows, BATCH_ROWS))
            yield from _read_batches(parts, f"{name}@", "arrow", fields, unread,
                                     lambda row: storage.size_bytes(unit.path) or 0)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield corrupt(name, "arrow", error, storage.size_bytes(unit.path) or 0)


def _select(schema: pa.Schema, fields: Fields) -> tuple[list[str], list[str]]:
    """The columns to read, dotted inside of structs, and those left out for their type."""
    texts = {fields.text} if fields.text else set(TEXT_FIELDS)
    read, unread = [], []
    for name in fields.select(schema.names):
        column = name if name in schema.names else name.partition(".")[0]
        kind = schema.field(column).type
        if _holds_bytes(kind) and not {column, name} & {text.partition(".")[0] for text in texts}:
            unread.append(name)
        elif name == column or not pa.types.is_struct(kind):
            read.append(column)
        elif kind.get_field_index(name.removeprefix(f"{column}.").partition(".")[0]) >= 0:
            read.append(name)
    return list(dict.fromkeys(read)) or schema.names[:1], unread    # rows are counted by one


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or (
            pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind)):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))


def _read_batches(batches: Iterator[pa.RecordBatch], place: str, kind: str, fields: Fields,
                  unread: list[str], weigh: Callable[[int], int]) -> Iterator[Item]:
    """The rows of batches; `weigh` gives the bytes of the file from a row on."""
    number = 0
    try:
        for batch in batches:
            rows, failed = to_rows(batch)
            for row in rows:
                yield make_record(row, f"{place}{number}", kind, fields, [*failed, *unread])
                number += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        yield corrupt(f"{place}{number}", kind, error, weigh(number))


def to_rows(batch: pa.RecordBatch) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of Python values, and the columns that have no such values."""
    columns, failed = {}, []
    for name, column in zip(batch.schema.names, batch.columns):
        try:
            column = column.cast(_without_times(column.type))
            columns[name] = column.to_pylist(maps_as_pydicts="lossy")
        except (pa.ArrowException, ValueError):
            failed.append(name)
    if not columns:
        return [{} for _ in range(batch.num_rows)], failed
    return [dict(zip(columns, values)) for values in zip(*columns.values())], failed


def _without_times(kind: pa.DataType) -> pa.DataType:
    """A type with times and dates as strings, durations as numbers: Python's do not hold them all.

    It has neither nanoseconds nor years above 9999.
    """
    types = pa.types
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        return pa.string()
    if types.is_duration(kind):
        return pa.int64()
    if types.is_struct(kind):
        return pa.struct([(field.name, _without_times(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_without_times(kind.key_type), _without_times(kind.item_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_without_times(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        make = pa.list_ if types.is_list(kind) else pa.large_list
        return make(_without_times(kind.value_type))
    return kind


def _rest_bytes(group: pq.RowGroupMetaData, row: int) -> int:
    """About the bytes of a row group in its file from a row on."""
    num_bytes = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return num_bytes * (group.num_rows - row) // max(group.num_rows, 1)


def _group_start(group: pq.RowGroupMetaData) -> int:
    """The first byte of a row group."""
    column = group.column(0)
    starts = column.dictionary_page_offset, column.data_page_offset
    return min(start for start in starts if start is not None)
