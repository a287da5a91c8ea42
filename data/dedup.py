"""Exact and near duplicates: shingles, MinHash, banded candidates, verified clusters.

Near duplicates are pairs whose sets of word 5-grams have a Jaccard similarity of at least a
threshold. MinHash with banding (arXiv:2406.17557, 14 bands of 8 rows) proposes them, and each
proposal is verified on the full sets before it counts.
"""

from __future__ import annotations

import dataclasses
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

MINHASH_CHUNK = 4096  # shingles hashed at once, so that the block stays in the cache

_WORD_TABLE = str.maketrans({**dict.fromkeys(string.punctuation, " "),
                             **dict.fromkeys(string.digits, "0")})


class _WordHashes(dict):
    """Hash of each word, remembered; emptied when it grows beyond a few hundred megabytes."""

    def __missing__(self, word: str) -> int:
        if len(self) > 2_000_000:
            self.clear()
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode())
        return value


_word_hashes = _WordHashes()


def exact_key(text: str) -> str:
    """32 hex digits that texts share when they differ in case and white space only."""
    return xxhash.xxh3_128_hexdigest(" ".join(text.lower().split()).encode())


def normalise_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and accents, every digit a 0."""
    if not text.isascii():
        text = "".join(char if char.isalnum() else " "
                       for char in unicodedata.normalize("NFKD", text)
                       if not unicodedata.combining(char))
    return text.lower().translate(_WORD_TABLE).split()


def shingle(text: str, num_words: int) -> np.ndarray:
    """Sorted distinct uint64 hashes of the word `num_words`-grams of `text`.

    A text of fewer words is one shingle; a text of none has no shingle.
    """
    words = normalise_words(text)
    if not words:
        return np.zeros(0, np.uint64)
    hashes = np.fromiter(map(_word_hashes.__getitem__, words), np.uint64, len(words))
    length = min(num_words, len(words))
    grams = np.zeros(len(words) - length + 1, np.uint64)
    for offset in range(length):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[offset:offset + len(grams)]
        grams ^= grams >> np.uint64(29)
    return np.unique(grams * np.uint64(0xBF58476D1CE4E5B9))


def minhash(shingles: np.ndarray, num_hashes: int, seed: int) -> np.ndarray:
    """The signature of a set of shingles: [n] uint64 -> [num_hashes] uint32.

    Two signatures agree in a place with the Jaccard similarity of their sets as probability.
    """
    key = np.random.default_rng(seed)
    factors = key.integers(0, 2**32, num_hashes, np.uint32) | np.uint32(1)
    masks = key.integers(0, 2**32, num_hashes, np.uint32)
    low = (shingles >> np.uint64(32)).astype(np.uint32)
    signature = np.full(num_hashes, 2**32 - 1, np.uint32)
    for start in range(0, len(low), MINHASH_CHUNK):
        hashed = (low[start:start + MINHASH_CHUNK] ^ masks[:, None]) * factors[:, None]
        hashed ^= hashed >> np.uint32(15)
        hashed *= np.uint32(0x2C1B3C6D)
        np.minimum(signature, hashed.min(axis=1), out=signature)
    return signature


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard similarity of two sorted arrays of distinct values; 0 when both are empty."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 0.0


def candidate_groups(signatures: np.ndarray, num_bands: int, rows_per_band: int) \
        -> Iterator[np.ndarray]:
    """Groups of documents that agree in a whole band, band by band, so that memory stays bounded.

    Args:
        signatures: [num_documents, num_bands * rows_per_band] uint32.

    Yields:
        Ascending indices of two or more documents.
    """
    for band in range(num_bands):
        keys = np.zeros(len(signatures), np.uint64)
        for row in range(band * rows_per_band, (band + 1) * rows_per_band):
            keys = (keys ^ signatures[:, row]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1
        for group in np.split(order, ends):
            if len(group) > 1:
                yield group


@dataclasses.dataclass
class Clusters:
    """Near-duplicate clusters, and how the candidates fared.

    Attributes:
        root: per document, the smallest index of its cluster.
        num_candidates: distinct pairs that were verified.
        num_accepted: pairs that were similar enough.
    """

    root: np.ndarray
    num_candidates: int
    num_accepted: int


def cluster(groups: Iterator[np.ndarray], num_documents: int,
            shingles_of: Callable[[int], np.ndarray], min_jaccard: float) -> Clusters:
    """Unites documents along verified pairs only.

    A pair whose documents are in one cluster already is not verified again: the clusters are the
    same as if it were.

    Args:
        groups: candidate groups; every pair within one is a candidate.
        shingles_of: sorted shingles of a document.
    """
    root = np.arange(num_documents)
    rejected: set[tuple[int, int]] = set()
    num_accepted = 0

    def find(at: int) -> int:
        while root[at] != at:
            root[at] = at = root[root[at]]
        return at

    for group in groups:
        members = group.tolist()
        for place, first in enumerate(members):
            for second in members[place + 1:]:
                low, high = sorted((find(first), find(second)))
                if low == high or (first, second) in rejected:
                    continue
                if jaccard(shingles_of(first), shingles_of(second)) < min_jaccard:
                    rejected.add((first, second))
                    continue
                root[high] = low
                num_accepted += 1
    root = np.array([find(at) for at in range(num_documents)], np.int64)
    return Clusters(root, num_accepted + len(rejected), num_accepted)


def choose_representatives(members: Sequence[int], shingles_of: Callable[[int], np.ndarray],
                           min_jaccard: float) -> Iterator[tuple[int, int, float]]:
    """Thins a cluster so that what goes is similar to what stays, and not only through a chain.

    Args:
        members: a cluster's documents, the best first.

    Yields:
        A document that goes, the one that represents it, and their Jaccard similarity, which is
        at least `min_jaccard`; it is below that between any two that stay.
    """
    staying: list[int] = []
    for member in members:
        for kept in staying:
            similarity = jaccard(shingles_of(member), shingles_of(kept))
            if similarity >= min_jaccard:
                yield member, kept, similarity
                break
        else:
            staying.append(member)


class HeldoutIndex:
    """Finds what a text shares with held-out documents, exactly.

    An inverted index over all their shingles: low similarities and one-sided containment are found
    with certainty, which banding cannot promise. Memory grows with the held-out set alone.

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
        """The held-out document that shares most with a document of these shingles.

        Returns:
            Its index (-1 when nothing is shared), the highest Jaccard similarity, and the highest
            share of a held-out document's shingles found in this one.
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
