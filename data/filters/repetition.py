"""Repeated n-grams of many documents at once (arXiv:2112.11446, table A1).

Published implementations count differently. The definitions here are those of
datatrove (`pipeline/filters/gopher_repetition_filter.py`), used for FineWeb:
    top n-gram: the most frequent one (the earliest of several; it may occur once). Counts its
        characters with single spaces between the words, times its occurrences.
    duplicate n-grams: scanned from left to right; for an n-gram that occurred before, its
        characters without spaces are counted and the scan continues after it. First occurrences do
        not count.
DCLM counts every occurrence and the union of covered words, Dolma every occurrence without regard
to overlap, RedPajama-V2 and DCLM ignore a top n-gram that occurs once. There is one difference from
datatrove: it identifies n-grams by their joined characters ("a bc" equals "ab c"), here they are
identified by their words.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TOP_SIZES = (2, 3, 4)
DUPLICATE_SIZES = (5, 6, 7, 8, 9, 10)


def count_repeated_chars(words: np.ndarray, chars: np.ndarray, ends: np.ndarray,
                         units_per_word: float = 1.0) -> dict[str, np.ndarray]:
    """Characters in repeated n-grams, per document.

    A repeated (n+1)-gram begins and ends with a repeated n-gram, so fewer places are examined as n
    grows.

    Args:
        words: numbers of the words of all documents, concatenated: [num_words].
        chars: characters of each word: [num_words].
        ends: end of each document: [num_documents], ascending.
        units_per_word: where the "words" are units of a script without spaces, how many of them
            make one: an n-gram is made of n times as many.

    Returns:
        ``top_2gram`` ... ``top_4gram`` and ``dup_5gram`` ... ``dup_10gram``, each [num_documents]
        int64.
    """
    counted = {}
    chars_before = np.concatenate([[0], np.cumsum(chars, dtype=np.int64)])
    top, duplicate = ({round(n * units_per_word): n for n in sizes}
                      for sizes in (TOP_SIZES, DUPLICATE_SIZES))
    for length, places, grams in _repeated_grams(words, ends, max(duplicate)):
        if length in top:
            n = top[length]
            counted[f"top_{n}gram"] = _top_chars(n, length, places, grams, chars_before, ends)
        if length in duplicate:
            counted[f"dup_{duplicate[length]}gram"] = _duplicate_chars(
                length, places, grams, chars_before, ends)
    return counted


def count_top_pair_chars(words: np.ndarray, chars: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Characters, without spaces, in all occurrences of each document's most frequent word pair.

    Of several the longest; 0 if no pair occurs twice. Arguments as above.
    """
    _, places, grams = next(_repeated_grams(words, ends, 2))
    covered = np.zeros(len(ends), np.int64)
    if len(places):
        heads, sizes = _group(grams, places)
        lengths = chars[heads] + chars[heads + 1]
        best = np.zeros(len(ends), np.int64)
        np.maximum.at(best, np.searchsorted(ends, heads, "right"), (sizes << 32) + lengths)
        covered = (best >> 32) * (best & (2**32 - 1))
    return covered


def _repeated_grams(words: np.ndarray, ends: np.ndarray, max_length: int) \
        -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For n = 2, 3, ..., `max_length`: ascending places of the n-grams that occur at least twice in
    their document, and a number for each, the same for equal n-grams of one document."""
    is_last = np.zeros(len(words) + 1, bool)
    is_last[ends - 1] = True
    places = np.flatnonzero(~is_last[:-1])
    document = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    key = (document[places] << 48) | (words[places].astype(np.int64) << 24) | words[places + 1]
    for n in range(2, max_length + 1):
        places, grams = _keep_repeated(places, key)
        yield n, places, grams
        follows = np.flatnonzero(np.diff(places) == 1)
        key = (grams[follows] << 32) | grams[follows + 1]
        places = places[follows]


def _keep_repeated(places: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places whose key occurs more than once, still ascending, and a dense number per key."""
    order = np.argsort(key, kind="stable")
    ranked = key[order]
    is_new = np.ones(len(ranked) + 1, bool)
    np.not_equal(ranked[1:], ranked[:-1], out=is_new[1:-1])
    repeated = ~(is_new[:-1] & is_new[1:])
    numbers = np.empty(len(key), np.int64)
    numbers[order] = np.where(repeated, np.cumsum(is_new[:-1]), 0)
    kept = np.flatnonzero(numbers)
    return places[kept], numbers[kept]


def _group(grams: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place and number of occurrences of each distinct n-gram."""
    order = np.argsort(grams, kind="stable")
    heads = np.flatnonzero(np.diff(grams[order], prepend=-1))
    return places[order[heads]], np.diff(heads, append=len(order))


def _top_chars(n: int, length: int, places: np.ndarray, grams: np.ndarray,
               chars_before: np.ndarray, ends: np.ndarray) -> np.ndarray:
    starts = np.concatenate([[0], ends[:-1]])
    first, counts = starts.copy(), np.ones(len(ends), np.int64)
    if len(places):
        begin, sizes = _group(grams, places)
        document = np.searchsorted(ends, begin, "right")
        best = np.full(len(ends), 1 << 40, np.int64)
        np.maximum.at(best, document, (sizes << 40) - begin)  # most frequent, then earliest
        is_repeated = best > 1 << 40
        counts[is_repeated] = -(-best[is_repeated] >> 40)
        first[is_repeated] = (counts[is_repeated] << 40) - best[is_repeated]
    fits = first + length <= ends
    first = np.where(fits, first, 0)
    chars = chars_before[np.minimum(first + length, len(chars_before) - 1)] - chars_before[first]
    return np.where(fits, (chars + n - 1) * counts, 0)


def _duplicate_chars(n: int, places: np.ndarray, grams: np.ndarray, chars_before: np.ndarray,
                     ends: np.ndarray) -> np.ndarray:
    counted, seen, free = [], set(), 0
    for index, (place, gram) in enumerate(zip(places.tolist(), grams.tolist())):
        if place < free:
            continue
        if gram in seen:
            counted.append(index)
            free = place + n
        else:
            seen.add(gram)
    begin = places[counted]
    document = np.searchsorted(ends, begin, "right")
    weights = chars_before[begin + n] - chars_before[begin]
    return np.bincount(document, weights, len(ends)).astype(np.int64)
