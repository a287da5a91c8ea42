"""Runs of words that a benchmark item and a document have in common, and what they cover."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data.contamination.index import searched_texts
from data.contamination.task_files import Item
from data.dedup.shingles import hash_grams
from data.dedup.words import hash_words

MIN_RUN = 3         # words; shorter runs are in any two texts
BORDER = np.uint64(0)       # between fields, so that no run leads across


class Runs(NamedTuple):
    """Successive words that occur in both texts, in arrays of equal length.

    Attributes:
        document, item: the first word of each run in either text.
        lengths: in words.
    """

    document: np.ndarray
    item: np.ndarray
    lengths: np.ndarray

    def longest(self) -> tuple[int, int]:
        """First word in the document, and length, of the longest; (0, 0) without any."""
        if not len(self.lengths):
            return 0, 0
        best = int(np.argmax(self.lengths))
        return int(self.document[best]), int(self.lengths[best])

    def cover(self, num_words: int, min_words: int) -> np.ndarray:
        """Which of the item's words lie in a run of at least `min_words`: [num_words] bool."""
        edges = np.zeros(num_words + 1, np.int64)
        long = self.lengths >= min_words
        np.add.at(edges, self.item[long], 1)
        np.add.at(edges, self.item[long] + self.lengths[long], -1)
        return np.cumsum(edges[:-1]) > 0


def item_words(item: Item) -> np.ndarray:
    """Hashes of the words of the item's searched texts, `BORDER` between them: [n] uint64."""
    words, offsets = hash_words(searched_texts(item), keep_digits=True)
    return np.insert(words, offsets[1:-1], BORDER)


def common_runs(item: np.ndarray, document: np.ndarray, min_words: int = MIN_RUN) -> Runs:
    """All maximal runs of at least `min_words` words that an item and a document share.

    Args:
        item: hashes of `item_words`.
        document: hashes of the document's words.
    """
    item_grams, grams = hash_grams(item, min_words), hash_grams(document, min_words)
    order = np.argsort(item_grams, kind="stable")
    first = np.searchsorted(item_grams[order], grams, "left")
    counts = np.searchsorted(item_grams[order], grams, "right") - first
    places = np.repeat(np.arange(len(grams)), counts)
    entries = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    partners = order[np.repeat(first, counts) + entries]
    clear = ~np.convolve(item == BORDER, np.ones(min_words, int), "valid").astype(bool) \
        if len(item_grams) else np.zeros(0, bool)
    places, partners = places[clear[partners]], partners[clear[partners]]
    # Successive matches on one diagonal are one run.
    order = np.lexsort((places, places - partners))
    places, partners = places[order], partners[order]
    begins = np.flatnonzero((np.diff(places, prepend=-2) != 1)
                            | (np.diff(partners, prepend=-2) != 1))
    lengths = np.diff(np.append(begins, len(places))) + min_words - 1
    return Runs(places[begins], partners[begins], lengths)
