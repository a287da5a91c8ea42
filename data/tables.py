"""Parquet tables and arrays between the passes, written atomically and read in batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class TableWriter:
    """Writes rows as zstd Parquet in batches; the file gets its final name when complete.

    Args:
        path: of the file, created on a clean exit of the `with` block.
        schema: its columns.
        batch_rows: rows held in memory at once.
    """

    def __init__(self, path: str | Path, schema: pa.Schema, batch_rows: int = 1024):
        self._path, self._schema, self._batch_rows = str(path), schema, batch_rows
        # Unique per process: a worker of a killed run may still process the same unit.
        self._temporary = f"{self._path}.{os.getpid()}.tmp"
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> TableWriter:
        self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row."""
        self._rows.append(row)
        if len(self._rows) >= self._batch_rows:
            self._flush()

    def write_columns(self, columns: Mapping[str, Sequence]) -> None:
        """Adds whole columns at once."""
        self._writer.write_table(pa.table(dict(columns), schema=self._schema))

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __exit__(self, kind, error, trace) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)


def read_rows(path: str | Path, columns: Sequence[str] | None = None,
              batch_rows: int = 1024) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file with their numbers; one batch is in memory at a time."""
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_rows, columns=columns):
            for row in batch.to_pylist():
                yield number, row
                number += 1


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Saves an array; the file gets its final name when complete."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
    os.replace(temporary, path)


def concatenate_arrays(paths: Sequence[Path], output: Path) -> None:
    """Concatenates arrays along the first axis, with one of them in memory at a time."""
    parts = [np.load(path, mmap_mode="r") for path in paths]
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole = np.lib.format.open_memmap(output, "w+", parts[0].dtype, shape)
    start = 0
    for part in parts:
        whole[start:start + len(part)] = part
        start += len(part)
    whole.flush()
