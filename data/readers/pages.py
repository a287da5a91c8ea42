"""Makes a record of an archived response: what its bytes are counts for more than its headers.

In this order: the magic bytes of a format that is no text (PDF, RTF, images and so on, see
`data.readers.formats`) skip it; bytes that begin like HTML are HTML; then counts the type that the
crawler identified (`WARC-Identified-Payload-Type`), then the type that the server declared, and
without one HTML is assumed. Bodies are unpacked as far as they are packed: a declared encoding
that the bytes do not have is ignored, one that they have is undone though it is not declared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import zlib
from collections.abc import Callable
from typing import BinaryIO

from fastwarc.stream_io import BrotliReader, GzipReader, ZstdReader

from data.readers.formats import begins_as_html, is_text, name_format
from data.readers.records import (
    MAX_RECORD_BYTES,
    Corrupt,
    Item,
    RawRecord,
    Skipped,
    failure_kind,
    read_capped,
)

DOMAIN_FIELD = "Heartwood-Domain"   # optional WARC field: the record's domain
TEXT_TYPES = ("text/", "application/xhtml", "application/xml", "application/json")
HTML_TYPES = ("text/html", "application/xhtml")
# What servers declare when they do not know.
UNKNOWN_TYPES = ("", "application/octet-stream", "binary/octet-stream", "application/download",
                 "application/x-download", "application/force-download", "application/unknown",
                 "unknown/unknown", "application/x-unknown-content-type", "*/*")
MAX_LAYERS = 3              # of gzip around a body
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


@dataclasses.dataclass(frozen=True)
class Response:
    """The headers of an archived response, as far as they matter.

    Attributes:
        declared: content type of the server, or of the record.
        identified: content type found by the crawler.
        http: whether the body came over HTTP, with the encodings that follow.
        content_encoding, transfer_encoding: names, separated by commas.
        charset: declared by the server.
        domain, id: see `data.readers.records.RawRecord`.
        is_converted: whether the body is text that a crawler extracted.
        date: when it was archived, in ISO 8601.
    """

    source: str
    declared: str
    identified: str = ""
    content_encoding: str = ""
    transfer_encoding: str = ""
    charset: str | None = None
    domain: str | None = None
    id: str | None = None
    is_converted: bool = False
    date: str | None = None

    @property
    def declared_type(self) -> str:
        """The declared media type, without parameters; empty without one."""
        return _media_type(self.declared)

    @property
    def identified_type(self) -> str:
        """The identified media type; empty when it is unknown."""
        found = _media_type(self.identified)
        return "" if found in UNKNOWN_TYPES else found


def may_be_text(response: Response) -> bool:
    """Whether its headers leave it open that a response is text."""
    declared = response.declared_type
    if declared == "text/dns":
        return False
    return declared in UNKNOWN_TYPES or any(
        name.startswith(TEXT_TYPES) for name in (declared, response.identified_type))


def read_page(response: Response, body: BinaryIO, reader: str,
              num_bytes: int | None = None) -> Item:
    """The record of a response that may be text.

    Args:
        body: as stored in the archive.
        reader: prefix of the reasons.
        num_bytes: of the body, when the archive says so.
    """
    source = response.source
    content = read_capped(body)
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, f"{reader}: record is too large")
    if num_bytes is not None and len(content) < num_bytes:
        return Corrupt(source, f"{reader}: record is cut off")
    try:
        content = unpack(content, response.content_encoding, response.transfer_encoding)
    except (OSError, ValueError) as error:
        return Corrupt(source, f"{reader}: record is {failure_kind(error)}")
    if len(content) > MAX_RECORD_BYTES:
        return Corrupt(source, f"{reader}: record is too large")
    content_type = _judge(response, content)
    if content_type is None:
        return Skipped(source, name_format(content) or f"{reader}: content is not text")
    return RawRecord(source, content, content_type, response.domain, response.id,
                     response.charset, {"date": response.date} if response.date else {})


def _judge(response: Response, content: bytes) -> str | None:
    """The media type under which a body is read; None when it is no text."""
    declared, identified = response.declared_type, response.identified_type
    if name_format(content):
        return None
    if response.is_converted:
        return declared or "text/plain"
    if begins_as_html(content):
        return declared if declared.startswith(HTML_TYPES) else "text/html"
    if declared.startswith(TEXT_TYPES):
        return declared
    if identified.startswith(TEXT_TYPES):
        return identified
    return None if declared or identified else "text/html"


def unpack(body: bytes, content_encoding: str = "", transfer_encoding: str = "") -> bytes:
    """The body of a response without the encodings that it has.

    Returns:
        At most slightly more than `MAX_RECORD_BYTES`.

    Raises:
        OSError, ValueError: an encoding is damaged.
    """
    if "chunked" in transfer_encoding.lower():
        body = _join_chunks(body)
    for name in reversed(content_encoding.lower().split(",")):
        body = _DECODERS.get(name.strip(), lambda body: body)(body)
    for _ in range(MAX_LAYERS):
        if not body.startswith(GZIP_MAGIC):
            break
        body = _decode_gzip(body)
    return body


def _join_chunks(body: bytes) -> bytes:
    """The joined chunks (RFC 9112, 7.1); the body itself if it is not chunked."""
    parts, place = [], 0
    while place < len(body):
        header = _CHUNK_SIZE.match(body, place)
        if header is None:
            if not parts:
                return body
            raise ValueError("chunk without a size")
        size = int(header[1], 16)
        if not size:
            break
        parts.append(body[header.end():header.end() + size])
        place = header.end() + size
        place += 2 if body.startswith(b"\r\n", place) else body.startswith(b"\n", place)
    return b"".join(parts)


def _decode_gzip(body: bytes) -> bytes:
    return read_capped(GzipReader(io.BytesIO(body))) if body.startswith(GZIP_MAGIC) else _as_is(
        body)


def _decode_zstd(body: bytes) -> bytes:
    return read_capped(ZstdReader(io.BytesIO(body))) if body.startswith(ZSTD_MAGIC) else _as_is(
        body)


def _decode_brotli(body: bytes) -> bytes:
    if begins_as_html(body):    # as no format without magic bytes would
        return body
    try:
        return read_capped(BrotliReader(io.BytesIO(body)))
    except (OSError, ValueError):
        return _as_is(body)


def _decode_deflate(body: bytes) -> bytes:
    """Decodes zlib's format, or raw deflate, which some servers send under the same name."""
    if begins_as_html(body):
        return body
    for wbits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits).decompress(body, MAX_RECORD_BYTES + 1)
    return _as_is(body)


def _as_is(body: bytes) -> bytes:
    """A body that lacks its declared encoding: the crawler decoded it, if it is text."""
    if not (is_text(body) or body.startswith(GZIP_MAGIC)):
        raise ValueError("is neither encoded nor text")
    return body


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _decode_gzip, "x-gzip": _decode_gzip, "zstd": _decode_zstd,
    "br": _decode_brotli, "deflate": _decode_deflate}


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()
