"""WARC, WET and WAT archives, plain, gzip or zstd, read from any byte.

After a damaged or oversized record, reading continues at the next record start. It is found in the
bytes (a gzip member that unpacks to ``WARC/``), so units need no index. The records of an archive
that is stored inside a record are misread as top-level ones if a unit begins in it or the outer
record is damaged.
"""

from __future__ import annotations

import functools
import posixpath
import re
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.stream_io import BrotliReader, GzipReader, WarcReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from data.readers import storage
from data.readers.records import (
    MAX_RECORD_BYTES,
    READ_BYTES,
    Corrupt,
    Item,
    RawRecord,
    Skipped,
    failure_kind,
    read_capped,
)
from data.readers.units import Unit

DOMAIN_FIELD = "Heartwood-Domain"   # optional WARC field: the record's domain
TEXT_TYPES = ("text/", "application/xhtml", "application/xml", "application/json")
CONTENT_RECORDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion

DECODERS = {"gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader, "zstd": ZstdReader,
            "deflate": functools.partial(GzipReader, zlib=True)}

GZIP_START = b"\x1f\x8b\x08"
PLAIN_START = re.compile(rb"(?:\A|\r?\n\r?\n)(WARC/[01]\.\d+\r?\n)")
PLAIN_HEADER = re.compile(rb"WARC/[^\n]*\n(?:[^\r\n]+\r?\n)*?"
                          rb"(?i:content-length):[ \t]*(\d{1,18})\s*?\r?\n(?:[^\r\n]+\r?\n)*\r?\n")
HEAD_BYTES = 8192
OVERLAP_BYTES = 64      # overlap of successive reads, for a start on their border


def read(unit: Unit) -> Iterator[Item]:
    """The records that begin in a unit; every record of a file is read by exactly one unit."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as file:
            yield from _read_file(file, name, unit)
    except (OSError, ValueError) as error:
        yield Corrupt(name, f"warc: {failure_kind(error)}")


def _read_file(file: BinaryIO, name: str, unit: Unit) -> Iterator[Item]:
    codec = storage.codec_of(file)
    if codec == "zstd" and unit.start:
        return
    offset = 0 if codec == "zstd" else _find_record(file, codec, unit.start, unit.stop)
    if offset != 0 and not unit.start:
        yield (Skipped(name, "warc: file is empty") if storage.is_empty(unit.path)
               else Corrupt(name, "warc: does not begin with a record"))
    while offset is not None:
        end = yield from _read_from(file, name, codec, offset, unit.stop)
        # None at the end, else the offset of a damaged record
        offset = None if end is None or codec == "zstd" else _find_record(
            file, codec, end + 1, unit.stop)


def _read_from(file: BinaryIO, name: str, codec: str | None, offset: int,
               stop: int) -> Iterator[Item]:
    """Reads records from an offset; returns the offset of a damaged record at which it stopped."""
    file.seek(offset)
    stream = {"gzip": GzipReader, "zstd": ZstdReader}.get(codec, lambda file: file)(file)
    item = None
    try:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.any_type,
                                      auto_decode="transfer", fsspec_args=False):
            begins = stream.frame_start_position() if codec else record.stream_pos
            if begins >= stop and _is_start(file, codec, begins):
                return None
            offset, item = begins, _read_record(record, f"{name}@{begins}")
            yield item
            if isinstance(item, Corrupt) and codec == "gzip" and _has_start_after(file, offset):
                return offset       # saves decompressing the rest of the record
    except (OSError, ValueError) as error:
        # A record that cannot be parsed begins with its gzip member.
        failed = max(offset, stream.frame_start_position() or 0) if codec else offset
        if failed > offset or not isinstance(item, Corrupt):
            yield Corrupt(f"{name}@{failed}", f"warc: {failure_kind(error)}")
        return failed
    if not isinstance(item, Corrupt) and not _ends_whole(file, codec, offset):
        yield Corrupt(f"{name}@{offset}", "warc: file is cut off")
    return None


def _read_record(record: WarcRecord, place: str) -> Item:
    headers, http = record.headers, record.http_headers
    source = (headers.get("WARC-Target-URI") or place).strip("<>")
    if not record.record_type & CONTENT_RECORDS:
        is_wat = record.record_type == WarcRecordType.metadata and "json" in (
            headers.get("Content-Type") or "")
        return Skipped(source, "wat: metadata only" if is_wat
                       else f"warc: {record.record_type} record")
    if http is not None and http.status_code != 200:
        return Skipped(source, "warc: http status is not 200")
    declared = record.http_content_type if http is not None else headers.get("Content-Type")
    content_type = (declared or "text/html").partition(";")[0].strip().lower()
    if not content_type.startswith(TEXT_TYPES) or content_type == "text/dns":
        return Skipped(source, "warc: content is not text")
    try:
        encodings = (http.get("Content-Encoding") or "") if http is not None else ""
        content = read_capped(_decode(record.reader, encodings))
    except (OSError, ValueError) as error:
        return Corrupt(source, f"warc: record is {failure_kind(error)}")
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, "warc: record is too large")
    is_encoded = encodings or (http is not None and "Transfer-Encoding" in http)
    if not is_encoded and len(content) < record.content_length:
        return Corrupt(source, "warc: record is cut off")
    return RawRecord(source, content, content_type, headers.get(DOMAIN_FIELD),
                     headers.get("WARC-Record-ID"), record.http_charset,
                     {"date": headers.get("WARC-Date")})


def _decode(reader: WarcReader, encodings: str) -> WarcReader:
    """Decodes the body; unknown content encodings (``none``, ``utf-8``) are ignored."""
    for name in reversed(encodings.lower().split(",")):
        reader = DECODERS.get(name.strip(), lambda reader: reader)(reader)
    return reader


def _find_record(file: BinaryIO, codec: str | None, start: int, stop: int) -> int | None:
    """Offset of the first record that begins in [start, stop), or None."""
    position = start if codec or not start else start - OVERLAP_BYTES
    position = max(position, 0)
    while position < stop:
        file.seek(position)
        chunk = file.read(READ_BYTES + OVERLAP_BYTES)
        for offset in _candidates(chunk, codec, at_start=position == 0):
            record_start = position + offset
            if start <= record_start < stop and _is_start(file, codec, record_start):
                return record_start
        if len(chunk) <= READ_BYTES:
            return None
        position += READ_BYTES
    return None


def _candidates(chunk: bytes, codec: str | None, at_start: bool) -> Iterator[int]:
    if codec == "gzip":
        offset = chunk.find(GZIP_START)
        while offset >= 0:
            yield offset
            offset = chunk.find(GZIP_START, offset + 1)
        return
    for match in PLAIN_START.finditer(chunk):
        if match.start(1) or at_start:
            yield match.start(1)


def _has_start_after(file: BinaryIO, offset: int) -> bool:
    position = file.tell()
    record_start = _find_record(file, "gzip", offset + 1, sys.maxsize)
    file.seek(position)
    return record_start is not None


def _is_start(file: BinaryIO, codec: str | None, offset: int) -> bool:
    """Whether a record begins at `offset`; does not move the file position.

    A gzip member may contain several records, or a part of one. The text of a page may resemble
    the header of a plain record, but its length does not lead to the next record.
    """
    position = file.tell()
    file.seek(offset)
    head = file.read(HEAD_BYTES)
    if codec == "gzip":
        try:
            is_start = zlib.decompressobj(31).decompress(head, 5) == b"WARC/"
        except zlib.error:
            is_start = False
    else:
        header = PLAIN_HEADER.match(head)
        file.seek(offset + header.end() + int(header[1]) if header else offset)
        is_start = bool(header) and b"WARC/".startswith(file.read(9).lstrip(b"\r\n")[:5])
    file.seek(position)
    return is_start


def _ends_whole(file: BinaryIO, codec: str | None, offset: int) -> bool:
    """Whether the file is complete from `offset`, the start of its last record, to its end."""
    if codec == "zstd":
        return True         # fastwarc raises otherwise
    if codec is None:
        file.seek(-4, 2)    # the file has at least one record
        return file.read().replace(b"\r", b"").endswith(b"\n\n")
    file.seek(offset)
    member = zlib.decompressobj(31)
    rest = b""
    while rest := rest or file.read(READ_BYTES):
        try:
            while rest and not member.eof:
                member.decompress(rest, READ_BYTES)
                rest = member.unconsumed_tail or member.unused_data
        except zlib.error:
            return False
        if member.eof and rest:
            member = zlib.decompressobj(31)
    return member.eof
