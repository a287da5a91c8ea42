"""ARC archives, the format before WARC, plain or gzip, through warcio.

Record starts are not marked, so a file is one unit, and records after a damaged one are lost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import posixpath
from collections.abc import Iterator
from typing import BinaryIO

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecord
from warcio.statusandheaders import StatusAndHeadersParserException

from data.readers import storage
from data.readers.pages import DOMAIN_FIELD, Response, may_be_text, read_page
from data.readers.records import CUT_OFF, Corrupt, Item, Skipped, corrupt
from data.readers.units import Unit

CONTENT_RECORDS = ("response", "resource", "conversion")

def read(unit: Unit) -> Iterator[Item]:
    """All records of an ARC file."""
    name, num_records, place = posixpath.basename(unit.path), 0, 0
    try:
        if storage.is_empty(unit.path):
            yield Skipped(name, "arc: file is empty")
            return
        with storage.open_binary(unit.path) as file:
            size = file.seek(0, io.SEEK_END)
            codec = storage.codec_of(file)
            stream = storage.decompress(file, codec) if codec else file
            for record, _ in iterate(stream, arc2warc=True):
                item = read_record(record, f"{name}@{num_records}", "arc")
                if isinstance(item, Corrupt) and item.reason.endswith("cut off"):
                    item = dataclasses.replace(item, reason=f"arc: {CUT_OFF}", num_bytes=size)
                yield item
                num_records, place = num_records + 1, file.tell()
    except Stopped:
        yield Corrupt(f"{name}@{num_records}", "arc: damaged", max(size - place, 1))
        return
    except (OSError, EOFError, ValueError) as error:
        yield corrupt(f"{name}@{num_records}", "arc", error)
        return
    if not num_records:
        yield Corrupt(name, "arc: holds no record", size)


class Stopped(Exception):
    """What begins at offset `place` of an archive is no record to warcio."""

    def __init__(self, place: int):
        super().__init__(place)
        self.place = place


def iterate(stream: BinaryIO, **options: bool) -> Iterator[tuple[ArcWarcRecord, int]]:
    """The records of an archive, and the offset of each in a stream that is not decompressed.

    Raises:
        Stopped: at damage.
    """
    records = ArchiveIterator(stream, **options)
    while True:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # warcio reports damage there
                record = next(records, None)
        except (ArchiveLoadFailed, StatusAndHeadersParserException, AttributeError, TypeError,
                IndexError) as error:   # the last three for headers without what it relies on
            raise Stopped(records.offset) from error
        if record is None:
            return
        yield record, records.offset    # `get_record_offset` would read the record to its end


def read_record(record: ArcWarcRecord, place: str, reader: str) -> Item:
    """The item of a record that warcio parsed.

    Args:
        place: its name where it has no URL.
        reader: prefix of the reasons.
    """
    headers, http = record.rec_headers, record.http_headers
    source = (headers.get_header("WARC-Target-URI") or place).strip("<>")
    if record.rec_type not in CONTENT_RECORDS:
        return Skipped(source, f"{reader}: {record.rec_type} record")
    if http is not None and http.get_statuscode() != "200":
        return Skipped(source, f"{reader}: http status is not 200")
    given = http if http is not None else headers
    declared = given.get_header("Content-Type") or ""
    response = Response(
        source, declared, headers.get_header("WARC-Identified-Payload-Type") or "",
        http.get_header("Content-Encoding") or "" if http is not None else "",
        http.get_header("Transfer-Encoding") or "" if http is not None else "",
        declared.partition("charset=")[2].partition(";")[0].strip(" \"'") or None,
        headers.get_header(DOMAIN_FIELD),
        headers.get_header("WARC-Record-ID") if reader == "warc" else None,   # else a random one
        record.rec_type == "conversion", headers.get_header("WARC-Date"))
    if not may_be_text(response):
        return Skipped(source, f"{reader}: content is not text")
    item = read_page(response, record.raw_stream, reader)
    if getattr(record.raw_stream, "limit", 0) > 0 and not isinstance(item, Corrupt):
        return Corrupt(source, f"{reader}: record is cut off")
    return item
