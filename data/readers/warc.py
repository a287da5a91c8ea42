"""WARC, WET and WAT archives, plain, gzip or zstd, read from any byte.

After a damaged or oversized record, reading continues at the next record start. It is found in the
bytes (a gzip member that unpacks to ``WARC/``), so units need no index. The records of an archive
that is stored inside a record are misread as top-level ones if a unit begins in it or the outer
record is damaged. Headers whose lines end in LF alone (ClueWeb09) are read with warcio.
"""

from __future__ import annotations

import dataclasses
import io
import posixpath
import re
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from fastwarc.stream_io import GzipReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from core.progress import log
from data.readers import arc, storage
from data.readers.pages import DOMAIN_FIELD, Response, may_be_text, read_page
from data.readers.records import CUT_OFF, READ_BYTES, Corrupt, Item, RawRecord, Skipped, corrupt
from data.readers.units import Unit

CONTENT_RECORDS = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion

GZIP_START = b"\x1f\x8b\x08"
PLAIN_START = re.compile(rb"WARC/[01]\.\d+\r?\n")
LF_START = re.compile(rb"WARC/[01]\.\d+\n")
LF = re.compile(rb"(?<!\r)\n")
PLAIN_HEADER = re.compile(rb"WARC/[^\n]*\n(?=(?:[^\r\n]+\r?\n)*?(?i:warc-type):)(?:[^\r\n]+\r?\n)*?"
                          rb"(?i:content-length):[ \t]*(\d{1,18})\s*?\r?\n(?:[^\r\n]+\r?\n)*\r?\n")
HEAD_BYTES = 8192
OVERLAP_BYTES = 64      # overlap of successive reads, for a start on their border
Failure = tuple[int, Corrupt | None]    # where reading failed, and the item, if it is not yielded


def read(unit: Unit) -> Iterator[Item]:
    """The records that begin in a unit; every record of a file is read by exactly one unit."""
    name = posixpath.basename(unit.path)
    try:
        with storage.open_binary(unit.path) as file:
            yield from _read_file(file, name, unit)
    except (OSError, ValueError) as error:
        yield corrupt(name, "warc", error)


def _read_file(file: BinaryIO, name: str, unit: Unit) -> Iterator[Item]:
    codec = _codec_of(file)
    if codec == "zstd" and unit.start:
        return
    offset = 0 if codec == "zstd" else _find_record(file, codec, unit.start, unit.stop)
    if offset != 0 and not unit.start:
        yield (Skipped(name, "warc: file is empty") if storage.is_empty(unit.path)
               else Corrupt(name, "warc: does not begin with a record",
                            _find_next(file, codec, 0)))
    while offset is not None:
        failure = yield from _read_from(file, name, codec, offset, unit.stop)
        if failure is None:
            return
        failed, item = failure
        following = _find_next(file, codec, failed + 1)
        if item is not None:
            yield _weigh(item, following - failed, file.seek(0, io.SEEK_END), following)
        offset = _find_record(file, codec, following, unit.stop)


def _weigh(item: Corrupt, num_bytes: int, size: int, following: int) -> Corrupt:
    """The item with the bytes up to the record that follows; of a cut file as many as it has."""
    if not item.reason.endswith(CUT_OFF):
        return dataclasses.replace(item, num_bytes=max(num_bytes, 1))
    if following < size:    # a length was wrong
        return Corrupt(item.source, "warc: damaged", max(num_bytes, 1))
    return dataclasses.replace(item, num_bytes=size)


def _codec_of(file: BinaryIO) -> str | None:
    """The compression of an archive, which may begin with something else than a record."""
    codec = storage.codec_of(file)
    is_plain = codec is None and not file.read(HEAD_BYTES).startswith(b"WARC/")
    if is_plain and _find_record(file, None, 0, READ_BYTES) is None and (
            _find_record(file, "gzip", 0, READ_BYTES) is not None):
        return "gzip"
    return codec


def _find_next(file: BinaryIO, codec: str | None, start: int) -> int:
    """Offset of the first record from `start` on, in any unit; the file's size without one."""
    found = None if codec == "zstd" else _find_record(file, codec, start, sys.maxsize)
    return file.seek(0, io.SEEK_END) if found is None else found


def _read_from(file: BinaryIO, name: str, codec: str | None, offset: int,
               stop: int) -> Iterator[Item]:
    """Reads records from an offset; returns where and why it stopped before the unit's end."""
    if _has_lf(file, codec, offset):
        return (yield from _read_lf(file, name, codec, offset, stop))
    file.seek(offset)
    stream = {"gzip": GzipReader, "zstd": ZstdReader}.get(codec, lambda file: file)(file)
    item = None     # yielded when what follows it shows that its length was right
    try:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.any_type,
                                      fsspec_args=False):
            begins = stream.frame_start_position() if codec else record.stream_pos
            if item is not None:
                yield item
                item = None
            if "\n" in (record.headers.get("WARC-Type") or "\n"):
                return _after_unknown(file, name, codec, offset, begins)
            if begins >= stop and _is_start(file, codec, begins):
                return None
            offset, item = begins, _read_record(record, f"{name}@{begins}")
            if isinstance(item, Corrupt) and _is_apart(file, codec, item, offset):
                return offset, item
    except (OSError, ValueError) as error:
        # A record that cannot be parsed begins with its gzip member, or behind the last one.
        failed = (max(offset, stream.frame_start_position() or 0) if codec
                  else _end_of(file, offset))
        damage = corrupt(f"{name}@{failed}", "warc", error)
        if _is_cut(file, codec, failed):
            damage = dataclasses.replace(damage, reason=f"warc: {CUT_OFF}")
        following = None if item is None else _find_record(file, codec, offset + 1, failed)
        if following is not None:
            item = _shorten(file, codec, item, offset, following, failed)
        if item is not None:
            yield item
        if following is not None or storage.is_padding(file, failed):
            return following and (following - 1, None)
        is_counted = failed == offset and isinstance(item, Corrupt)
        return failed, None if is_counted else damage
    if item is None:
        return None
    is_cut = _is_cut(file, codec, offset)
    if is_cut is False and isinstance(item, Corrupt) and item.reason.endswith("cut off"):
        return offset, item     # its length was wrong
    if is_cut is False or isinstance(item, RawRecord):
        yield item      # else a record of which only a part of the header may be there
    if is_cut is False:
        return None
    return offset, Corrupt(f"{name}@{offset}", f"warc: {CUT_OFF if is_cut else 'damaged'}")


def _after_unknown(file: BinaryIO, name: str, codec: str | None, offset: int,
                   begins: int) -> Failure:
    """Where to go on after what fastwarc took for the header of a record, up to the file's end.

    Args:
        offset: of the record before.
    """
    if codec == "gzip":
        begins = _find_next(file, codec, offset + 1)
    if _has_lf(file, codec, begins):
        return begins - 1, None
    reason = CUT_OFF if _is_cut(file, codec, begins) else "damaged"
    return begins, Corrupt(f"{name}@{begins}", f"warc: {reason}")


def _shorten(file: BinaryIO, codec: str | None, item: Item, offset: int, following: int,
             stop: int) -> Item:
    """A record whose length is wrong, since others follow before its `stop`."""
    file.seek(following)
    swallowed = file.read(stop - following)
    if codec is None and isinstance(item, RawRecord) and item.content.endswith(swallowed):
        content = item.content[:-len(swallowed)].rstrip(b"\r\n")
        return dataclasses.replace(item, content=content)
    return Corrupt(item.source, "warc: record has a wrong length", following - offset)


def _is_apart(file: BinaryIO, codec: str | None, item: Corrupt, offset: int) -> bool:
    """Whether reading goes on at the next record start rather than behind a damaged record.

    With gzip that saves decompressing its rest; the length of one that is cut off was wrong.
    """
    if codec == "zstd" or not (codec or item.reason.endswith("cut off")):
        return False
    position = file.tell()
    found = _find_record(file, codec, offset + 1, sys.maxsize)
    file.seek(position)
    return found is not None


def _read_lf(file: BinaryIO, name: str, codec: str | None, offset: int,
             stop: int) -> Iterator[Item]:
    """Reads records whose header lines end in LF alone; returns what `_read_from` does."""
    log(f"{name}: header lines end in LF alone: it is read with warcio, which is slower")
    is_one = codec == "zstd" or (
        codec == "gzip" and _find_record(file, codec, offset + 1, sys.maxsize) is None)
    file.seek(offset)
    # warcio reads gzip by members, one per record.
    stream = storage.decompress(file, codec) if is_one else file
    failed = offset
    try:
        for record, place in arc.iterate(stream):
            failed = offset if is_one else place
            if failed >= stop:
                return None
            length = record.rec_headers.get_header("Content-Length") or ""
            if not length.strip().isdecimal():      # else warcio takes the rest of the file for it
                raise arc.Stopped(place)
            item = arc.read_record(record, f"{name}@{place}", "warc")
            if isinstance(item, Corrupt) and item.reason.endswith("cut off"):
                return failed, item
            yield item
        return None
    except arc.Stopped as stopped:
        failed = offset if is_one else max(stopped.place, offset)
        return failed, Corrupt(f"{name}@{failed}", "warc: damaged")
    except (OSError, EOFError, ValueError) as error:
        return failed, corrupt(f"{name}@{failed}", "warc", error)


def _has_lf(file: BinaryIO, codec: str | None, offset: int) -> bool:
    """Whether header lines of the record at `offset` end in LF alone; keeps the position."""
    position = file.tell()
    file.seek(offset)
    head = file.read(HEAD_BYTES)
    file.seek(position)
    try:
        if codec == "gzip":
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        elif codec == "zstd":
            head = ZstdReader(io.BytesIO(head)).read(HEAD_BYTES)
    except (zlib.error, OSError):
        return False
    header = PLAIN_HEADER.match(head)
    return bool(LF.search(header[0]) if header else LF_START.match(head))


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
    response = Response(
        source, declared or "", headers.get("WARC-Identified-Payload-Type") or "",
        http.get("Content-Encoding") or "" if http is not None else "",
        http.get("Transfer-Encoding") or "" if http is not None else "",
        record.http_charset, headers.get(DOMAIN_FIELD), headers.get("WARC-Record-ID"),
        record.record_type == WarcRecordType.conversion, headers.get("WARC-Date"))
    if not may_be_text(response):
        return Skipped(source, "warc: content is not text")
    try:
        return read_page(response, record.reader, "warc", record.content_length)
    except (OSError, ValueError) as error:
        return corrupt(source, "warc: record is", error)


def _find_record(file: BinaryIO, codec: str | None, start: int, stop: int) -> int | None:
    """Offset of the first record that begins in [start, stop), or None."""
    position = start if codec or not start else start - OVERLAP_BYTES
    position = max(position, 0)
    while position < stop:
        file.seek(position)
        chunk = file.read(READ_BYTES + OVERLAP_BYTES)
        for offset in _candidates(chunk, codec):
            record_start = position + offset
            if start <= record_start < stop and _is_start(file, codec, record_start):
                return record_start
        if len(chunk) <= READ_BYTES:
            return None
        position += READ_BYTES
    return None


def _candidates(chunk: bytes, codec: str | None) -> Iterator[int]:
    if codec == "gzip":
        offset = chunk.find(GZIP_START)
        while offset >= 0:
            yield offset
            offset = chunk.find(GZIP_START, offset + 1)
        return
    for match in PLAIN_START.finditer(chunk):
        yield match.start()


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
        is_start = bool(header) and (
            not offset or b"WARC/".startswith(file.read(9).lstrip(b"\r\n")[:5]))
    file.seek(position)
    return is_start


def _end_of(file: BinaryIO, offset: int) -> int:
    """Where the plain record at `offset` ends; `offset` if its header cannot be read."""
    file.seek(offset)
    header = PLAIN_HEADER.match(file.read(HEAD_BYTES))
    return offset + header.end() + int(header[1]) if header else offset


def _is_cut(file: BinaryIO, codec: str | None, offset: int) -> bool | None:
    """Whether the file ends before the record at `offset` does; None if it is damaged there.

    With gzip all members from `offset` on are looked at.
    """
    if codec == "zstd":
        return False        # fastwarc raises otherwise
    file.seek(offset)
    if codec is None:
        head = file.read(HEAD_BYTES).lstrip(b"\r\n")
        if PLAIN_HEADER.match(head):
            return _end_of(file, offset) > file.seek(0, io.SEEK_END)
        is_begun = b"WARC/".startswith(head) or head.startswith(b"WARC/")
        return True if is_begun and len(head) < HEAD_BYTES - 4 else None
    member = zlib.decompressobj(31)
    rest = b""
    while rest := rest or file.read(READ_BYTES):
        try:
            while rest and not member.eof:
                member.decompress(rest, READ_BYTES)
                rest = member.unconsumed_tail or member.unused_data
        except zlib.error:
            return None
        if member.eof and rest:
            member = zlib.decompressobj(31)
    return not member.eof
