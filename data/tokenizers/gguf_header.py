"""The header of a GGUF file, the format of llama.cpp: its metadata, and how many tensors it has.

    "GGUF" | version | number of tensors and of metadata | metadata: key, type, value ...
    | tensors: name, sizes, number format, offset ... | padding | the tensors' blocks, each padded

The layout is that of the specification in https://github.com/ggml-org/ggml. Nothing in a file is
trusted: the library `gguf` allocates and loops by lengths and counts that this reader bounds first.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from core.errors import UserError, quote

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 100_000_000
MAX_COUNT = 1 << 18             # of tensors, twice what models of 10^12 parameters have; of keys
MAX_VALUES = 1 << 22            # of all metadata; a vocabulary of 262,144 tokens needs 1,300,000
MAX_DEPTH = 4                   # of arrays in arrays

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
           12: "d"}             # types of metadata, as `struct` names them
STRING, ARRAY = 8, 9


class Header:
    """Reads a header's fields in turn; refuses, by its name, one that its file cannot hold."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._num_values = path, file, 0
        self._left = min(os.fstat(file.fileno()).st_size, MAX_HEADER_BYTES)

    def refuse(self, field: str, rule: str) -> NoReturn:
        """Raises the `UserError` of a field."""
        raise UserError(str(self._path), f"{field} {rule}",
                        "fetch the file again from where it came")

    def take(self, num_bytes: int, field: str) -> bytes:
        """The next bytes."""
        if num_bytes > self._left:
            self.refuse(field, f"needs {num_bytes:,} bytes, and {self._left:,} are left")
        self._left -= num_bytes
        return self._file.read(num_bytes)

    def number(self, format: str, field: str) -> Any:  # noqa: A002
        """The next number, in a format of `struct`."""
        return struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}"), field))[0]

    def text(self, field: str) -> str:
        """The next text."""
        text = self.take(self.number("Q", field), field)
        try:
            return text.decode()
        except UnicodeDecodeError:
            self.refuse(field, f"is not UTF-8 text ({quote(text)})")

    def value(self, field: str, kind: int, depth: int = 0) -> Any:
        """A value of the metadata, or a list of them."""
        if kind == STRING:
            return self.text(field)
        if kind in SCALARS:
            return self.number(SCALARS[kind], field)
        if kind != ARRAY or depth == MAX_DEPTH:
            self.refuse(field, f"has the type {kind}, expected one of 0 to 12"
                        if kind != ARRAY else f"nests arrays more than {MAX_DEPTH} deep")
        of, count = self.number("I", field), self.number("Q", field)
        self._num_values += count
        if self._num_values > MAX_VALUES:
            self.refuse(field, f"has {count:,} values; the metadata may have {MAX_VALUES:,}")
        if of in SCALARS:
            data = self.take(count * struct.calcsize(SCALARS[of]), field)
            return list(struct.unpack(f"<{count}{SCALARS[of]}", data))
        return [self.value(field, of, depth + 1) for _ in range(count)]


def read_metadata(header: Header) -> tuple[dict[str, Any], int]:
    """The metadata as Python's numbers, texts, and lists of these; and the number of tensors.

    The header is left where that of the first tensor begins.

    Raises:
        UserError: the file is damaged or hostile.
    """
    if (magic := header.take(4, "the magic number")) != MAGIC:
        header.refuse("the magic number", f"is {magic!r}, expected {MAGIC!r}")
    version = header.number("I", "the version")
    if version not in (2, 3):
        header.refuse("the version", f"is {version}, expected 2 or 3" + (
            " (the file is big-endian)" if version & 0xFFFF == 0 else ""))
    num_tensors = header.number("Q", "the number of tensors")
    num_keys = header.number("Q", "the number of keys")
    for count, what in ((num_tensors, "tensors"), (num_keys, "keys")):
        if count > MAX_COUNT:
            header.refuse(f"the number of {what}", f"is {count:,}, expected at most {MAX_COUNT:,}")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = header.text("a key of the metadata")
        field = f"metadata {quote(key)}"
        if key in metadata:
            header.refuse(field, "is there twice")
        metadata[key] = header.value(field, header.number("I", field))
    return metadata, num_tensors
