"""Reads a unit of any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from data.readers import (
    arc,
    columns,
    delimited,
    files,
    repository,
    rows,
    storage,
    units,
    warc,
    wiki,
)
from data.readers.fields import USUAL, Fields
from data.readers.formats import SAMPLE_BYTES, name_format
from data.readers.records import Item, RawRecord, Skipped, encodable, is_binary, is_of_storage

READERS: dict[str, Callable[[units.Unit], Iterator[Item]]] = {
    "warc": warc.read, "arc": arc.read, "wiki": wiki.read}
ROW_READERS: dict[str, Callable[[units.Unit, Fields], Iterator[Item]]] = {
    "json": rows.read, "csv": delimited.read, "tsv": delimited.read,
    "parquet": columns.read_parquet, "arrow": columns.read_arrow}


def read(unit: units.Unit, fields: Fields = USUAL) -> Iterator[Item]:
    """Reads a unit's records in their order; never raises for damaged content.

    Args:
        fields: which fields of a row mean what.

    Raises:
        PassingError: the disk or the network failed, so that the unit is not read to its end.

    The `Corrupt` of a whole file is yielded by its first unit only. The domain is determined by the
    prefix of the path, else by the record, else by the format (papers, encyclopedia,
    conversations).
    """
    word, place = units.split_reader(unit.path)
    if word == "repo":
        items = repository.read(unit)
    elif units.is_folder(unit.path):
        items = files.read_folder(unit)
    else:
        unit, kind = dataclasses.replace(unit, path=place), units.format_of(place) or ""
        items = (ROW_READERS[kind](unit, fields) if kind in ROW_READERS
                 else READERS.get(kind, files.read_file)(unit))
    domain = units.READERS[word] if word else None
    try:
        for item in items:
            yield _check(item, domain) if isinstance(item, RawRecord) else item
    except OSError as error:
        if not is_of_storage(error):
            raise
        raise storage.as_passing(error, place) from error


def _check(record: RawRecord, domain: str | None) -> Item:
    """The record with a valid source and domain, or the reason why it has no text."""
    source, content = encodable(record.source), record.content
    if not content or content.isspace():
        return Skipped(source, "empty")
    head = content[:SAMPLE_BYTES]
    if found := name_format(head if isinstance(head, bytes) else head.encode("utf-8", "replace")):
        return Skipped(source, found)
    if isinstance(content, bytes) and is_binary(content):
        return Skipped(source, "binary content")
    if isinstance(content, str):
        content = encodable(content)
    return dataclasses.replace(record, source=source, content=content,
                               domain=domain or record.domain)
