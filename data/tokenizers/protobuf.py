"""The fields of a message in the wire format of Protocol Buffers, without its library.

The format is that of https://protobuf.dev/programming-guides/encoding: a message is a sequence of
fields, each a tag (the field's number and how its value is written) and a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5        # ways to write a value
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES = 10                               # of 64 bits

Value = int | memoryview


def read_fields(message: bytes | memoryview) -> Iterator[tuple[int, Value]]:
    """Numbers and values of a message's fields, in their order.

    Values are whole numbers, or the bytes of a text, a nested message or a number of fixed size.

    Raises:
        ValueError: the message is cut, or no message.
    """
    view, place = memoryview(message), 0
    while place < len(view):
        tag, place = _read_varint(view, place)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError(f"a field has the number 0 at byte {place}")
        if kind == VARINT:
            value, place = _read_varint(view, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _read_varint(view, place)
        elif kind in FIXED_SIZES:
            size = FIXED_SIZES[kind]
        else:
            raise ValueError(f"field {number} is written in the unknown way {kind}")
        if size > len(view) - place:
            raise ValueError(f"field {number} has {size} bytes, and {len(view) - place} are left")
        yield number, view[place:place + size]
        place += size


def as_bytes(value: Value) -> bytes:
    """A value as bytes; raises `ValueError` where it is none."""
    if isinstance(value, int):
        raise ValueError("a whole number stands in place of bytes")
    return bytes(value)


def as_text(value: Value) -> str:
    """A value as text; raises `ValueError` where it is none."""
    return as_bytes(value).decode()


def as_float(value: Value) -> float:
    """A value as a number of 32 bits; raises `ValueError` where it is none."""
    if len(data := as_bytes(value)) != 4:
        raise ValueError(f"a number has {len(data)} bytes, expected 4")
    return struct.unpack("<f", data)[0]


def as_int(value: Value) -> int:
    """A value as a signed whole number; raises `ValueError` where it is none."""
    if not isinstance(value, int):
        raise ValueError("bytes stand in place of a whole number")
    return value - (1 << 64) if value >> 63 else value


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, the lowest first; and the place behind it."""
    value = 0
    for shift, byte in enumerate(view[place:place + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, place + shift + 1
    raise ValueError(f"a whole number at byte {place} does not end")
