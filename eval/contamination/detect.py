"""What of benchmark items a corpus holds, by every method that needs no model.

    ngram_8, ngram_13   share of an item's n-grams in one document: the hits of curation's index
    near                curation's match of a paraphrase by its rare words; share of their weight
    chars_50            share of the substrings of 50 characters, spaces and symbols left out
    chars_50_drawn      the same, found by one of three random ones (GPT-4, arXiv 2303.08774)
    overlap_8           share of the item's words that lie in an 8-gram found anywhere in the corpus
                        (Llama 3, arXiv 2407.21783; tokens there are words here)
    longest             words of the longest run in common (ConTAM, arXiv 2411.03923)
    edit                1 less the normalised Levenshtein distance of the nearest passage

The last three are measured where one of the others points to a document.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.contamination.index import TaskIndex, searched_texts
from data.contamination.runs import BORDER, common_runs, item_words
from data.contamination.substrings import SubstringIndex
from data.contamination.task_files import Item
from data.dedup.words import hash_words, normalise_words
from eval.contamination.edit import find_nearest

NGRAM, LONG_NGRAM = 8, 13
MAX_TEXT_CHARS = 160        # of a passage that is shown


class Span(NamedTuple):
    """What a method found of an item in a document.

    Attributes:
        value: see the module.
        start, stop: normalised words of the document.
        text: the beginning of these words.
    """

    value: float
    start: int
    stop: int
    text: str = ""


@dataclasses.dataclass
class Candidate:
    """What a document holds of an item.

    Attributes:
        spans: by method.
        covered: the item's words in common 8-grams, [num_words] bool.
    """

    spans: dict[str, Span]
    covered: np.ndarray


class Detector:
    """Indexes of all items, which each document is compared with.

    Args:
        skipped: counts of rows without an item, for the report.
        seed: of the random substrings.
    """

    def __init__(self, items: Sequence[Item], *, skipped: Counter[str] | None = None,
                 seed: int = 0):
        self.items = items
        self._short = TaskIndex(items, ngram_words=NGRAM, near_overlap=1.0)
        self._long = TaskIndex(items, ngram_words=LONG_NGRAM, skipped=skipped)
        self._chars = SubstringIndex(items, seed=seed)
        self._words = [item_words(item) for item in items]
        self._numbers = {(item.task, item.number): number for number, item in enumerate(items)}
        self.num_words = np.array([np.sum(words != BORDER) for words in self._words])

    def find(self, text: str) -> dict[int, Candidate]:
        """What a document holds, by the item's number."""
        found: dict[int, dict[str, Span]] = {}
        hashes, _ = hash_words([text], keep_digits=True)

        def note(number: int, method: str, span: Span) -> None:
            found.setdefault(number, {})[method] = span

        for index, method in ((self._short, "ngram_8"), (self._long, "ngram_13")):
            for hit in index.find(text, hashes):
                note(self._numbers[hit.task, hit.item], "near" if hit.kind == "near" else method,
                     Span(hit.overlap, hit.start, hit.start + len(hit.text.split())))
        for one in self._chars.find(text):
            for method in ("chars_50", *["chars_50_drawn"] * one.is_drawn):
                note(one.item, method, Span(one.share, one.start, one.stop))
        if not found:
            return {}
        words = normalise_words(text, keep_digits=True)
        return {number: self._describe(number, spans, hashes, words)
                for number, spans in sorted(found.items())}

    def _describe(self, number: int, spans: dict[str, Span], hashes: np.ndarray,
                  words: Sequence[str]) -> Candidate:
        """Adds what is measured of a pair alone."""
        runs = common_runs(self._words[number], hashes)
        covered = runs.cover(len(self._words[number]), NGRAM)
        start, length = runs.longest()
        spans["longest"] = Span(length, start, start + length)
        place = max(spans.values(), key=lambda span: span.stop - span.start)
        spans["edit"] = self.edit_similarity(number, words, place.start, place.stop)
        share = float(covered.sum() / max(self.num_words[number], 1))
        spans["overlap_8"] = Span(share, place.start, place.stop)
        return Candidate({method: span._replace(
            text=" ".join(words[span.start:span.stop])[:MAX_TEXT_CHARS])
            for method, span in spans.items()}, covered)

    def edit_similarity(self, number: int, words: Sequence[str], start: int, stop: int) -> Span:
        """Of the nearest passage of normalised words around a place to one of the item's texts."""
        best = Span(0.0, start, stop)
        for text in searched_texts(self.items[number]):
            own = normalise_words(text, keep_digits=True)
            first = max(start - len(own), 0)
            around = words[first:stop + len(own)]
            pattern, passage = " ".join(own), " ".join(around)
            near = find_nearest(pattern, passage)
            before, inside = passage[:near.start], passage[near.start:near.stop]
            begin = first + before.count(" ")
            best = max(best, Span(1 - near.distance / len(pattern), begin,
                                  begin + len(inside.split())))
        return best

    def edit_in(self, number: int, passage: str) -> Span:
        """`edit_similarity` of a whole passage."""
        words = normalise_words(passage, keep_digits=True)
        span = self.edit_similarity(number, words, 0, len(words))
        return span._replace(text=" ".join(words[span.start:span.stop])[:MAX_TEXT_CHARS])

    def report(self) -> dict[str, object]:
        """What is searched for: as `TaskIndex.report`, of the 13-grams; and items without any
        substring."""
        return self._long.report() | {"without_substring": self._chars.num_short}
