"""Learns the merges of byte-level BPE from counts of pieces of text.

It chooses as rustbpe does: the pair that occurs most often, and of equal ones the pair of smaller
ids, so that both learn the same merges from the same text. rustbpe needs the text; counts can be
made shard by shard, on many machines, and added up.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np

NUM_BYTES = 256


def learn_merges(counts: Mapping[bytes, int], num_merges: int) -> list[tuple[int, int]]:
    """Merges in the order in which they are learned (arXiv 1508.07909, algorithm 1).

    Args:
        counts: how often each piece occurs; merges stay within pieces.

    Returns:
        The two ids of each merge, whose result has the id 256 plus its place. Fewer than
        `num_merges` where the pieces have no more pairs.
    """
    text, merges = _Text(counts), []
    while len(merges) < num_merges and (pair := text.most_frequent()) is not None:
        text.merge(pair, NUM_BYTES + len(merges))
        merges.append(pair)
    return merges


def spell_tokens(merges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of every token: the single bytes, then those of the merges."""
    tokens = [bytes([byte]) for byte in range(NUM_BYTES)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


class _Text:
    """All pieces in a row as linked lists of ids, and the places and counts of their pairs.

    The places T are bytes of the pieces; the last one stands for the ends of pieces. A pair begins
    at the place of its left id, which keeps that place when ids are merged. All places of a pair
    are found at once: when the larger of its ids is made.
    """

    def __init__(self, counts: Mapping[bytes, int]):
        sizes = np.fromiter(map(len, counts), np.int64, len(counts))
        self._end = end = int(sizes.sum())
        self._ids_T = np.append(np.frombuffer(b"".join(counts), np.uint8), -1).astype(np.int64)
        self._weight_T = np.append(
            np.repeat(np.fromiter(counts.values(), np.int64, len(counts)), sizes), 0)
        lasts = np.cumsum(sizes[sizes > 0]) - 1
        self._next_T = np.arange(1, end + 2)
        self._next_T[[*lasts, end]] = end
        self._before_T = np.arange(-1, end)
        self._before_T[[0, *lasts + 1]] = end
        self._counts: dict[int, int] = {}           # of pairs, by their codes
        self._places: dict[int, tuple[np.ndarray, int, int]] = {}   # an array, and the part
        self._heap: list[tuple[int, int]] = []
        self._add(np.flatnonzero(self._next_T < end))

    def most_frequent(self) -> tuple[int, int] | None:
        """The pair that occurs most often; None if there is none."""
        while self._heap:
            count, code = heapq.heappop(self._heap)
            left = self._counts[code]
            if left == -count:
                return code >> 32, code & 0xFFFFFFFF
            if left > 0:        # some were lost to other merges since it was pushed
                heapq.heappush(self._heap, (-left, code))
        return None

    def merge(self, pair: tuple[int, int], merged: int) -> None:
        """Replaces a pair by the id `merged` wherever it stands."""
        ids_T, next_T, before_T = self._ids_T, self._next_T, self._before_T
        places, first, stop = self._places.pop(pair[0] << 32 | pair[1])
        places = places[first:stop]
        places = places[(ids_T[places] == pair[0]) & (ids_T[next_T[places]] == pair[1])]
        if pair[0] == pair[1]:
            places = self._without_overlaps(places)
        rights, lefts = next_T[places], before_T[places]
        self._remove(np.concatenate([places, lefts, rights]))
        after = next_T[rights]
        ids_T[places], ids_T[rights] = merged, -1
        next_T[places], before_T[after] = after, places
        lefts = before_T[places]
        self._add(np.concatenate([lefts[lefts < self._end], places[after < self._end]]))

    def _without_overlaps(self, places: np.ndarray) -> np.ndarray:
        """Of the pairs of equal ids in a row every other one, from the left."""
        places = np.sort(places)
        follows = np.append(False, self._next_T[places[:-1]] == places[1:])
        firsts = np.flatnonzero(~follows)
        sizes = np.diff(firsts, append=len(places))
        return places[(np.arange(len(places)) - np.repeat(firsts, sizes)) % 2 == 0]

    def _remove(self, places: np.ndarray) -> None:
        """Takes pairs at places, which may be named twice, from the counts."""
        places = np.unique(places[self._next_T[places] < self._end])
        codes, sums, *_ = self._sum(places)
        for code, lost in zip(codes, sums):
            self._counts[code] -= lost

    def _add(self, places: np.ndarray) -> None:
        """Adds new pairs at places, which may be named twice."""
        codes, sums, places, firsts = self._sum(np.unique(places))
        self._counts.update(zip(codes, sums))
        for code, count, first, stop in zip(codes, sums, firsts, [*firsts[1:], len(places)]):
            self._places[code] = places, first, stop
            heapq.heappush(self._heap, (-count, code))

    def _sum(self, places: np.ndarray) -> tuple[list[int], list[int], np.ndarray, list[int]]:
        """Codes of pairs, their counts, the places in this order, and each pair's first one."""
        if not len(places):
            return [], [], places, []
        codes_P = self._ids_T[places] << 32 | self._ids_T[self._next_T[places]]
        order_P = codes_P.argsort(kind="stable")
        codes_P, places = codes_P[order_P], places[order_P]
        firsts = np.append(0, np.flatnonzero(codes_P[1:] != codes_P[:-1]) + 1)
        sums = np.add.reduceat(self._weight_T[places], firsts)
        return codes_P[firsts].tolist(), sums.tolist(), places, firsts.tolist()
