"""What files of weights have in common: lazy tensors, bounds, bounded reads, whole writes.

Nothing in a file is trusted. A format's reader checks its whole header against the file's size
before the first tensor is read, and each refusal names the file and the tensor or the field.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from core.errors import UserError, quote

MAX_HEADER_BYTES = 100_000_000    # the limit of the library of safetensors
MAX_TENSORS = 1 << 18             # twice what models of 10^12 parameters have
MAX_DIMENSIONS = 32
MAX_TENSOR_BYTES = 1 << 62
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class LazyTensor(NamedTuple):
    """A tensor that is not in memory: one to read from a file, or one to write.

    Attributes:
        name: the file's own.
        shape: in row-major order.
        dtype: of the array that `read` returns.
        read: gives the array; each call reads it anew.
        stored_as: the file's own word for its numbers, as ``BF16`` or ``Q4_1``; files that are
            written do not need it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    stored_as: str = ""

    def read_checked(self) -> np.ndarray:
        """The array; raises `UserError` unless it has the shape and the dtype that it should."""
        array = np.asarray(self.read())
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise UserError(f"tensor {quote(self.name)}", f"is {array.dtype} {array.shape}, not "
                            f"{self.dtype} {self.shape}", "correct what gives this tensor")
        return array


def refuse(path: Path, rule: str, *, tensor: str | None = None,
           remedy: str = "fetch the file again from where it came") -> NoReturn:
    """Raises the `UserError` of a file, or of one of its tensors."""
    where = str(path) if tensor is None else f"{path}, tensor {quote(tensor)}"
    raise UserError(where, rule, remedy)


def require_tensor_file(path: Path) -> int:
    """The size in bytes of a file to read; refuses pickles, and what is no regular file."""
    if path.suffix.lower() in PICKLES:
        refuse(path, "is a pickle, which can run any code while it is read",
               remedy="convert it to safetensors where its author is trusted")
    if not path.is_file():      # a pipe, for one, would never end
        refuse(path, "no such file", remedy="correct the name")
    return path.stat().st_size


def read_bytes(path: Path, tensor: str, start: int, num_bytes: int) -> np.ndarray:
    """Reads a part of a file into memory of its own, as uint8.

    The file is not mapped: one that is cut while it is mapped would kill the process.
    """
    data = np.empty(num_bytes, np.uint8)
    with open(path, "rb") as file:
        file.seek(start)
        if (count := file.readinto(memoryview(data))) != num_bytes:
            refuse(path, f"ends after {count:,} of {num_bytes:,} bytes", tensor=tensor)
    return data


def bytes_of(array: np.ndarray) -> memoryview:
    """An array's bytes in row-major order; they are copied only where its memory is not."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


@contextlib.contextmanager
def whole_files(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Temporary paths, renamed to `names` in this order when all are written, deleted otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = [folder / f".{name}.tmp" for name in names]
    try:
        yield temporary
        for path in temporary:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for path, name in zip(temporary, names):
            os.replace(path, folder / name)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
