"""Comparisons of all documents between the passes, over keys.

They run in the main process. Memory is bounded by ``memory_bytes``; the keys are on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.progress import log
from data.dedup import blocks
from data.dedup.bloom import BloomSeen
from data.dedup.groups import first_occurrences
from data.tables import TableWriter, write_array

REPEATS_SCHEMA = pa.schema([("row", pa.int32()), ("reason", pa.string()),
                            ("representative", pa.string())])


def find_repeats(measured: Sequence[Path], folder: Path, *, by_url: bool, seen: Sequence[Path],
                 memory_bytes: int, bloom: Mapping[str, float]) -> list[Path]:
    """Finds documents that share their normalised text, or their URL, with an earlier one.

    Args:
        measured: outputs of `data.passes.measure`, without suffix.
        by_url: whether documents of the same URL are repeats.
        seen: `exact.npy` files of finished corpora, whose documents precede these.
        bloom: ``memory_bytes`` of a Bloom filter that replaces the exact search for texts, and its
            ``false_positive_rate``; with 0 bytes the search is exact.

    Returns:
        Per unit a Parquet file: row, reason, and the id of the kept document (for one in a
        finished corpus the path of its key file; empty with a Bloom filter).
    """
    if bloom["memory_bytes"]:
        return _find_by_bloom(measured, folder, seen, bloom)
    kinds = {"exact_duplicate": "exact", **({"duplicate_url": "url"} if by_url else {})}
    first: dict[str, list[Path]] = {}
    for reason, suffix in kinds.items():
        before = list(seen) if suffix == "exact" else []
        parts = [*before, *(Path(f"{path}.{suffix}.npy") for path in measured)]
        outputs = [folder / f"{suffix}.{part:05d}.npy" for part in range(len(parts))]
        first_occurrences(parts, outputs, memory_bytes=memory_bytes,
                          key_words=2 if suffix == "exact" else 1)
        first[reason] = outputs[len(before):]
    ids = _Ids(measured, seen)
    return [_write_repeats(folder / f"{unit:05d}.parquet", unit, first, ids)
            for unit in range(len(measured))]


def _find_by_bloom(measured: Sequence[Path], folder: Path, seen: Sequence[Path],
                   bloom: Mapping[str, float]) -> list[Path]:
    """Finds repeated texts with a Bloom filter, in one scan of the keys."""
    parts = [*seen, *(Path(f"{path}.exact.npy") for path in measured)]
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    known = BloomSeen(sum(map(len, arrays)), bloom["false_positive_rate"],
                      int(bloom["memory_bytes"]))
    log(f"curate: Bloom filter of {known.num_bytes:,} bytes for {sum(map(len, arrays)):,} texts")
    paths = []
    for number, keys in enumerate(arrays):
        is_repeat = known.add((int(high) << 64) | int(low) for high, low in keys)
        if number >= len(seen):
            paths.append(folder / f"{number - len(seen):05d}.parquet")
            with TableWriter(paths[-1], REPEATS_SCHEMA) as writer:
                for row in np.flatnonzero(is_repeat).tolist():
                    writer.write({"row": row, "reason": "exact_duplicate", "representative": ""})
    return paths


class _Ids:
    """Ids of documents by the number of the key file and the row in it."""

    def __init__(self, measured: Sequence[Path], seen: Sequence[Path]):
        self._seen, self._measured = seen, measured
        self._columns: dict[int, pa.ChunkedArray] = {}

    def of(self, part: int, row: int, num_before: int) -> str:
        if part < num_before:
            return str(self._seen[part])
        unit = part - num_before
        if unit not in self._columns:
            if len(self._columns) >= 64:    # units whose ids are in memory
                self._columns.pop(next(iter(self._columns)))
            self._columns[unit] = pq.read_table(f"{self._measured[unit]}.parquet",
                                                columns=["id"])["id"]
        return self._columns[unit][row].as_py()

    def num_before(self, reason: str) -> int:
        """Number of key files of finished corpora, which come first."""
        return len(self._seen) if reason == "exact_duplicate" else 0


def _write_repeats(path: Path, unit: int, first: Mapping[str, Sequence[Path]], ids: _Ids) -> Path:
    repeats: dict[int, dict] = {}
    for reason, outputs in first.items():
        part = ids.num_before(reason) + unit
        for match in np.load(outputs[unit]).tolist():
            row, first_part, first_row = match
            if (first_part, first_row) != (part, row) and row not in repeats:
                repeats[row] = {"row": row, "reason": reason, "representative": ids.of(
                    first_part, first_row, ids.num_before(reason))}
    with TableWriter(path, REPEATS_SCHEMA) as writer:
        for row in sorted(repeats):
            writer.write(repeats[row])
    return path


def find_repeated_blocks(decided: Sequence[Path], folder: Path, *, min_block_lines: int,
                         memory_bytes: int) -> list[Path]:
    """Per unit the numbers of the blocks that occurred before in the corpus, ascending."""
    parts = [Path(f"{path}.blocks.npy") for path in decided]
    outputs = [folder / f"blocks.{unit:05d}.first.npy" for unit in range(len(parts))]
    first_occurrences(parts, outputs, memory_bytes=memory_bytes)
    paths = []
    for unit, output in enumerate(outputs):
        matches = np.load(output)
        is_near = ((matches["first_part"] == unit)
                   & (matches["position"] - matches["first_position"] < min_block_lines))
        path = folder / f"blocks.{unit:05d}.npy"
        write_array(path, matches["position"][~is_near])
        paths.append(path)
    return paths


def find_boilerplate(decided: Sequence[Path], folder: Path, *, min_pages: int, min_frac: float,
                     memory_bytes: int) -> Path:
    """Lines at the ends of many pages of a site; see `data.dedup.blocks.find_boilerplate`."""
    edges = [Path(f"{path}.edges.npy") for path in decided]
    num_bytes = sum(path.stat().st_size for path in edges)
    keys = blocks.find_boilerplate(edges, min_pages, min_frac,
                                    num_ranges=-(-8 * num_bytes // memory_bytes) or 1)
    write_array(folder / "boilerplate.npy", keys)
    return folder / "boilerplate.npy"
