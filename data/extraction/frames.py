"""Format of pages and texts on the pipes between the guard and its child: lengths, then bytes.

A batch is a count and that many pages. The child reads a whole batch before it answers, so that the
pipes cannot deadlock. It answers page by page, in order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

READY = b"ready"
COUNT = struct.Struct("<Q")
PAGE = struct.Struct("<?QQ")        # is text, bytes of the content type, bytes of the content
TEXT = struct.Struct("<Q")          # bytes of the text

Page = tuple[bytes | str, str]      # content, content type


def pack_batch(pages: Sequence[Page]) -> list[bytes]:
    """The parts of a batch, in the order of writing."""
    parts = [COUNT.pack(len(pages))]
    for content, content_type in pages:
        body, kind = to_bytes(content), to_bytes(content_type)
        parts += PAGE.pack(isinstance(content, str), len(kind), len(body)), kind, body
    return parts


def read_page(read: Callable[[int], bytes]) -> Page:
    """Reads the next page of a batch; `read` returns a given number of bytes."""
    is_text, type_bytes, content_bytes = PAGE.unpack(read(PAGE.size))
    kind, content = read(type_bytes), read(content_bytes)
    return (to_text(content) if is_text else content), to_text(kind)


def to_bytes(content: bytes | str) -> bytes:
    """Encodes text without loss, lone surrogates included; the inverse of `to_text`."""
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content


def to_text(content: bytes) -> str:
    """The inverse of `to_bytes`."""
    return content.decode("utf-8", "surrogatepass")
