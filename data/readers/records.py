"""Items of readers: a record, or the reason why there is none."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

MAX_RECORD_BYTES = 64 << 20     # after decompression, so that a bomb exhausts no memory
READ_BYTES = 1 << 20
PART_BYTES = 256 << 10       # of a record; some readers allocate the requested size
BINARY_SAMPLE_BYTES = 4096
CUT_OFF = "file is cut off"

_UNPAIRED = re.compile("[\ud800-\udfff]")
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


@dataclasses.dataclass(frozen=True)
class RowNotes:
    """How a row became a record, for the manifest.

    Attributes:
        text: the field that holds the text.
        missing: fields that the config names and the row lacks.
        cut: fields that are not kept with the document.
    """

    text: str
    missing: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RawRecord:
    """One unprocessed page or text."""

    source: str                     # URL, or file name with offset, or path below the input folder
    content: bytes | str            # bytes while the encoding is still unknown
    content_type: str = "text/plain"
    domain: str | None = None       # None: not given by the input
    id: str | None = None           # as in the input; may not be unique
    charset: str | None = None      # as declared by the server or file
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)   # as in the input
    notes: RowNotes | None = None   # of a row


@dataclasses.dataclass(frozen=True)
class Corrupt:
    """A record, or the rest of a file, that cannot be read."""

    source: str
    reason: str                     # without numbers or paths, so that it can be counted
    num_bytes: int = 0              # of the input file that are not read because of it, if known
    fields: tuple[str, ...] = ()    # of a row of which none is known to hold the text


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A valid record without a document: an error status, an image, a redirect."""

    source: str
    reason: str
    fields: tuple[str, ...] = ()


Item = RawRecord | Corrupt | Skipped


class Damage(ValueError):
    """What makes a file, or its rest of `num_bytes`, unreadable, in a fixed phrase."""

    def __init__(self, reason: str, num_bytes: int):
        super().__init__(reason)
        self.num_bytes = num_bytes


def corrupt(source: str, reader: str, error: Exception, num_bytes: int = 0) -> Corrupt:
    """The item for content that a reader failed to read.

    Args:
        num_bytes: of the input file that are not read, unless the error says so.

    Raises:
        OSError: `error` itself, if the storage failed: that is no damage, and may pass.
    """
    if is_of_storage(error):
        raise error
    return Corrupt(source, f"{reader}: {failure_kind(error)}",
                   getattr(error, "num_bytes", num_bytes))


def is_of_storage(error: Exception) -> bool:
    """Whether an error is of the disk or network, not of the content (decoders set no errno)."""
    return isinstance(error, TimeoutError | FileNotFoundError | PermissionError) or (
        isinstance(error, OSError) and error.errno is not None)


def failure_kind(error: Exception) -> str:
    """A fixed phrase for the kind of damage, so that failures can be counted."""
    message = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in message or "incomplete" in message:
        return CUT_OFF
    return str(error) if isinstance(error, Damage) else "damaged"


def read_capped(stream) -> bytes:
    """Reads a stream, up to slightly more than `MAX_RECORD_BYTES`."""
    part = stream.read(PART_BYTES)
    parts, num_bytes = [part], len(part)
    while num_bytes <= MAX_RECORD_BYTES and (part := stream.read(PART_BYTES)):
        parts.append(part)
        num_bytes += len(part)
    return b"".join(parts)


def is_binary(content: bytes) -> bool:
    """Whether bytes are not text: early NULs that are not due to UTF-16 or UTF-32."""
    sample = content[:BINARY_SAMPLE_BYTES]
    if b"\0" not in sample or sample.startswith(_BYTE_ORDER_MARKS):
        return False
    nuls = sorted((sample[::2].count(0), sample[1::2].count(0)))
    is_utf16 = nuls[0] * 20 <= nuls[1] and nuls[1] * 5 >= len(sample)
    return not is_utf16


def encodable(text: str) -> str:
    """Replaces unpaired surrogates, which UTF-8 cannot encode, by U+FFFD."""
    return text if text.isascii() else _UNPAIRED.sub("\ufffd", text)
