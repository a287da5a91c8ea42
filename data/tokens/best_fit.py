"""Best-fit packing: assigns pieces of documents to rows such that few documents are cut.

Documents no longer than a row are packed whole; longer ones are first cut into rows, and the rest
is packed like a document, by best-fit decreasing (arXiv 2404.10830) within windows of documents,
which bound the memory. Pieces of one length are equivalent, so the search is over lengths, not
pieces (as in arXiv 2107.02027), and costs little more than sorting them.

A piece of n inputs covers n + 1 tokens, the last of which is only a target. Every token but the
first of a document is therefore predicted exactly once.
"""

from __future__ import annotations

import bisect
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PIECE = np.dtype([("start", "<i8"), ("length", "<i4")])  # first token in the file; number of inputs
WINDOW_DOCUMENTS = 2**18


def open_index(ends: np.ndarray, row_length: int,
               stored: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a token file.

    Args:
        ends: end of each of its documents.
        stored: name without suffix of two files, ``.pieces`` and ``.rows``, which the first call
            writes and all memory-map. They may be deleted at any time; concurrent processes write
            the same bytes. None holds the rows in memory.

    Returns:
        Pieces of all rows, of type `PIECE`; and int64, the end of each row among them.
    """
    if stored is None:
        pieces, row_ends = zip(*_pack_windows(ends, row_length))
        return np.concatenate(pieces), np.concatenate(row_ends)
    files = stored.with_name(f"{stored.name}.pieces"), stored.with_name(f"{stored.name}.rows")
    if not files[1].exists():  # renamed into place last
        _write_index(files, ends, row_length)
    return np.memmap(files[0], PIECE, mode="r"), np.memmap(files[1], "<i8", mode="r")


def cut(starts: np.ndarray, ends: np.ndarray, row_length: int) -> np.ndarray:
    """Cuts documents into pieces of at most `row_length` inputs, in order; type `PIECE`."""
    num_inputs = ends - starts - 1
    num_pieces = -(-num_inputs // row_length)
    document = np.repeat(np.arange(len(starts)), num_pieces)
    before = (np.arange(len(document)) - (np.cumsum(num_pieces) - num_pieces)[document]) \
        * row_length  # inputs of the document in earlier pieces
    pieces = np.empty(len(document), PIECE)
    pieces["start"] = starts[document] + before
    pieces["length"] = np.minimum(num_inputs[document] - before, row_length)
    return pieces


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Packs by best-fit decreasing: each piece, longest first, goes into the fullest row that fits.

    Args:
        lengths: of the pieces, from 1 to `capacity`.

    Returns:
        The row of each piece; rows are numbered from 0 and none is empty.
    """
    waiting = np.argsort(-lengths, kind="stable")  # pieces without a row, longest first
    row_of = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # rows by their free inputs
    rooms: list[int] = []                        # the keys of open_rows, sorted
    num_rows = 0

    def reopen(rows: np.ndarray, room: int) -> None:
        if len(rows) and room:
            if room not in open_rows:
                bisect.insort(rooms, room)
            open_rows.setdefault(room, []).append(rows)

    distinct, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist()):
        while count:
            fullest = bisect.bisect_left(rooms, length)
            if fullest < len(rooms):
                room = rooms.pop(fullest)
                rows = np.concatenate(open_rows.pop(room))
            else:
                room = capacity
                num_new = -(-count // (capacity // length))
                rows = np.arange(num_rows, num_rows + num_new)
                num_rows += num_new
            # The fullest row remains so until no further piece fits, so it is filled at once.
            each = room // length
            num_placed = min(count, each * len(rows))
            num_full, rest = divmod(num_placed, each)
            row_of[waiting[:num_placed]] = np.repeat(rows, each)[:num_placed]
            waiting, count = waiting[num_placed:], count - num_placed
            reopen(rows[:num_full], room - each * length)
            reopen(rows[num_full:num_full + bool(rest)], room - rest * length)
            reopen(rows[num_full + bool(rest):], room)
    return row_of


def _pack_windows(ends: np.ndarray, row_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each window of documents its pieces, in the order of their rows, and the rows' ends."""
    num_pieces = 0
    for first in range(0, len(ends), WINDOW_DOCUMENTS):
        picked = ends[first:first + WINDOW_DOCUMENTS]
        pieces = cut(np.r_[ends[first - 1] if first else 0, picked[:-1]], picked, row_length)
        row_of = best_fit(pieces["length"], row_length)
        yield (pieces[np.argsort(row_of, kind="stable")],
               (num_pieces + np.cumsum(np.bincount(row_of))).astype("<i8"))
        num_pieces += len(pieces)


def _write_index(files: tuple[Path, Path], ends: np.ndarray, row_length: int) -> None:
    files[0].parent.mkdir(parents=True, exist_ok=True)
    process = f"{socket.gethostname()}-{os.getpid()}"
    made = [path.with_name(f".{path.name}.{process}.tmp") for path in files]
    with open(made[0], "wb") as pieces_out, open(made[1], "wb") as rows_out:
        for pieces, row_ends in _pack_windows(ends, row_length):
            pieces_out.write(pieces)
            rows_out.write(row_ends)
    for path, final in zip(made, files):
        os.replace(path, final)
