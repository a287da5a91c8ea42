"""Detection of damaged files: a checksum per block, verified when the block is first read.

Training reads rows at random from files of terabytes. Verifying whole files at every start would
take hours; a block takes microseconds, once per process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from core.errors import UserError

BLOCK_BYTES = 65_536


def sums_path(path: Path) -> Path:
    """Path of the checksums of the file at `path`: little-endian uint64, one per block."""
    return path.with_name(f"{path.name}.sums")


def write_sums(path: Path) -> None:
    """Writes the checksums (XXH3) of a finished file beside it."""
    with open(path, "rb") as file:
        blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
        sums = np.array([xxhash.xxh3_64_intdigest(block) for block in blocks], "<u8")
    sums_path(path).write_bytes(sums.tobytes())


class CheckedArray:
    """A memory-mapped, one-dimensional array whose slices are verified before they are returned.

    Args:
        path: a file with checksums by `write_sums`.
        dtype: of its elements.

    Raises:
        UserError: the checksums are missing or do not match the size of the file; on access to
            a slice, its block is damaged.
    """

    def __init__(self, path: Path, dtype: np.dtype | str):
        self._path = path
        try:
            self._bytes = np.memmap(path, np.uint8, mode="r")
            # A plain array over the map: slices of np.memmap take microseconds each.
            self._array = np.asarray(self._bytes).view(dtype)
            self._sums = np.fromfile(sums_path(path), "<u8")
        except (FileNotFoundError, ValueError):     # ValueError: empty, or truncated
            raise self._damaged("or its checksums are missing or cut") from None
        if len(self._sums) != -(-len(self._bytes) // BLOCK_BYTES):
            raise self._damaged("has another size than its checksums")
        self._is_checked = np.zeros(len(self._sums), bool)
        self._block_items = BLOCK_BYTES // self._array.itemsize

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, _ = index.indices(len(self._array))
        first, last = start // self._block_items, -(-stop // self._block_items)
        if not self._is_checked[first:last].all():
            self._check(first, last)
        return self._array[start:stop]

    def _check(self, first: int, last: int) -> None:
        for block in range(first, last):
            data = self._bytes[block * BLOCK_BYTES:(block + 1) * BLOCK_BYTES]
            if xxhash.xxh3_64_intdigest(data) != self._sums[block]:
                raise self._damaged(f"is damaged in block {block} of {BLOCK_BYTES} bytes")
            self._is_checked[block] = True

    def _damaged(self, how: str) -> UserError:
        return UserError(str(self._path), how, "run `python -m data.pack` again")
