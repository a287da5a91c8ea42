"""Keys for the comparison of documents: exact keys, shingles, MinHash and band keys."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import xxhash

from data.dedup.words import hash_words, mix

BLOCK_SHINGLES = 1 << 14     # hashed at once, so that the block fits the cache

_STEP = np.uint64(0x9E3779B97F4A7C15)


def exact_key(text: str) -> str:
    """Hash of a text, 32 hex digits, that ignores case and the amount of white space."""
    return xxhash.xxh3_128_hexdigest(" ".join(text.lower().split()).encode())


def shingle(text: str, num_words: int) -> np.ndarray:
    """Sorted distinct uint64 hashes of the word `num_words`-grams of `text`.

    A text of fewer words has one shingle; an empty one has none.
    """
    return shingle_batch([text], num_words)[0]


def shingle_batch(texts: Sequence[str], num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """Shingles of many texts at once.

    Returns:
        shingles: [n] uint64, sorted and distinct within each text, text after text.
        offsets: [num_texts + 1] int64; text i has the shingles ``offsets[i]:offsets[i + 1]``.
    """
    words, offsets = hash_words(texts)
    parts = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        parts.append(_distinct(hash_grams(words[start:stop], min(num_words, stop - start))))
    sizes = [0, *map(len, parts)]
    return np.concatenate([np.zeros(0, np.uint64), *parts]), np.cumsum(sizes)


def hash_grams(words: np.ndarray, length: int) -> np.ndarray:
    """Hashes of all runs of `length` words: [n] uint64 -> [n - length + 1] uint64."""
    grams = np.zeros(max(len(words) - length + 1, 0) if length else 0, np.uint64)
    for offset in range(length):
        grams *= _STEP
        grams += words[offset:offset + len(grams)]
    return mix(grams)


def _distinct(values: np.ndarray) -> np.ndarray:
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def minhash_batch(shingles: np.ndarray, offsets: np.ndarray, num_hashes: int,
                  seed: int) -> np.ndarray:
    """Signatures of many documents: those of `shingle_batch` -> [num_documents, num_hashes] uint32.

    The probability that two signatures agree in a place is the Jaccard similarity of the documents'
    sets. The signature of a document without shingles is all ones.
    """
    factors, terms = _hash_functions(num_hashes, seed)
    low = (shingles >> np.uint64(32)).astype(np.uint32)
    signatures = np.full((len(offsets) - 1, num_hashes), 0xFFFFFFFF, np.uint32)
    for start in range(0, len(low), BLOCK_SHINGLES):
        block = low[start:start + BLOCK_SHINGLES]
        hashed = np.empty_like(block)
        # Documents with a shingle in this block; `reduceat` does not accept empty segments.
        borders = np.clip(offsets - start, 0, len(block))
        members = np.flatnonzero(borders[1:] > borders[:-1])
        smallest = np.empty((num_hashes, len(members)), np.uint32)
        for place in range(num_hashes):
            np.multiply(block, factors[place], out=hashed)
            hashed += terms[place]
            np.minimum.reduceat(hashed, borders[members], out=smallest[place])
        signatures[members] = np.minimum(signatures[members], smallest.T)
    return signatures


@functools.cache
def _hash_functions(num_hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random affine maps modulo 2**32; their inputs, the shingles, are well mixed."""
    key = np.random.default_rng(seed)
    factors = key.integers(0, 2**32, num_hashes, np.uint32) | np.uint32(1)
    return factors, key.integers(0, 2**32, num_hashes, np.uint32)


def band_keys(signatures: np.ndarray, num_bands: int, rows_per_band: int) -> np.ndarray:
    """A key for each band: documents that share one are candidates.

    Args:
        signatures: [num_documents, num_bands * rows_per_band] uint32.

    Returns:
        [num_documents, num_bands] uint64; keys of different bands are equal only by chance.
    """
    rows = signatures.reshape(len(signatures), num_bands, rows_per_band)
    keys = np.tile(np.arange(num_bands, dtype=np.uint64), (len(signatures), 1))
    for row in range(rows_per_band):
        keys = mix(keys * _STEP + rows[:, :, row])
    return keys
