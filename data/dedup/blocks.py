"""Lines shared by documents: blocks that occurred before, and a site's headers and footers.

Both are found by comparing hashes of lines over the whole corpus, one unit's keys at a time, and
removed by line number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
EDGE_LINES = 12     # non-blank lines at either end of a page that may be header or footer
EDGE_DTYPE = np.dtype([("site", "<u8"), ("line", "<u8")])


def hash_lines(text: str) -> np.ndarray:
    """One uint64 per line of `text`, of its stripped form; blank lines are 0."""
    lines = text.split("\n")
    return np.fromiter((xxhash.xxh3_64_intdigest(line.strip().encode()) if line.strip() else 0
                        for line in lines), np.uint64, len(lines))


def hash_runs(values: np.ndarray, length: int) -> np.ndarray:
    """Hash of each run of `length` consecutive values: [n] -> [n - length + 1], both uint64."""
    if len(values) < length:
        return np.zeros(0, np.uint64)
    hashed = np.zeros(len(values) - length + 1, np.uint64)
    for offset in range(length):
        hashed = hashed * MULTIPLIER + values[offset:offset + len(hashed)]
        hashed ^= hashed >> np.uint64(29)
    return hashed


def block_keys(measured: str | Path, rows: Sequence[int], num_lines: int) -> np.ndarray:
    """Keys of all blocks of a unit: runs of `num_lines` non-blank lines of one document.

    Args:
        measured: Parquet file with a column `line_hashes`.
        rows: its remaining documents, ascending.

    Returns:
        [num_blocks] uint64; blocks are numbered over all documents of the unit.
    """
    keys = [hash_runs(hashes[hashes != 0], num_lines) for _, hashes in _line_hashes(measured, rows)]
    return np.concatenate([np.zeros(0, np.uint64), *keys])


def mark_blocks(measured: str | Path, rows: Sequence[int], num_lines: int,
                repeats: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Marks the lines of every block that repeats an earlier one.

    Args:
        repeats: numbers, as in `block_keys`, of the blocks that occurred before. It must not
            contain a block that overlaps its first occurrence, which is kept whole.

    Yields:
        Row, and a boolean per line: True for lines to remove.
    """
    start = 0
    for row, hashes in _line_hashes(measured, rows):
        filled = np.flatnonzero(hashes)
        num_blocks = max(len(filled) - num_lines + 1, 0)
        first, last = np.searchsorted(repeats, [start, start + num_blocks])
        mark = np.zeros(len(hashes), bool)
        for offset in range(num_lines if last > first else 0):
            mark[filled[repeats[first:last] - start + offset]] = True
        start += num_blocks
        yield row, mark


def edge_keys(measured: str | Path, rows: Sequence[int]) -> np.ndarray:
    """Distinct lines at both ends of each page, with its site: `EDGE_DTYPE` records.

    The line 0 represents the page itself; its count is the number of the site's pages.
    """
    sites = pq.read_table(measured, columns=["site"])["site"]
    edges = []
    for row, hashes in _line_hashes(measured, rows):
        if site := sites[row].as_py():
            filled = hashes[hashes != 0]
            lines = np.unique(np.concatenate(
                [np.zeros(1, np.uint64), filled[:EDGE_LINES], filled[-EDGE_LINES:]]))
            records = np.zeros(len(lines), EDGE_DTYPE)
            records["site"], records["line"] = site_key(site), lines
            edges.append(records)
    return np.concatenate([np.zeros(0, EDGE_DTYPE), *edges])


def site_key(site: str) -> int:
    """64-bit hash of a host name."""
    return xxhash.xxh3_64_intdigest(site.encode())


def find_boilerplate(edges: Sequence[Path], min_pages: int, min_frac: float,
                     num_ranges: int) -> np.ndarray:
    """Lines at the ends of many pages of one site.

    Args:
        edges: files of `edge_keys`, one per unit.
        min_pages: minimum number of the site's pages with the line.
        min_frac: minimum share of the site's pages with the line.
        num_ranges: passes over the files, each over a range of sites; more take less memory.

    Returns:
        Sorted `boilerplate_key`s.
    """
    keys = [np.zeros(0, np.uint64)]
    for number in range(num_ranges):
        records = np.concatenate([np.zeros(0, EDGE_DTYPE)] + [
            _in_range(np.load(path, mmap_mode="r"), number, num_ranges) for path in edges])
        distinct, pages = np.unique(records, return_counts=True)
        _, first, of_site = np.unique(distinct["site"], return_index=True, return_inverse=True)
        # The first record of a site is line 0, which counts its pages.
        least = np.maximum(min_pages, min_frac * pages[first])[of_site]
        common = distinct[(pages >= least) & (distinct["line"] != 0)]
        keys.append(boilerplate_key(common["site"], common["line"]))
    return np.unique(np.concatenate(keys))


def boilerplate_key(site: int | np.ndarray, lines: np.ndarray) -> np.ndarray:
    """One hash for a line of a site."""
    hashed = lines * MULTIPLIER + np.asarray(site, np.uint64)
    return hashed ^ (hashed >> np.uint64(29))


def mark_edges(hashes: np.ndarray, site: str, boilerplate: np.ndarray) -> np.ndarray:
    """Marks the runs of boilerplate at both ends of a page.

    Args:
        hashes: the page's `hash_lines`.
        site: its host name.
        boilerplate: of `find_boilerplate`.

    Returns:
        A boolean per line. A page of boilerplate alone keeps its lines: they are its content.
    """
    filled = np.flatnonzero(hashes)
    keys = boilerplate_key(site_key(site), hashes[filled])
    places = np.minimum(np.searchsorted(boilerplate, keys), max(len(boilerplate) - 1, 0))
    is_common = boilerplate[places] == keys if len(boilerplate) else np.zeros(len(keys), bool)
    mark = np.zeros(len(hashes), bool)
    own = np.flatnonzero(~is_common)
    if len(own):
        head, tail = min(own[0], EDGE_LINES), max(own[-1] + 1, len(filled) - EDGE_LINES)
        mark[filled[:head]] = mark[filled[tail:]] = True
    return mark


def drop_lines(text: str, mark: Sequence[bool]) -> str:
    """`text` without its marked lines; successive blank lines become one."""
    kept, blank = [], True
    for line, is_marked in zip(text.split("\n"), mark, strict=True):
        if is_marked or (blank and not line.strip()):
            continue
        blank = not line.strip()
        kept.append(line)
    return "\n".join(kept).rstrip()


def _in_range(records: np.ndarray, number: int, num_ranges: int) -> np.ndarray:
    return records[records["site"] % np.uint64(num_ranges) == number]


def _line_hashes(measured: str | Path, rows: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Line hashes of the given rows; one batch of the file is in memory at a time."""
    wanted, first = np.asarray(rows), 0
    with pq.ParquetFile(measured) as file:
        for batch in file.iter_batches(1024, columns=["line_hashes"]):
            column = batch.column(0)
            offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
            inside = wanted[(wanted >= first) & (wanted < first + len(column))]
            for row in inside.tolist():
                yield row, values[offsets[row - first]:offsets[row - first + 1]]
            first += len(column)
