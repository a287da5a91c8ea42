"""Raw inputs: WARC, JSONL, Parquet, text, Markdown and HTML files, read in units.

A unit is a range of one file that depends on the file and the unit size alone, never on the
number of workers. Damage is data: what cannot be read comes out as `Corrupt`, with its reason.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from core.errors import UserError

MAX_RECORD_BYTES = 64 << 20     # after decompression: a bomb costs one record, not the process
READ_BYTES = 1 << 20
DOMAIN_FIELD = "Heartwood-Domain"   # optional WARC field: the record's domain
CONTENT_RECORDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
TEXT_TYPES = ("text/", "application/xhtml", "application/xml", "application/json")

FORMATS = {
    ".warc": "warc", ".warc.gz": "warc", ".wet.gz": "warc", ".wat.gz": "warc",
    ".arc": "arc", ".arc.gz": "arc", ".jsonl": "jsonl", ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl", ".parquet": "parquet", ".txt": "text/plain", ".md": "text/markdown",
    ".html": "text/html", ".htm": "text/html",
}


@dataclasses.dataclass(frozen=True, order=True)
class Unit:
    """A range of one input file: bytes, or row groups of a Parquet file."""

    path: Path
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One page or text as it was found."""

    source: str                     # URL, or file path with row or byte offset
    content: bytes | str            # bytes while the encoding is still unknown
    content_type: str = "text/plain"
    domain: str | None = None       # None: the input does not say
    id: str | None = None


@dataclasses.dataclass(frozen=True)
class Corrupt:
    """A record, or the rest of a file, that could not be read."""

    source: str
    reason: str                     # a few words without numbers or paths, fit for counting


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A sound record that holds no page: an error status, an image."""

    source: str
    reason: str


Item = RawRecord | Corrupt | Skipped


def find_inputs(patterns: str) -> list[Path]:
    """Files behind comma-separated globs, files and folders, sorted and without repeats.

    A folder stands for all files below it that have a known suffix.

    Raises:
        UserError: a pattern matches nothing, or names a file of an unknown format.
    """
    found: set[Path] = set()
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
        files = [path for path in matches if path.is_file()]
        inside = [path for folder in matches if folder.is_dir() for path in folder.rglob("*")
                  if path.is_file() and _format(path)]
        if not files and not inside:
            raise UserError(f"inputs={pattern!r}", "matches no input file",
                            f"give files or folders of {', '.join(FORMATS)}")
        for path in files:
            if _format(path) is None:
                raise UserError(f"inputs={str(path)!r}", "has an unknown format",
                                f"give files of {', '.join(FORMATS)}")
        found.update(files, inside)
    if not found:
        raise UserError(f"inputs={patterns!r}", "names no input", "give a file, folder or glob")
    return sorted(found)


def plan(paths: Sequence[Path], unit_bytes: int) -> list[Unit]:
    """Splits files into units of about `unit_bytes` each.

    Plain JSONL is cut at line ends and Parquet at row groups; a compressed file is one unit.
    """
    units = []
    for path in paths:
        kind = _format(path)
        if kind == "jsonl" and path.suffix == ".jsonl":
            cuts = _line_cuts(path, unit_bytes)
        elif kind == "parquet":
            cuts = _row_group_cuts(path, unit_bytes)
        else:
            cuts = [0, path.stat().st_size]
        units += [Unit(path, start, stop) for start, stop in itertools.pairwise(cuts)]
    return units


def read(unit: Unit) -> Iterator[Item]:
    """Reads a unit's records in file order; never raises for damaged content."""
    readers: dict[str, Callable[[Unit], Iterator[Item]]] = {
        "warc": _read_warc, "arc": _refuse_arc, "jsonl": _read_jsonl, "parquet": _read_parquet}
    yield from readers.get(_format(unit.path) or "", _read_file)(unit)


def content_fingerprint(path: Path) -> str:
    """xxh3-128 of a file's bytes, as 32 hex digits."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _format(path: Path) -> str | None:
    name = path.name.lower()
    fits = [suffix for suffix in FORMATS if name.endswith(suffix)]
    return FORMATS[max(fits, key=len)] if fits else None


# --- WARC ---------------------------------------------------------------------------------------

def _read_warc(unit: Unit) -> Iterator[Item]:
    name, last_offset, num_records, item = unit.path.name, 0, 0, None
    try:
        for record in ArchiveIterator(str(unit.path), record_types=WarcRecordType.any_type,
                                      auto_decode="all", fsspec_args=False):
            last_offset = record.stream_pos
            num_records += 1
            if record.record_type & CONTENT_RECORDS:
                yield (item := _read_warc_record(record, f"{name}@{last_offset}"))
    except (OSError, ValueError) as error:
        yield Corrupt(f"{name}@{last_offset}", f"warc: {_reason(error)}")
        return
    if not num_records and unit.stop > unit.start:
        yield Corrupt(name, "warc: holds no record")
    elif isinstance(item, Corrupt) or unit.path.suffix != ".gz":
        return
    elif not _ends_whole(unit.path, last_offset):
        yield Corrupt(f"{name}@{last_offset}", "warc: file is cut off")


def _read_warc_record(record: WarcRecord, place: str) -> Item:
    headers, http = record.headers, record.http_headers
    source = (headers.get("WARC-Target-URI") or place).strip("<>")
    if http is not None and http.status_code != 200:
        return Skipped(source, "warc: http status is not 200")
    encoded = http is not None and ("Content-Encoding" in http or "Transfer-Encoding" in http)
    content_type = record.http_content_type if http is not None else headers.get("Content-Type")
    content_type = (content_type or "text/html").partition(";")[0].strip().lower()
    if not content_type.startswith(TEXT_TYPES):
        return Skipped(source, "warc: content is not text")
    try:
        content = record.reader.read(MAX_RECORD_BYTES + 1)
    except (OSError, ValueError) as error:
        return Corrupt(source, f"warc: {_reason(error)}")
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, "warc: record is too large")
    if not encoded and len(content) < record.content_length:
        return Corrupt(source, "warc: record is cut off")
    return RawRecord(source, content, content_type, headers.get(DOMAIN_FIELD),
                     headers.get("WARC-Record-ID"))


def _ends_whole(path: Path, last_offset: int) -> bool:
    """Whether the gzip members from `last_offset`, the last record's, on are complete."""
    with open(path, "rb") as file:
        file.seek(last_offset)
        is_member = file.read(2) == b"\x1f\x8b"
        file.seek(last_offset if is_member else 0)     # else the file is a single member
        member, left = zlib.decompressobj(31), b""
        while left := left or file.read(READ_BYTES):
            try:
                while left and not member.eof:
                    member.decompress(left, READ_BYTES)
                    left = member.unconsumed_tail or member.unused_data
            except zlib.error:
                return False
            if member.eof and left:
                member = zlib.decompressobj(31)
        return member.eof


def _refuse_arc(unit: Unit) -> Iterator[Item]:
    yield Corrupt(unit.path.name, "arc: not supported, convert it with `warcio recompress`")


# --- JSONL --------------------------------------------------------------------------------------

def _line_cuts(path: Path, unit_bytes: int) -> list[int]:
    size, cuts = path.stat().st_size, [0]
    with open(path, "rb") as file:
        while cuts[-1] + unit_bytes < size:
            file.seek(cuts[-1] + unit_bytes)
            file.readline()
            cuts.append(file.tell())
    return cuts if cuts[-1] == size else [*cuts, size]


def _read_jsonl(unit: Unit) -> Iterator[Item]:
    name, row = unit.path.name, unit.start
    try:
        with _open(unit) as file:
            for row, line in enumerate(_lines(file)):
                place = f"{name}@{unit.start}+{row}"
                if len(line) > MAX_RECORD_BYTES:
                    yield Corrupt(place, "jsonl: line is too long")
                elif line.strip():
                    yield _parse_line(line, place)
    except (OSError, EOFError, pa.ArrowException) as error:
        yield Corrupt(f"{name}@{row}", f"jsonl: {_reason(error)}")


def _open(unit: Unit) -> BinaryIO:
    """The unit's bytes, decompressed."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(unit.path.suffix)
    if codec:
        return pa.CompressedInputStream(pa.OSFile(str(unit.path)), codec)
    return pa.OSFile(str(unit.path)).get_stream(unit.start, unit.stop - unit.start)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; of a line beyond the cap only its first part, once."""
    held, overlong = b"", False
    while chunk := file.read(READ_BYTES):
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            if not overlong:
                yield line
            overlong = False
        if len(held) > MAX_RECORD_BYTES:
            if not overlong:
                yield held
            held, overlong = b"", True
    if held and not overlong:
        yield held


def _parse_line(line: bytes, place: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return Corrupt(place, "jsonl: line is not JSON")
    if not isinstance(fields, dict):
        return Corrupt(place, "jsonl: line is not an object")
    return _from_fields(fields, place, "jsonl")


def _from_fields(fields: dict[str, Any], place: str, kind: str) -> Item:
    """A record of the fields text (required), source or url, domain and id."""
    text = fields.get("text")
    if not isinstance(text, str):
        return Corrupt(place, f"{kind}: no field `text`")
    source = fields.get("source") or fields.get("url") or place
    domain, id_ = fields.get("domain"), fields.get("id")
    return RawRecord(str(source), text, "text/plain", None if domain is None else str(domain),
                     None if id_ is None else str(id_))


# --- Parquet ------------------------------------------------------------------------------------

def _row_group_cuts(path: Path, unit_bytes: int) -> list[int]:
    """Row groups at which units begin; a file that cannot be opened is one unit for `read`."""
    try:
        metadata = pq.ParquetFile(path).metadata
    except (pa.ArrowException, OSError):
        return [0, 1]
    cuts, held = [0], 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).total_byte_size
        if held and held + size > unit_bytes:
            cuts.append(group)
            held = 0
        held += size
    return [*cuts, metadata.num_row_groups] if metadata.num_row_groups else cuts


def _read_parquet(unit: Unit) -> Iterator[Item]:
    name = unit.path.name
    try:
        file = pq.ParquetFile(unit.path)
        columns = [column for column in ("text", "source", "url", "domain", "id")
                   if column in file.schema_arrow.names]
    except (pa.ArrowException, OSError) as error:
        yield Corrupt(name, f"parquet: {_reason(error)}")
        return
    if "text" not in columns:
        yield Corrupt(name, "parquet: no field `text`")
        return
    for group in range(unit.start, unit.stop):
        try:
            row = 0
            for batch in file.iter_batches(1024, row_groups=[group], columns=columns):
                for fields in batch.to_pylist():
                    yield _from_fields(fields, f"{name}@{group}+{row}", "parquet")
                    row += 1
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Corrupt(f"{name}@{group}", f"parquet: {_reason(error)}")


# --- single files -------------------------------------------------------------------------------

def _read_file(unit: Unit) -> Iterator[Item]:
    if unit.stop > MAX_RECORD_BYTES:
        yield Corrupt(unit.path.name, "file: record is too large")
        return
    try:
        content = unit.path.read_bytes()
    except OSError as error:
        yield Corrupt(unit.path.name, f"file: {_reason(error)}")
        return
    yield RawRecord(unit.path.name, content, _format(unit.path) or "text/plain")


def _reason(error: Exception) -> str:
    """The first words of an error message, without the numbers that would split its count."""
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return " ".join(word for word in message.split()[:8] if not any(c.isdigit() for c in word))
