"""Inputs of `config.curate.inputs`, and their division into units.

An input is a file, a folder, a glob or a URL (``s3://``, ``gs://``, ``hf://``, ``https://``). Its
format is determined by the suffix, in upper or lower case. A prefix gives the kind of documents
where needed:

    book:PATH    the documents are books
    paper:PATH   the documents are papers
    repo:PATH    the folder is a source tree (also without prefix if it contains `.git`)

``@PATH`` names a file that lists inputs, one a line, without a meaning of commas; empty lines and
those that begin with ``#`` are passed over, and relative paths start where the command runs. Inputs
are separated by commas; a comma in a name is written ``\\,``, or as it is if the name exists.

A folder of many small documents is one input; through a glob each document is one. In a folder,
hidden files are read, and links are followed; a folder to which several paths lead is read once.
A unit depends on the input and the unit size alone, never on the number of workers.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import sys
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import xxhash

from core.artifacts import digest
from core.errors import UserError
from data.readers import storage

PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".lz4")
# suffix: kind. Documents are read whole, one per file; a unit of a folder has many.
ROWS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv"}
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow"}
PAGES = {".txt": "text", ".rst": "text", ".md": "markdown", ".markdown": "markdown",
         ".html": "html", ".htm": "html", ".xhtml": "html", ".tex": "latex"}


def _packed(suffixes: Mapping[str, str],
            packings: Sequence[str] = PACKINGS) -> dict[str, str]:
    """Suffixes with their kinds, plain and compressed."""
    return {suffix + packing: kind for suffix, kind in suffixes.items()
            for packing in ("", *packings)}


ARCHIVES = (_packed({".warc": "warc", ".wet": "warc", ".wat": "warc"}, (".gz", ".zst"))
            | _packed({".arc": "arc", ".xml": "wiki"} | ROWS) | TABLES)
DOCUMENTS = _packed(PAGES)
FORMATS = ARCHIVES | DOCUMENTS
KNOWN = (f".warc, .wet, .wat, .arc, .xml, {', '.join((*ROWS, *TABLES, *PAGES))} "
         f"(most of them also with {', '.join(PACKINGS)})")
SPLITTABLE = (".warc", ".warc.gz", ".wet", ".wet.gz", ".wat", ".wat.gz", ".jsonl", ".ndjson",
              ".json", ".parquet")
UNKNOWN_BYTES = sys.maxsize     # the end of a file whose size its server does not report
READERS = {"book": "books", "paper": "papers", "repo": "code"}      # word: domain
_READER = re.compile(rf"({'|'.join(READERS)}):(?!//)")
MAX_EXAMPLES = 5
MAX_NAME_PARTS = 16     # that the commas of a name may divide it into


@dataclasses.dataclass(frozen=True, order=True)
class Unit:
    """A range of one input: bytes of a file, or files of a folder by number."""

    path: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Files in the folders and globs of the inputs that are not read, for one reason."""

    reason: str
    suffix: str
    files: int
    bytes: int
    examples: tuple[str, ...]


class Inputs(NamedTuple):
    """What `search` finds: inputs, sorted and distinct, and what is not read."""

    paths: list[str]
    left_out: list[LeftOut]


def split_reader(path: str) -> tuple[str | None, str]:
    """The prefix before the colon, if any, and the path without it."""
    match = _READER.match(path)
    return (match[1], path[match.end():]) if match else (None, path)


def format_of(path: str) -> str | None:
    """A file's format by its longest known suffix; None when it is unknown."""
    suffix = _suffix(path, FORMATS)
    return FORMATS[suffix] if suffix else None


def find_inputs(patterns: str) -> list[str]:
    """The inputs that `search` finds."""
    return search(patterns).paths


def search(patterns: str) -> Inputs:
    """Inputs of comma-separated files, folders, globs, URLs and lists of them.

    A folder is expanded to the archives below it, and to itself (with a final ``/``) when it also
    contains single documents.

    Raises:
        UserError: a pattern matches nothing, names a file of an unknown format, cannot be looked
            up, or needs a package that is not installed.
    """
    selected, unread = set(), {}
    for pattern in split_patterns(patterns):
        reader, place = split_reader(pattern)
        unknown: dict[str, tuple[str, int]] = {}
        try:
            matches = _expand(place)
            if matches != [place]:      # of a glob, as of a folder, what is known is read
                unknown |= {match: ("unknown format", storage.size_bytes(match) or 0)
                            for match in matches if _is_unknown(match)}
            inputs = [path for match in matches if match not in unknown
                      for path in _inside(match, reader, unknown)]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"inputs={pattern!r}", f"cannot be looked up ({reason})",
                            "give what this machine may read, or try again later") from None
        if not inputs:
            found = ", ".join(f"{one.suffix} {one.files}" for one in _group(unknown))
            raise UserError(f"inputs={pattern!r}", "matches no input file" + (
                f", but others ({found})" if found else ""),
                f"give files or folders of {KNOWN}; write \\, for a comma in a name")
        unread |= unknown
        selected.update(f"{reader}:{path}" if reader else path for path in inputs)
    if not selected:
        raise UserError(f"inputs={patterns!r}", "names no input", "give a file, folder or glob")
    folders = tuple(path for path in selected if is_folder(path))
    return Inputs(sorted(path for path in selected if not _is_held(path, folders)),
                  _group(unread))


def split_patterns(patterns: str) -> list[str]:
    """The patterns of `config.curate.inputs`, those of lists among them.

    Raises:
        UserError: a list cannot be read.
    """
    parts = [part.replace("\\,", ",") for part in re.split(r"(?<!\\),", patterns)]
    names = []
    while parts:
        whole = 1       # parts of a name that holds commas
        if not _names_file(parts[0]):
            whole = next((number for number in range(2, min(len(parts), MAX_NAME_PARTS) + 1)
                          if _names_file(",".join(parts[:number]))), 1)
        names.append(",".join(parts[:whole]).strip())
        parts = parts[whole:]
    return [pattern for name in names if name for pattern in (
        _read_list(name) if name.startswith("@") else [name])]


def _names_file(part: str) -> bool:
    place = split_reader(part.strip())[1]
    return bool(place) and not storage.is_remote(place) and os.path.exists(place)


def _read_list(name: str) -> list[str]:
    try:
        content = storage.read_whole(name[1:])
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"inputs={name!r}", f"the list cannot be read ({reason})",
                        "give a file with one input a line") from None
    if content is None:
        raise UserError(f"inputs={name!r}", "the list is too large", "divide it")
    lines = os.fsdecode(content).lstrip("\ufeff").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


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


def content_fingerprint(path: str, *, by_time: bool = False) -> str:
    """Fingerprint of an input's content.

    For a local file, xxh3-128 of its bytes as 32 hex digits; for a folder, of the names and
    fingerprints of its files. For a URL, metadata of its storage: a checksum (`ETag=...`) or else
    the time of the last change, and the size.

    Args:
        by_time: takes time and size of local files too, without reading them, for trials.

    Raises:
        PassingError: a file cannot be read.
    """
    place = split_reader(path)[1]
    try:
        if not is_folder(path):
            return storage.fingerprint(place, by_time=by_time)
        state = xxhash.xxh3_128()
        for name in list_members(path):
            mark = storage.fingerprint(storage.join(place, name), by_time=by_time)
            state.update(f"{name}\n{mark}\n".encode("utf-8", "surrogateescape"))
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


def _is_unknown(match: str) -> bool:
    return format_of(match) is None and not storage.is_folder(match)


def _inside(place: str, reader: str | None, unread: dict[str, tuple[str, int]]) -> list[str]:
    """The inputs of a file or folder; adds what is not read to `unread`, with reason and size."""
    if storage.is_folder(place):
        folder = place.rstrip("/") + "/"
        if reader == "repo":
            return [folder]
        files, name = storage.locate(f"{folder}.git")
        return [f"repo:{folder}"] if files.exists(name) else _inside_folder(folder, unread)
    if not storage.exists(place):
        return []
    if reader == "repo":
        raise UserError(f"inputs='repo:{place}'", "is not a folder", "give a source tree")
    if format_of(place) is None:
        raise UserError(f"inputs={place!r}", "has an unknown format", f"give files of {KNOWN}")
    if not storage.is_remote(place) and not os.path.isfile(place):
        raise UserError(f"inputs={place!r}", "is not a regular file", "give a file or folder")
    return [place]


def _inside_folder(folder: str, unread: dict[str, tuple[str, int]]) -> list[str]:
    files, links = storage.walk(folder)
    unread |= {storage.join(folder, name): (reason, 0) for name, reason in links.items()}
    unread |= {storage.join(folder, name): ("unknown format", size)
               for name, size in files.items() if format_of(name) is None}
    archives = [storage.join(folder, name) for name in files if _suffix(name, ARCHIVES)]
    has_documents = any(_suffix(name, DOCUMENTS) for name in files)
    return archives + [folder] * has_documents


def _group(unread: Mapping[str, tuple[str, int]]) -> list[LeftOut]:
    """Files by reason and suffix, the most frequent first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path in sorted(unread):
        groups.setdefault((unread[path][0], _last_suffix(path)), []).append(path)
    found = [LeftOut(reason, suffix, len(paths), sum(unread[path][1] for path in paths),
                     tuple(paths[:MAX_EXAMPLES])) for (reason, suffix), paths in groups.items()]
    return sorted(found, key=lambda one: (-one.files, one.reason, one.suffix))


def _last_suffix(name: str) -> str:
    """The suffix of a file, before that of its compression too: ``.tar.gz``."""
    root, suffix = os.path.splitext(name.lower())
    return (os.path.splitext(root)[1] if suffix in PACKINGS else "") + suffix or "no suffix"


def _suffix(path: str, suffixes: Container[str]) -> str | None:
    """The longest known suffix of a path if it is one of `suffixes`, else None."""
    name = path.partition("?")[0] if storage.is_remote(path) else path
    parts = name.lower().rpartition("/")[2].rsplit(".", 2)
    longest = next((suffix for suffix in (f".{'.'.join(parts[1:])}", f".{parts[-1]}")
                    if suffix in FORMATS), None) if len(parts) > 1 else None
    return longest if longest in suffixes else None
