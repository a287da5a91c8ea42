"""Best-fit packing: which pieces of documents share a row, so that hardly a document is cut.

Documents no longer than a row are packed whole; longer ones are cut into rows first and their
rest is packed like a document: best-fit decreasing (arXiv 2404.10830) within windows of
documents, which bound the memory. Pieces of one length are alike, so the search goes over lengths
and not over pieces (as in arXiv 2107.02027), and costs little more than sorting them.

A piece of n inputs covers n + 1 tokens, the last of which is only a target. Thus every token but
a document's first is predicted exactly once, and no row spends an input on the last one.
"""

from __future__ import annotations

import bisect
import itertools
import os
from pathlib import Path

import numpy as np

PIECE = np.dtype([("start", "<i8"), ("length", "<i4")])  # its first token in the file; its inputs
WINDOW_DOCUMENTS = 2**18


def open_index(stem: Path, ends: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a token file, packed at the first call and memory-mapped ever after.

    They are kept beside the tokens in ``{stem}.best_fit-{row_length}.pieces`` and ``.rows``, and
    may be deleted at any time. Processes that build them at once write the same bytes.

    Args:
        stem: the token file without its suffix.
        ends: where each of its documents ends.

    Returns:
        Pieces of all rows, of type `PIECE`; and int64, where each row ends among them.
    """
    pieces_file = stem.with_name(f"{stem.name}.best_fit-{row_length}.pieces")
    rows_file = pieces_file.with_suffix(".rows")
    if not rows_file.exists():  # it is renamed into place last
        _write_index(pieces_file, rows_file, ends, row_length)
    return np.memmap(pieces_file, PIECE, mode="r"), np.memmap(rows_file, "<i8", mode="r")


def cut(starts: np.ndarray, ends: np.ndarray, row_length: int) -> np.ndarray:
    """Cuts documents into pieces of at most `row_length` inputs, in order; type `PIECE`."""
    num_inputs = ends - starts - 1
    num_pieces = -(-num_inputs // row_length)
    document = np.repeat(np.arange(len(starts)), num_pieces)
    before = (np.arange(len(document)) - (np.cumsum(num_pieces) - num_pieces)[document]) \
        * row_length  # inputs of the document that earlier pieces hold
    pieces = np.empty(len(document), PIECE)
    pieces["start"] = starts[document] + before
    pieces["length"] = np.minimum(num_inputs[document] - before, row_length)
    return pieces


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Packs by best-fit decreasing: each piece, longest first, goes where it leaves least room.

    Args:
        lengths: of the pieces, from 1 to `capacity`.

    Returns:
        The row of each piece; rows are numbered from 0 and none is empty.
    """
    waiting = np.argsort(-lengths, kind="stable")  # pieces without a row, longest first
    row_of = np.empty(len(lengths), np.int64)
    open_rows: dict[int, list[np.ndarray]] = {}  # rows by the room left in them
    rooms: list[int] = []                        # the keys of open_rows, sorted
    num_rows = 0

    def put_back(rows: np.ndarray, room: int) -> None:
        if len(rows) and room:
            if room not in open_rows:
                bisect.insort(rooms, room)
            open_rows.setdefault(room, []).append(rows)

    distinct, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist()):
        while count:
            tightest = bisect.bisect_left(rooms, length)
            if tightest < len(rooms):
                room = rooms.pop(tightest)
                rows = np.concatenate(open_rows.pop(room))
            else:
                room = capacity
                num_new = -(-count // (capacity // length))
                rows = np.arange(num_rows, num_rows + num_new)
                num_rows += num_new
            # The tightest row stays the tightest until no further piece fits: fill it up.
            each = room // length
            num_placed = min(count, each * len(rows))
            num_full, rest = divmod(num_placed, each)
            row_of[waiting[:num_placed]] = np.repeat(rows, each)[:num_placed]
            waiting, count = waiting[num_placed:], count - num_placed
            put_back(rows[:num_full], room - each * length)
            put_back(rows[num_full:num_full + bool(rest)], room - rest * length)
            put_back(rows[num_full + bool(rest):], room)
    return row_of


def _write_index(pieces_file: Path, rows_file: Path, ends: np.ndarray, row_length: int) -> None:
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp")
                 for path in (pieces_file, rows_file)]
    num_pieces = 0
    with open(temporary[0], "wb") as pieces_out, open(temporary[1], "wb") as rows_out:
        for first, stop in itertools.pairwise(
                [*range(0, len(ends), WINDOW_DOCUMENTS), len(ends)]):
            starts = np.r_[ends[first - 1] if first else 0, ends[first:stop - 1]]
            pieces = cut(starts, ends[first:stop], row_length)
            row_of = best_fit(pieces["length"], row_length)
            pieces_out.write(pieces[np.argsort(row_of, kind="stable")])
            rows_out.write((num_pieces + np.cumsum(np.bincount(row_of))).astype("<i8"))
            num_pieces += len(pieces)
    for made, path in zip(temporary, (pieces_file, rows_file)):
        os.replace(made, path)
