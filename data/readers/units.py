"""Inputs of `config.curate.inputs`, and their division into units.

An input is a file, a folder, a glob or a URL (``s3://``, ``gs://``, ``hf://``, ``https://``). Its
format is determined by the suffix. A prefix gives the kind of documents where needed:

    book:PATH    the documents are books
    paper:PATH   the documents are papers
    repo:PATH    the folder is a source tree (also without prefix if it contains `.git`)

A folder of many small documents is one input; through a glob each document is one.
A unit depends on the input and the unit size alone, never on the number of workers.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence

import xxhash

from core.artifacts import digest
from core.errors import UserError
from core.progress import log
from data.readers import storage

# suffix: kind. Documents are read whole, one per file; a unit of a folder has many.
ARCHIVES = {
    ".warc": "warc", ".warc.gz": "warc", ".warc.zst": "warc", ".wet": "warc", ".wet.gz": "warc",
    ".wet.zst": "warc", ".wat": "warc", ".wat.gz": "warc", ".wat.zst": "warc",
    ".arc": "arc", ".arc.gz": "arc",
    ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".json.gz": "jsonl",
    ".json.zst": "jsonl", ".parquet": "parquet",
    ".xml": "wiki", ".xml.gz": "wiki", ".xml.bz2": "wiki", ".xml.zst": "wiki",
}
DOCUMENTS = {
    ".txt": "text", ".txt.gz": "text", ".txt.zst": "text", ".md": "markdown", ".html": "html",
    ".htm": "html", ".html.gz": "html", ".tex": "latex", ".tex.gz": "latex",
}
FORMATS = ARCHIVES | DOCUMENTS
SPLITTABLE = (".warc", ".warc.gz", ".wet", ".wet.gz", ".wat", ".wat.gz", ".jsonl", ".parquet")
UNKNOWN_BYTES = sys.maxsize     # the end of a file whose size its server does not report
READERS = {"book": "books", "paper": "papers", "repo": "code"}      # word: domain
_READER = re.compile(rf"({'|'.join(READERS)}):(?!//)")


@dataclasses.dataclass(frozen=True, order=True)
class Unit:
    """A range of one input: bytes of a file, or files of a folder by number."""

    path: str
    start: int
    stop: int


def split_reader(path: str) -> tuple[str | None, str]:
    """The prefix before the colon, if any, and the path without it."""
    match = _READER.match(path)
    return (match[1], path[match.end():]) if match else (None, path)


def format_of(path: str) -> str | None:
    """A file's format by its longest known suffix; None when it is unknown."""
    suffix = _suffix(path, FORMATS)
    return FORMATS[suffix] if suffix else None


def find_inputs(patterns: str) -> list[str]:
    """Inputs of comma-separated files, folders, globs and URLs, sorted and distinct.

    A folder is expanded to the archives below it, and to itself (with a final ``/``) when it also
    contains single documents.

    Raises:
        UserError: a pattern matches nothing, names a file of an unknown format, cannot be looked
            up, or needs a package that is not installed.
    """
    selected: set[str] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        reader, place = split_reader(pattern)
        try:
            inputs = [path for match in _expand(place) for path in _inside(match, reader)]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"inputs={pattern!r}", f"cannot be looked up ({reason})",
                            "give what this machine may read, or try again later") from None
        if not inputs:
            raise UserError(f"inputs={pattern!r}", "matches no input file",
                            f"give files or folders of {', '.join(FORMATS)}")
        selected.update(f"{reader}:{path}" if reader else path for path in inputs)
    if not selected:
        raise UserError(f"inputs={patterns!r}", "names no input", "give a file, folder or glob")
    folders = tuple(path for path in selected if is_folder(path))
    return sorted(path for path in selected if not _is_held(path, folders))


def plan(paths: Sequence[str], unit_bytes: int) -> list[Unit]:
    """Divides inputs into units of about `unit_bytes` each, without reading them.

    A record belongs to the unit in which it begins. An input that cannot be read from
    the middle, e.g. a compressed JSONL file, is one unit.

    Raises:
        PassingError: an input no longer exists, or its storage refuses the answer.
    """
    units = []
    for path in paths:
        place = split_reader(path)[1]
        try:
            if is_folder(path):
                units += _plan_folder(path, unit_bytes)
                continue
            size = storage.size_bytes(place)
            if size is None:
                units.append(Unit(path, 0, UNKNOWN_BYTES))
                continue
        except OSError as error:
            raise storage.as_passing(error, place) from None
        step = unit_bytes if _suffix(place, SPLITTABLE) else max(size, 1)
        units += [Unit(path, start, min(start + step, size)) for start in range(0, size, step)]
        if not size:
            units.append(Unit(path, 0, 0))
    return units


def version(path: str) -> str:
    """What differs after a local input was written to, its names, sizes and times of change."""
    place = split_reader(path)[1]
    if not is_folder(path):
        return storage.version(place)
    return digest([(name, storage.version(storage.join(place, name)))
                   for name in list_members(path)])


def content_fingerprint(path: str) -> str:
    """Fingerprint of an input's content.

    For a local file, xxh3-128 of its bytes as 32 hex digits; for a folder, of the names and
    fingerprints of its files. For a URL, metadata of its storage: a checksum (`ETag=...`) or else
    the time of the last change, and the size.

    Raises:
        PassingError: a file cannot be read.
    """
    place = split_reader(path)[1]
    try:
        if not is_folder(path):
            return storage.fingerprint(place)
        state = xxhash.xxh3_128()
        for name in list_members(path):
            state.update(f"{name}\n{storage.fingerprint(storage.join(place, name))}\n".encode(
                "utf-8", "surrogateescape"))
    except OSError as error:
        raise storage.as_passing(error, place) from None
    return state.hexdigest()


def is_folder(path: str) -> bool:
    """Whether an input is a folder of documents, or a source tree."""
    return path.endswith("/") or split_reader(path)[0] == "repo"


def list_members(path: str) -> dict[str, int]:
    """Size of each file of a folder input, by relative path, sorted."""
    reader, place = split_reader(path)
    files = storage.list_files(place)
    if reader == "repo":
        return files
    return {name: size for name, size in files.items() if _suffix(name, DOCUMENTS)}


def _plan_folder(path: str, unit_bytes: int) -> list[Unit]:
    cuts, held = [0], 0
    sizes = list(list_members(path).values())
    for index, size in enumerate(sizes):
        if held and held + size > unit_bytes:
            cuts.append(index)
            held = 0
        held += size
    return [Unit(path, start, stop) for start, stop in zip(cuts, [*cuts[1:], len(sizes)])]


def _expand(place: str) -> list[str]:
    """Paths that match a pattern; `place` itself when it is not a glob."""
    if storage.is_page(place) or not glob.has_magic(place):
        return [place]
    if not storage.is_remote(place):
        if os.path.exists(place):
            return [place]
        return glob.glob(place, recursive=True)
    files, name = storage.locate(place)
    return [files.unstrip_protocol(match) for match in storage.attempt(lambda: files.glob(name))]


def _is_held(path: str, folders: tuple[str, ...]) -> bool:
    """Whether an input is part of one of the folders."""
    is_single = is_folder(path) or _suffix(path, DOCUMENTS) is not None
    return is_single and any(path != folder and path.startswith(folder) for folder in folders)


def _inside(place: str, reader: str | None) -> list[str]:
    """The inputs of a file or folder."""
    if storage.is_folder(place):
        folder = place.rstrip("/") + "/"
        if reader == "repo":
            return [folder]
        files, name = storage.locate(f"{folder}.git")
        return [f"repo:{folder}"] if files.exists(name) else _inside_folder(folder)
    if not storage.exists(place):
        return []
    if reader == "repo":
        raise UserError(f"inputs='repo:{place}'", "is not a folder", "give a source tree")
    if format_of(place) is None:
        raise UserError(f"inputs={place!r}", "has an unknown format",
                        f"give files of {', '.join(FORMATS)}")
    if not storage.is_remote(place) and not os.path.isfile(place):
        raise UserError(f"inputs={place!r}", "is not a regular file", "give a file or folder")
    return [place]


def _inside_folder(folder: str) -> list[str]:
    files = storage.list_files(folder)
    kinds = {name: format_of(name) for name in files}
    unknown = Counter(os.path.splitext(name)[1] or "no suffix"
                      for name, kind in kinds.items() if kind is None)
    if unknown:
        log(f"inputs: {unknown.total()} files of unknown format below {folder} are ignored "
            f"({', '.join(f'{suffix} {count}' for suffix, count in unknown.most_common(5))})")
    archives = [storage.join(folder, name) for name in files if _suffix(name, ARCHIVES)]
    has_documents = any(_suffix(name, DOCUMENTS) for name in files)
    return archives + [folder] * has_documents


def _suffix(path: str, suffixes) -> str | None:
    """The longest known suffix of a path if it is one of `suffixes`, else None."""
    name = path.lower().partition("?")[0] if storage.is_remote(path) else path.lower()
    longest = max((suffix for suffix in FORMATS if name.endswith(suffix)), key=len, default=None)
    return longest if longest in suffixes else None
