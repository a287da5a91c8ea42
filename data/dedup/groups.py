"""External group-by of keys, used by all deduplication.

A *record* is a key in a key file, one file per unit: an `.npy` array of uint64, read flat, with
one or two numbers per key. Its *place* is (part, position): the number of the file, and the
number of the record in it. Records that share a key are grouped in bounded memory: the key
files are read several times, each time for one range of keys that fits.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.tables import write_array

CHUNK_RECORDS = 1 << 16     # read at once
RECORD_BYTES = 120         # memory per record while its range is matched (measured)
RANGE_BITS = 12            # ranges of keys consist of 4096 equal slices

_POSITION_BITS = np.uint64(40)

MATCH = np.dtype([("position", "<i8"), ("first_part", "<i4"), ("first_position", "<i8")])


@dataclasses.dataclass(frozen=True)
class Group:
    """Records that share a key, in the order of their places.

    Attributes:
        parts: [n] int64, the key file of each.
        positions: [n] int64, the number of each in its file.
    """

    parts: np.ndarray
    positions: np.ndarray


def plan_ranges(parts: Sequence[Path], *, memory_bytes: int,
                key_words: int = 1) -> list[tuple[int, int]]:
    """Cuts the keys into ranges whose records fit into `memory_bytes`.

    Args:
        parts: key files.
        key_words: uint64 numbers per key, 1 or 2; ranges divide the first.

    Returns:
        Ranges [first slice, last slice), ascending. A slice that does not fit alone, because one
        key has most of its records, is a range of its own.
    """
    slices = np.zeros(1 << RANGE_BITS, np.int64)
    for part in parts:
        for _, keys in _chunks(part, key_words):
            slices += np.bincount(_slice_of(keys), minlength=len(slices))
    most, ranges, start, held = max(memory_bytes // RECORD_BYTES, 1), [], 0, 0
    for stop, count in enumerate(slices.tolist()):
        if held and held + count > most:
            ranges.append((start, stop))
            start, held = stop, 0
        held += count
    return [*ranges, (start, len(slices))]


def find_groups(parts: Sequence[Path], *, memory_bytes: int, key_words: int = 1) -> Iterator[Group]:
    """All groups of two records or more, in the order of their keys.

    Memory is bounded by `memory_bytes`, or by a single
    group where that is larger.
    """
    for bounds in plan_ranges(parts, memory_bytes=memory_bytes, key_words=key_words):
        yield from groups_in_range(parts, bounds, key_words=key_words)


def groups_in_range(parts: Sequence[Path], bounds: tuple[int, int], *,
                    key_words: int = 1) -> Iterator[Group]:
    """The groups of one of the ranges of `plan_ranges`."""
    gathered = list(_records(parts, bounds, key_words))
    if not gathered:
        return
    keys, places = (np.concatenate(column) for column in zip(*gathered))
    del gathered
    order, starts = _sort(keys)
    del keys
    sizes = np.diff(np.append(starts, len(order)))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist()):
        yield Group(*_unpack(places[order[start:start + size]]))


def first_occurrences(parts: Sequence[Path], outputs: Sequence[Path], *, memory_bytes: int,
                      key_words: int = 1) -> int:
    """Finds the first occurrence of every key that occurs more than once.

    Writes for each part an `.npy` array of `MATCH` in the order of positions. The first
    occurrence is included, with its own place; the others are repeats. The files depend on the
    keys alone. Memory is bounded by `memory_bytes` even where a single key has more records.

    Returns:
        Number of repeats.
    """
    partials = [Path(f"{output}.{os.getpid()}.partial") for output in outputs]
    for partial in partials:
        partial.write_bytes(b"")
    for bounds in plan_ranges(parts, memory_bytes=memory_bytes, key_words=key_words):
        for matched, firsts in _match_range(parts, bounds, memory_bytes, key_words):
            _append(partials, matched, firsts)
    num_repeats = 0
    for part, (partial, output) in enumerate(zip(partials, outputs)):
        matches = np.fromfile(partial, MATCH)
        matches = matches[np.unique(matches["position"], return_index=True)[1]]
        num_repeats += int(np.count_nonzero(
            (matches["first_part"] != part) | (matches["first_position"] != matches["position"])))
        write_array(output, matches)
        partial.unlink()
    return num_repeats


def _match_range(parts: Sequence[Path], bounds: tuple[int, int], memory_bytes: int,
                 key_words: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields places of records that share a key, and the place of the first record of that key.

    A range of more records than fit is processed in lots; the first record of each key is kept
    from one lot to the next.
    """
    keys, places = np.zeros((0, key_words), np.uint64), np.zeros(0, np.uint64)
    for more_keys, more_places in _lots(_records(parts, bounds, key_words),
                                        memory_bytes // RECORD_BYTES):
        keys, places = np.concatenate([keys, more_keys]), np.concatenate([places, more_places])
        order, starts = _sort(keys)
        sizes = np.diff(np.append(starts, len(order)))
        # The sort is stable and places ascend, so the first of a run is the first occurrence.
        firsts = order[starts]
        shared = np.repeat(sizes > 1, sizes)
        yield places[order[shared]], np.repeat(places[firsts], sizes)[shared]
        firsts.sort()
        keys, places = keys[firsts], places[firsts]


def _lots(records: Iterator[tuple[np.ndarray, np.ndarray]],
          most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Joins pieces into lots of at least `most` records."""
    lot, held = [], 0
    for record in records:
        lot.append(record)
        held += len(record[1])
        if held >= most:
            yield tuple(np.concatenate(column) for column in zip(*lot))
            lot, held = [], 0
    if lot:
        yield tuple(np.concatenate(column) for column in zip(*lot))


def _append(partials: Sequence[Path], matched: np.ndarray, firsts: np.ndarray) -> None:
    order = np.argsort(matched, kind="stable")
    parts, positions = _unpack(matched[order])
    first_parts, first_positions = _unpack(firsts[order])
    rows = np.empty(len(parts), MATCH)
    rows["position"], rows["first_part"] = positions, first_parts
    rows["first_position"] = first_positions
    borders = np.searchsorted(parts, np.arange(len(partials) + 1))
    for partial, start, stop in zip(partials, borders[:-1].tolist(), borders[1:].tolist()):
        if stop > start:
            with open(partial, "ab") as file:
                rows[start:stop].tofile(file)


def _records(parts: Sequence[Path], bounds: tuple[int, int],
             key_words: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys [n, key_words] and packed places [n] of the records in a range, in order of places."""
    for part, path in enumerate(parts):
        for start, keys in _chunks(path, key_words):
            slices = _slice_of(keys)
            inside = np.flatnonzero((slices >= bounds[0]) & (slices < bounds[1]))
            if len(inside):
                places = (inside + start).astype(np.uint64)
                yield keys[inside], places | (np.uint64(part) << _POSITION_BITS)


def _chunks(path: Path, key_words: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first record, keys [n, key_words]) of an `.npy` file, chunk by chunk."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                       else np.lib.format.read_array_header_2_0)
        _, is_fortran, dtype = read_header(file)
        if dtype != np.uint64 or is_fortran:
            raise ValueError(f"{path}: keys are uint64 in C order, not {dtype}")
        start = 0
        while len(keys := np.fromfile(file, np.uint64, CHUNK_RECORDS * key_words)):
            yield start, keys.reshape(-1, key_words)
            start += len(keys) // key_words


def _slice_of(keys: np.ndarray) -> np.ndarray:
    return (keys[:, 0] >> np.uint64(64 - RANGE_BITS)).astype(np.int64)


def _sort(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stable order of keys [n, key_words], and where in it the runs of equal keys start."""
    order = np.argsort(keys[:, 0], kind="stable") if keys.shape[1] == 1 else \
        np.lexsort(keys.T[::-1])
    changes = np.zeros(len(order), bool)
    changes[:1] = True
    for column in keys.T:
        ranked = column[order]
        changes[1:] |= ranked[1:] != ranked[:-1]
    return order, np.flatnonzero(changes)


def _unpack(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = places >> _POSITION_BITS
    return parts.astype(np.int64), (places & ((np.uint64(1) << _POSITION_BITS) -
                                              np.uint64(1))).astype(np.int64)
