"""ARC archives, the format before WARC, plain or gzip, through warcio.

Record starts are not marked, so a file is one unit, and records after a damaged one are lost.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
from collections.abc import Iterator

from warcio.archiveiterator import ArchiveIterator
from warcio.exceptions import ArchiveLoadFailed
from warcio.recordloader import ArcWarcRecord
from warcio.statusandheaders import StatusAndHeadersParserException

from data.readers import storage
from data.readers.records import (
    MAX_RECORD_BYTES,
    Corrupt,
    Item,
    RawRecord,
    Skipped,
    failure_kind,
    read_capped,
)
from data.readers.units import Unit
from data.readers.warc import TEXT_TYPES


def read(unit: Unit) -> Iterator[Item]:
    """All records of an ARC file."""
    name, num_records = posixpath.basename(unit.path), 0
    try:
        if storage.is_empty(unit.path):
            yield Skipped(name, "arc: file is empty")
            return
        with storage.open_binary(unit.path) as file:
            codec = storage.codec_of(file)
            stream = storage.decompress(file, codec) if codec else file
            records = iter(ArchiveIterator(stream, arc2warc=True))
            while True:
                with contextlib.redirect_stderr(io.StringIO()):  # warcio reports damage there
                    record = next(records, None)
                if record is None:
                    break
                yield _read_record(record, f"{name}@{num_records}")
                num_records += 1
    except (ArchiveLoadFailed, StatusAndHeadersParserException):
        yield Corrupt(f"{name}@{num_records}", "arc: damaged")
        return
    except (OSError, EOFError, ValueError) as error:
        yield Corrupt(f"{name}@{num_records}", f"arc: {failure_kind(error)}")
        return
    if not num_records:
        yield Corrupt(name, "arc: holds no record")


def _read_record(record: ArcWarcRecord, place: str) -> Item:
    source, http = record.rec_headers.get_header("WARC-Target-URI") or place, record.http_headers
    if record.rec_type != "response":
        return Skipped(source, f"arc: {record.rec_type} record")
    if http is not None and http.get_statuscode() != "200":
        return Skipped(source, "arc: http status is not 200")
    declared = http.get_header("Content-Type") if http is not None else record.content_type
    content_type, _, parameters = (declared or "text/html").partition(";")
    content_type = content_type.strip().lower()
    if not content_type.startswith(TEXT_TYPES) or content_type == "text/dns":
        return Skipped(source, "arc: content is not text")
    content = read_capped(record.content_stream())
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, "arc: record is too large")
    if record.raw_stream.limit > 0:
        return Corrupt(source, "arc: record is cut off")
    charset = parameters.partition("charset=")[2].strip(" \"'") or None
    return RawRecord(source, content, content_type, charset=charset,
                     meta={"date": record.rec_headers.get_header("WARC-Date")})
