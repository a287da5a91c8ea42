"""How pages and their texts travel between the guard and its child: lengths, then plain bytes.

A batch is a count and that many pages; the child reads all of it before it answers, so that the
two never wait for each other's full pipes. It answers page by page, in order.
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
    """The parts of a batch, to be written one after the other."""
    parts = [COUNT.pack(len(pages))]
    for content, content_type in pages:
        body, kind = to_bytes(content), to_bytes(content_type)
        parts += PAGE.pack(isinstance(content, str), len(kind), len(body)), kind, body
    return parts


def read_page(read: Callable[[int], bytes]) -> Page:
    """The next page of a batch, by a function that reads so many bytes."""
    is_text, type_bytes, content_bytes = PAGE.unpack(read(PAGE.size))
    kind, content = read(type_bytes), read(content_bytes)
    return (to_text(content) if is_text else content), to_text(kind)


def to_bytes(content: bytes | str) -> bytes:
    """Bytes from which `to_text` makes the very same text, halves of surrogate pairs included."""
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content


def to_text(content: bytes) -> str:
    """See `to_bytes`."""
    return content.decode("utf-8", "surrogatepass")
