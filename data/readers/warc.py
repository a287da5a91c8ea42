"""WARC, WET and WAT archives, plain, gzip or zstd, read from any byte on.

A damaged or oversized record costs itself alone: reading goes on at the next record start. Where
that is, is told by the bytes (a gzip member that unpacks to ``WARC/``), so units need no index.
The one thing that this cannot tell apart is an archive stored whole inside a record of another,
and only when a unit begins in it or the outer record is damaged.
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
    read_capped,
    why,
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
OVERLAP_BYTES = 64      # a start that lies across two reads is found in the second


def read(unit: Unit) -> Iterator[Item]:
    """The records that begin in a unit; every record of the file comes out of one unit."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as file:
            yield from _read_file(file, name, unit)
    except (OSError, ValueError) as error:
        yield Corrupt(name, f"warc: {why(error)}")


def _read_file(file: BinaryIO, name: str, unit: Unit) -> Iterator[Item]:
    codec = storage.codec_of(file)
    if codec == "zstd" and unit.start:
        return
    offset = 0 if codec == "zstd" else _find_record(file, codec, unit.start, unit.stop)
    if offset != 0 and not unit.start:
        yield Corrupt(name, "warc: does not begin with a record")
    while offset is not None:
        end = yield from _read_from(file, name, codec, offset, unit.stop)
        # None: all is read; else the place of a record that broke off
        offset = None if end is None or codec == "zstd" else _find_record(
            file, codec, end + 1, unit.stop)


def _read_from(file: BinaryIO, name: str, codec: str | None, offset: int,
               stop: int) -> Iterator[Item]:
    """Reads records from one start on; returns where one was damaged, if reading broke off."""
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
                return offset       # what is left of the record need not even be unpacked
    except (OSError, ValueError) as error:
        # A record that cannot be parsed begins where its member does.
        failed = max(offset, stream.frame_start_position() or 0) if codec else offset
        if failed > offset or not isinstance(item, Corrupt):
            yield Corrupt(f"{name}@{failed}", f"warc: {why(error)}")
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
        return Corrupt(source, f"warc: record is {why(error)}")
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, "warc: record is too large")
    is_encoded = encodings or (http is not None and "Transfer-Encoding" in http)
    if not is_encoded and len(content) < record.content_length:
        return Corrupt(source, "warc: record is cut off")
    return RawRecord(source, content, content_type, headers.get(DOMAIN_FIELD),
                     headers.get("WARC-Record-ID"), record.http_charset)


def _decode(reader: WarcReader, encodings: str) -> WarcReader:
    """The body behind its content encodings; servers also write ``none`` or ``utf-8`` there."""
    for name in reversed(encodings.lower().split(",")):
        reader = DECODERS.get(name.strip(), lambda reader: reader)(reader)
    return reader


def _find_record(file: BinaryIO, codec: str | None, start: int, stop: int) -> int | None:
    """Where the first record at or after `start` begins; None when none does before `stop`."""
    position = start if codec or not start else start - OVERLAP_BYTES
    position = max(position, 0)
    while position < stop:
        file.seek(position)
        chunk = file.read(READ_BYTES + OVERLAP_BYTES)
        for offset in _candidates(chunk, codec, at_start=position == 0):
            found = position + offset
            if start <= found < stop and _is_start(file, codec, found):
                return found
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
    found = _find_record(file, "gzip", offset + 1, sys.maxsize)
    file.seek(position)
    return found is not None


def _is_start(file: BinaryIO, codec: str | None, offset: int) -> bool:
    """Whether a unit can begin here; leaves the file where it is.

    Some gzip members end within a record, or hold several. The text of a page may look like the
    beginning of a plain record, but its length does not lead to the next one.
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
    """Whether the file is complete from `offset`, where its last record begins, to its end."""
    if codec == "zstd":
        return True         # fastwarc tells
    if codec is None:
        file.seek(-4, 2)    # at least one record lies before it
        return file.read().replace(b"\r", b"").endswith(b"\n\n")
    file.seek(offset)
    member = zlib.decompressobj(31)
    left = b""
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
