"""What has been found of each item in a whole corpus, and which items count as contaminated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError
from data.contamination.index import searched_texts
from data.contamination.task_files import Item
from eval.contamination.corpus import Page
from eval.contamination.detect import MAX_TEXT_CHARS, Candidate, Detector
from eval.contamination.embed import Near


class Found(NamedTuple):
    """The best that a method found of an item.

    Attributes:
        value: see `eval.contamination.detect`.
        source: of the document.
        start, stop: words of the document: normalised ones, but between white space for
            `embedding`, and for `edit` in a window that this found.
        text: the beginning of these words.
    """

    value: float
    source: str
    start: int
    stop: int
    text: str


class Rule(NamedTuple):
    """When an item counts as contaminated: a method finds at least so much; 0: anything."""

    method: str
    at_least: float


# Those of `edit` and `embedding` find about 1 % of GSM8K items in its training questions
# (scripts/bench/contamination.py); both mistake other short programs for HumanEval's.
# Items of which more than 80 % of the tokens are matched are "dirty" and those of less than 20 %
# "clean" (Llama 2, arXiv 2307.09288, appendix A.6); there, too, runs have more than 10 tokens.
RULES = {
    "ngram_8": Rule("ngram_8", 0.0), "ngram_13": Rule("ngram_13", 0.0),
    "near": Rule("near", 0.0), "chars_50": Rule("chars_50", 0.0),
    "chars_50_drawn": Rule("chars_50_drawn", 0.0), "overlap_20": Rule("overlap_8", 0.2),
    "overlap_80": Rule("overlap_8", 0.8), "longest": Rule("longest", 11.0),
    "edit": Rule("edit", 0.5), "embedding": Rule("embedding", 0.77)}


def set_thresholds(thresholds: Mapping[str, float]) -> dict[str, Rule]:
    """`RULES` with other thresholds of some.

    Raises:
        UserError: there is no such rule.
    """
    for name in thresholds:
        if name not in RULES:
            raise UserError(f"--thresholds={name}", "is no rule",
                            f"choose among {', '.join(RULES)}")
    return {name: rule._replace(at_least=thresholds.get(name, rule.at_least))
            for name, rule in RULES.items()}


class Tally:
    """The best finds of each item; memory depends on the items alone.

    Attributes:
        best: of each item, by method.
        documents: in how many documents each item was found.
    """

    def __init__(self, detector: Detector):
        self._detector = detector
        self.best: list[dict[str, Found]] = [{} for _ in detector.items]
        self.documents = [0] * len(detector.items)
        self._covered: dict[int, np.ndarray] = {}

    def add(self, page: Page, candidates: Mapping[int, Candidate]) -> None:
        """Takes what `Detector.find` found in a document."""
        for number, candidate in candidates.items():
            self.documents[number] += 1
            covered = self._covered.setdefault(number, candidate.covered)
            covered |= candidate.covered
            for method, span in candidate.spans.items():
                self._note(number, method, Found(span.value, page.source, *span[1:]))
            share = float(covered.sum() / max(self._detector.num_words[number], 1))
            self.best[number]["overlap_8"] = self.best[number]["overlap_8"]._replace(value=share)

    def add_nearest(self, nearest: Sequence[Near]) -> None:
        """Takes the nearest windows by embedding, and their edit distances."""
        for number, (cosine, source, window) in enumerate(nearest):
            if source:
                stop = window.start + len(window.text.split())
                self._note(number, "embedding", Found(cosine, source, window.start, stop,
                                                      window.text[:MAX_TEXT_CHARS]))
                span = self._detector.edit_in(number, window.text)
                self._note(number, "edit", Found(span.value, source, window.start, stop,
                                                 span.text))

    def _note(self, number: int, method: str, found: Found) -> None:
        held = self.best[number].get(method)
        if held is None or found.value > held.value:
            self.best[number][method] = found

    def is_dirty(self, rules: Mapping[str, Rule]) -> dict[str, np.ndarray]:
        """Which items count as contaminated, by rule: [num_items] bool."""
        return {name: np.array([
            rule.method in best and best[rule.method].value >= rule.at_least
            for best in self.best], bool) for name, rule in rules.items()}


def item_row(item: Item, best: Mapping[str, Found], documents: int,
             rules: Mapping[str, Rule]) -> dict[str, Any]:
    """An item's line in the records."""
    return {"task": item.task, "item": item.number, "documents": documents,
            "overlap_class": overlap_class(best), "found_by": [
                name for name, rule in rules.items()
                if rule.method in best and best[rule.method].value >= rule.at_least],
            "is_searched": bool(searched_texts(item)),
            "found": {method: one._asdict() for method, one in best.items()},
            "text": "\n".join(item.fields)[:MAX_TEXT_CHARS]}


def overlap_class(best: Mapping[str, Found]) -> str:
    """clean, partly or dirty, by the share of words in matched 8-grams."""
    share = best["overlap_8"].value if "overlap_8" in best else 0.0
    return "clean" if share < 0.2 else "dirty" if share >= 0.8 else "partly"
