"""What the sandbox's processes send each other: JSON behind its length, and values as literals."""

from __future__ import annotations

import decimal
import fractions
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

MAX_FRAME_BYTES = 32 << 20
MAX_ITEMS = 1_000_000       # that are taken from an iterator
_PLAIN_INT = 1 << 53        # within it JSON's numbers are safe everywhere


class Opaque:
    """A value that is no literal, of which only the type's name and the truth are known."""

    def __init__(self, kind: str, truth: bool):
        self.kind, self._truth = kind, truth

    def __bool__(self) -> bool:
        return self._truth

    def __repr__(self) -> str:
        return f"<{self.kind}, no literal>"


def send(descriptor: int, message: Any) -> None:
    """Writes one message.

    Raises:
        OverflowError: it has more than `MAX_FRAME_BYTES`.
        OSError: the other end is closed.
    """
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MAX_FRAME_BYTES:
        raise OverflowError(f"a message of {len(text)} bytes")
    data = memoryview(struct.pack(">I", len(text)) + text)
    while data:
        data = data[os.write(descriptor, data):]


def receive(descriptor: int) -> Any:
    """Reads one message.

    Raises:
        EOFError: the other end is closed.
        ValueError: what came is no message.
    """
    (size,) = struct.unpack(">I", _read(descriptor, 4))
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(_read(descriptor, size))


def _read(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def encode(value: Any) -> Any:
    """A value as JSON; of a subclass of a literal's type, the value of that type.

    Methods that a subclass overrides (`__eq__`, `__iter__`) are not called, so that it equals what
    it holds and nothing else. An iterator is read to its end. What is no literal becomes `Opaque`.
    """
    if value is None or value is True or value is False:
        return value
    for kind, encode_kind in _ENCODERS:
        if isinstance(value, kind):
            return encode_kind(value)
    return {"opaque": [type(value).__name__, bool(value)]}


def decode(message: Any) -> Any:
    """The value that `encode` was given.

    Raises:
        ValueError: no value is encoded so.
    """
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if isinstance(message, list):
        return [decode(each) for each in message]
    if not isinstance(message, dict) or len(message) != 1:
        raise ValueError("no value")
    ((kind, content),) = message.items()
    try:
        return _DECODERS[kind](content)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"no value of the kind {kind!r}") from error


def _encode_int(value: int) -> Any:
    value = int.__index__(value)
    return value if abs(value) < _PLAIN_INT else {"int": hex(value)}


def _items_of(iterator: Iterator) -> list:
    items = []
    for each in iterator:
        items.append(encode(each))
        if len(items) > MAX_ITEMS:
            raise OverflowError(f"an iterator of more than {MAX_ITEMS} items")
    return items


_ENCODERS = (
    (int, _encode_int),
    (float, float.__float__),
    (str, str.__str__),
    (list, lambda value: [encode(each) for each in list.__iter__(value)]),
    (tuple, lambda value: {"tuple": [encode(each) for each in tuple.__iter__(value)]}),
    (dict, lambda value: {"dict": [[encode(key), encode(each)]
                                   for key, each in dict.items(value)]}),
    (set, lambda value: {"set": [encode(each) for each in set.__iter__(value)]}),
    (frozenset, lambda value: {"frozenset": [encode(each)
                                             for each in frozenset.__iter__(value)]}),
    (bytes, lambda value: {"bytes": bytes.hex(value)}),
    (bytearray, lambda value: {"bytearray": bytearray.hex(value)}),
    (range, lambda value: {"range": [value.start, value.stop, value.step]}),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
    (fractions.Fraction, lambda value: {"fraction": [encode(value.numerator),
                                                     encode(value.denominator)]}),
    (decimal.Decimal, lambda value: {"decimal": decimal.Decimal.__str__(value)}),
    (Iterator, lambda value: {"iterator": _items_of(value)}),
)
_DECODERS = {
    "int": lambda content: int(content, 16),
    "tuple": lambda content: tuple(decode(each) for each in content),
    "dict": lambda content: {decode(key): decode(each) for key, each in content},
    "set": lambda content: {decode(each) for each in content},
    "frozenset": lambda content: frozenset(decode(each) for each in content),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda content: range(*content),
    "complex": lambda content: complex(*content),
    "fraction": lambda content: fractions.Fraction(*map(decode, content)),
    "decimal": decimal.Decimal,
    "iterator": lambda content: iter([decode(each) for each in content]),
    "opaque": lambda content: Opaque(str(content[0]), bool(content[1])),
}
