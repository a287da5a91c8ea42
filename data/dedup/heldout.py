"""Overlap of training documents with held-out documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class HeldoutIndex:
    """Exact overlap of a text with held-out documents.

    An inverted index over all their shingles. Unlike banding, it also finds every low similarity
    and one-sided containment. Its memory depends on the size of the held-out set alone.

    Args:
        documents: sorted shingles of every held-out document.
    """

    def __init__(self, documents: Sequence[np.ndarray]):
        self._sizes = np.array([len(shingles) for shingles in documents], np.int64)
        owners = np.repeat(np.arange(len(documents)), self._sizes)
        hashes = np.concatenate(documents) if documents else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owners = hashes[order], owners[order]

    def overlap(self, shingles: np.ndarray) -> tuple[int, float, float]:
        """The held-out document with the largest overlap with the given shingles.

        Returns:
            Its index (-1 when nothing is shared), the highest Jaccard similarity, and the highest
            share of a held-out document's shingles that are among `shingles`.
        """
        first = np.searchsorted(self._hashes, shingles, "left")
        last = np.searchsorted(self._hashes, shingles, "right")
        hits = np.flatnonzero(last > first)
        if not len(hits):
            return -1, 0.0, 0.0
        places = np.concatenate([np.arange(first[hit], last[hit]) for hit in hits])
        shared = np.bincount(self._owners[places], minlength=len(self._sizes))
        similarity = shared / (self._sizes + len(shingles) - shared)
        contained = shared / np.maximum(self._sizes, 1)
        return int(contained.argmax()), float(similarity.max()), float(contained.max())
