"""What a reader gives: a record, or the reason why there is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

MAX_RECORD_BYTES = 64 << 20     # after decompression: a bomb costs one record, not the process
READ_BYTES = 1 << 20
PART_BYTES = 256 << 10       # of a record; some readers reserve what they are asked for
BINARY_SAMPLE_BYTES = 4096

_UNPAIRED = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One page or text as it was found."""

    source: str                     # URL, or file name with offset, or path below the input folder
    content: bytes | str            # bytes while the encoding is still unknown
    content_type: str = "text/plain"
    domain: str | None = None       # None: the input does not say
    id: str | None = None           # as the input gives it; nothing makes it unique
    charset: str | None = None      # as the server or the file declares it, true or not
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Corrupt:
    """A record, or the rest of a file, that could not be read."""

    source: str
    reason: str                     # a few words without numbers or paths, fit for counting


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A sound record that holds no document: an error status, an image, a redirect."""

    source: str
    reason: str


Item = RawRecord | Corrupt | Skipped


def why(error: Exception) -> str:
    """The kind of a failure in fixed words; messages of libraries would split the counts."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, FileNotFoundError):
        return "file is gone"
    message = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in message or "incomplete" in message:
        return "file is cut off"
    if isinstance(error, OSError) and error.errno is not None:
        return "file cannot be read"
    return "damaged"


def read_capped(stream) -> bytes:
    """All of a stream, or a little more than `MAX_RECORD_BYTES` of one that is longer."""
    part = stream.read(PART_BYTES)
    parts, num_bytes = [part], len(part)
    while num_bytes <= MAX_RECORD_BYTES and (part := stream.read(PART_BYTES)):
        parts.append(part)
        num_bytes += len(part)
    return b"".join(parts)


def is_binary(content: bytes) -> bool:
    """Whether bytes are no text: NULs at the beginning that no UTF-16 or UTF-32 explains."""
    sample = content[:BINARY_SAMPLE_BYTES]
    if b"\0" not in sample or sample.startswith(_BYTE_ORDER_MARKS):
        return False
    nuls = sorted((sample[::2].count(0), sample[1::2].count(0)))
    is_utf16 = nuls[0] * 20 <= nuls[1] and nuls[1] * 5 >= len(sample)
    return not is_utf16


def encodable(text: str) -> str:
    """Text with unpaired surrogates, which UTF-8 cannot hold, as U+FFFD."""
    return text if text.isascii() else _UNPAIRED.sub("\ufffd", text)
