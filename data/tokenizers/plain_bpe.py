"""Byte pair encoding in its plainest form: to read, and to hold faster trainers against.

docs/tokenizers.md explains it. It takes a time proportional to text times vocabulary, so that it
serves for a few kilobytes; `data.tokenizers.bpe` trains and runs real tokenizers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import regex

Pair = tuple[int, int]


def train(text: str, num_merges: int, pattern: str) -> list[Pair]:
    """The merges of a text, in order; the one at place i makes the id 256 + i (arXiv 1508.07909).

    Args:
        pattern: regular expression whose matches are the pieces of text; no merge crosses them.
    """
    pieces = [list(piece.encode()) for piece in regex.findall(pattern, text)]
    merges: list[Pair] = []
    for merged in range(256, 256 + num_merges):
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))  # of equal ones the smaller ids
        pieces = [merge(piece, best, merged) for piece in pieces]
        merges.append(best)
    return merges


def merge(ids: Sequence[int], pair: Pair, merged: int) -> list[int]:
    """The ids with every occurrence of a pair replaced, from the left."""
    result: list[int] = []
    for i in ids:
        if result and (result[-1], i) == pair:
            result[-1] = merged
        else:
            result.append(i)
    return result


def encode(text: str, merges: Sequence[Pair], pattern: str) -> list[int]:
    """The ids of a text: all merges, in the order in which they were learned."""
    ids: list[int] = []
    for piece in regex.findall(pattern, text):
        own = list(piece.encode())
        for place, pair in enumerate(merges):
            own = merge(own, pair, 256 + place)
        ids += own
    return ids
