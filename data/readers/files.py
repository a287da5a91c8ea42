"""Single documents: text, Markdown, HTML and LaTeX files, single or in folders."""

from __future__ import annotations

import dataclasses
import itertools
import posixpath
from collections.abc import Iterator

import pyarrow as pa

from data.readers import latex, storage
from data.readers.records import MAX_RECORD_BYTES, Corrupt, Item, RawRecord, corrupt
from data.readers.units import Unit, format_of, list_members, split_reader

CONTENT_TYPES = {"text": "text/plain", "markdown": "text/markdown", "html": "text/html"}


def read_file(unit: Unit) -> Iterator[Item]:
    """The one document of a file."""
    yield _read_document(unit.path, posixpath.basename(unit.path))


def read_folder(unit: Unit) -> Iterator[Item]:
    """The documents of a range of a folder; their source is the path below it."""
    folder = split_reader(unit.path)[1]
    try:
        members = list(itertools.islice(list_members(unit.path), unit.start, unit.stop))
    except OSError as error:
        yield corrupt(posixpath.basename(folder.rstrip("/")), "folder", error)
        return
    for name in members:
        yield _read_document(storage.join(folder, name), name)


def _read_document(path: str, source: str) -> Item:
    try:
        content = storage.read_whole(path, MAX_RECORD_BYTES)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        return dataclasses.replace(corrupt(source, "file", error), num_bytes=_size(path))
    if content is None:
        return Corrupt(source, "file: record is too large", _size(path))
    kind = format_of(path) or "text"
    if kind == "latex":
        return latex.read_paper(content, source)
    return RawRecord(source, content, CONTENT_TYPES[kind])


def _size(path: str) -> int:
    try:
        return storage.size_bytes(path) or 0
    except FileNotFoundError:       # of a link to nothing
        return 0
