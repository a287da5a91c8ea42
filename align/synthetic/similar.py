"""Which of many texts is most similar to another one by ROUGE-L, without comparing with all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from eval.measures.matching import split_words
from eval.measures.overlap import rouge_l

ROUNDING = 1e-9


class SimilarityIndex:
    """Texts, among which those with a ROUGE-L (F1) of at least `threshold` are found exactly.

    Two texts of a and b words whose F1 is t or more have a common subsequence, and so at least
    t (a + b) / 2 words in common, as a and b differ by at most a factor of (2 - t) / t. Of any
    a - n + 1 words of a text, one that shares n of its a words holds one (the prefix filter of
    Chaudhuri et al., ICDE 2006). Each text is therefore looked up by its rarest words alone, in an
    index of words, and is compared with the texts that hold enough of them. An index of pairs of
    words would miss texts whose common words are not neighbours.

    Args:
        threshold: above 0, at most 1.
    """

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._texts: list[str] = []
        self._counts: list[Counter[str]] = []
        self._postings: dict[tuple[str, int], list[int]] = {}   # texts by a word's k-th occurrence

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """Adds a text."""
        words = split_words(text)
        for mark in _occurrences(words):
            self._postings.setdefault(mark, []).append(len(self._texts))
        self._texts.append(text)
        self._counts.append(Counter(words))

    def nearest(self, text: str) -> float:
        """The largest ROUGE-L of a text with any that was added, or 0 below the threshold."""
        return max((score for number in self._candidates(split_words(text))
                    if (score := rouge_l(text, self._texts[number]).f1) >= self._threshold),
                   default=0.0)

    def _candidates(self, words: Sequence[str]) -> list[int]:
        """Numbers of the texts that have enough words in common with a text."""
        size, counts = len(words), Counter(words)
        smallest = math.ceil(self._threshold * size / (2 - self._threshold) - ROUNDING)
        rare = sorted(_occurrences(words), key=lambda mark: len(self._postings.get(mark, ())))
        rare = rare[:size - self._least_common(size, smallest) + 1]
        hits = Counter(number for mark in rare for number in self._postings.get(mark, ()))
        found = []
        for number, num_hits in hits.items():
            other = self._counts[number]
            needed = self._least_common(size, other.total())
            if num_hits + size - len(rare) >= needed and (counts & other).total() >= needed:
                found.append(number)
        return found

    def _least_common(self, size: int, other_size: int) -> int:
        """Words that texts of two sizes have in common at least, at the threshold."""
        return math.ceil(self._threshold * (size + other_size) / 2 - ROUNDING)


def _occurrences(words: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with the number of equal ones before it."""
    before: Counter[str] = Counter()
    marks = []
    for word in words:
        marks.append((word, before[word]))
        before[word] += 1
    return marks
