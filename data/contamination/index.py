"""Decontamination: finds the items of benchmarks in training documents.

Two kinds of match. *Exact*: the document contains `ngram_words` successive words of an item (the
13-grams of GPT-3, arXiv:2005.14165, appendix C), or all of a shorter text. *Near*: a paraphrase of
the item, most of whose rare words occur close together (see `data.contamination.word_overlap`).

Words of a template are no evidence. Items of one task share instructions and frames with slots
("How many {things} does {name} have left?"), which innocent documents contain too. A pair of
successive words in more than `MAX_SHARE` of a task's items belongs to its template. A run of words
counts by itself if it has at least as many other pairs as `MIN_WORDS` words have; a text without
such a run is found where all its runs occur. Near matches ignore words within three successive
ones that are shared likewise, and words in more than half of the items.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from core.errors import UserError
from data.contamination.task_files import Item, find_files, read_items
from data.contamination.word_overlap import WordOverlap
from data.dedup.shingles import hash_grams
from data.dedup.words import hash_words, normalise_words

MIN_WORDS = 8           # minimum length of a match, as in GPT-3
MAX_SHARE = 0.05        # of a task's items: successive words in more of them are of a template,
MAX_WORD_SHARE = 0.5    # as is a single word in more than this share
SLOTS_PER_KEY = 8       # size of the table that rejects most absent n-grams


@dataclasses.dataclass(frozen=True)
class Hit:
    """An item that occurs in a document.

    Attributes:
        task, item: name of the task, and row of the item in its file.
        kind: ``ngram`` (a run of words), ``whole`` (all of a short text) or ``near``.
        overlap: share of the text's n-grams in the document; for a near match, of the weight of
            its rare words.
        text: the matching words of the document, normalised.
        start: the number of the first of them among the document's words.
    """

    task: str
    item: int
    kind: str
    overlap: float
    text: str
    start: int


def load_tasks(paths: Sequence[str | Path], fields: Sequence[str] = (), *, ngram_words: int = 13,
               near_overlap: float = 0.6, max_items: int = 10) -> TaskIndex:
    """Indexes task files; see `TaskIndex`, and `task_files.read_items` for formats.

    Raises:
        UserError: a file is unreadable or has no item to search for, or a parameter is out of
            range.
    """
    skipped: Counter[str] = Counter()
    items = [item for path in find_files(paths) for item in read_items(path, fields, skipped)]
    return TaskIndex(items, ngram_words=ngram_words, near_overlap=near_overlap,
                     max_items=max_items, skipped=skipped)


def searched_texts(item: Item) -> list[str]:
    """The fields that are searched for, each by itself: those of at least `MIN_WORDS` words, or all
    fields joined where none has as many; none of an item that is still shorter."""
    long = [text for text in item.fields if len(normalise_words(text)) >= MIN_WORDS]
    whole = "\n".join(item.fields)
    return long or [whole] * (len(normalise_words(whole)) >= MIN_WORDS)


class TaskIndex:
    """Index of the n-grams of all items. Its memory depends on the size of the task files alone.

    Each field of an item is matched separately, since a document may contain a question without
    its answers. When all fields have fewer than `MIN_WORDS` words they are joined; an item that is
    still shorter is not searched for and is reported as ``too_short``, one that consists of its
    task's template as ``template``.

    Args:
        ngram_words: words of an exact match, 8 to 50.
        near_overlap: share of the weight of a text's rare words required for a near match; 1 or
            more disables near matches.
        max_items: n-grams in more items than this (shared passages) are not matched. Their
            number, with those of templates, is reported.
        skipped: counts of rows that could not be read, for the report.

    Raises:
        UserError: no text of a task can be searched for, or `ngram_words` is out of range.
    """

    def __init__(self, items: Sequence[Item], *, ngram_words: int = 13, near_overlap: float = 0.6,
                 max_items: int = 10, skipped: Counter[str] | None = None):
        if not MIN_WORDS <= ngram_words <= 50:
            raise UserError(f"contamination.ngram_words={ngram_words}",
                            f"fewer than {MIN_WORDS} words match by chance, more than 50 match "
                            "nothing", "set it to 13")
        self._items, self._ngram_words, self._near_overlap = items, ngram_words, near_overlap
        self._skipped = Counter(skipped or {})
        texts, owners = self._choose_texts(items)
        words, offsets = hash_words(texts, keep_digits=True)
        self._owner, self._num_words = np.array(owners, np.int64), np.diff(offsets)
        lengths = np.minimum(self._num_words, ngram_words)
        text_of = np.repeat(np.arange(len(texts)), self._num_words)
        templates = _Templates(items, self._owner, text_of)
        inside, shared = templates.runs(words, 2)
        own_pairs = inside & ~shared
        self._check_texts(np.bincount(text_of[own_pairs], minlength=len(texts)) > 0)
        self._exact = {
            length: _Postings(words, offsets, lengths == length, length, own_pairs,
                              self._owner[text_of], max_items)
            for length in np.unique(lengths).tolist()}
        self._openings = KeySet(hash_grams(words, MIN_WORDS))
        near = self._num_words >= ngram_words
        self._near_texts = np.flatnonzero(near)
        is_near = np.repeat(near, self._num_words)
        self._near = WordOverlap(
            words[is_near], np.concatenate([[0], np.cumsum(self._num_words[near])]), near_overlap,
            ~templates.cover(words)[is_near]) if near_overlap < 1 else None

    def _check_texts(self, is_searchable: np.ndarray) -> None:
        """Raises `UserError` for a task of which nothing is searched for."""
        searched = {int(owner) for owner in self._owner[is_searchable]}
        self._skipped["template"] += len(set(self._owner.tolist()) - searched)
        tasks = {self._items[owner].task for owner in searched}
        for item in self._items:
            if item.task not in tasks:
                raise UserError(
                    f"contamination.tasks: {item.path or item.task}",
                    f"none of its items can be searched for: in all, the fields "
                    f"{', '.join(item.names)} hold fewer than {MIN_WORDS} words or those of a "
                    f"template, e.g. {' | '.join(item.fields)[:60]!r} (other fields: "
                    f"{', '.join(item.others) or 'none'})",
                    "name other fields, or leave this file out")

    def _choose_texts(self, items: Sequence[Item]) -> tuple[list[str], list[int]]:
        """Texts to match, and the index of the item of each."""
        texts, owners = [], []
        for number, item in enumerate(items):
            long = searched_texts(item)
            self._skipped["too_short"] += not long
            texts += long
            owners += [number] * len(long)
        return texts, owners

    def find(self, text: str, words: np.ndarray | None = None) -> list[Hit]:
        """The items that occur in a text, one hit each, in the order of the task files.

        Args:
            words: its `hash_words`, digits kept, where they are known already.
        """
        if words is None:
            words, _ = hash_words([text], keep_digits=True)
        best: dict[int, tuple[float, str, int, int]] = {}
        # Every exact match begins with MIN_WORDS words that begin one of the texts' n-grams.
        begins, _ = self._openings.find(hash_grams(words, MIN_WORDS))
        for length, postings in self._exact.items() if len(begins) else ():
            kind = "ngram" if length == self._ngram_words else "whole"
            for passage, places, overlap in postings.find(words):
                start, stop = _longest_run(places)
                self._note(best, passage, (overlap, kind, start, stop + length))
        exact = set(best)
        for passage, start, stop, overlap in self._near.find(words) if self._near else ():
            passage = int(self._near_texts[passage])
            if int(self._owner[passage]) not in exact:
                self._note(best, passage, (overlap, "near", start, stop))
        if not best:
            return []
        document_words = normalise_words(text, keep_digits=True)
        return [Hit(self._items[owner].task, self._items[owner].number, kind, round(overlap, 4),
                    " ".join(document_words[start:stop]), start)
                for owner, (overlap, kind, start, stop) in sorted(best.items())]

    def _note(self, best: dict[int, tuple], passage: int, match: tuple) -> None:
        """Keeps the best match of each item."""
        owner = int(self._owner[passage])
        best[owner] = max(best.get(owner, match), match)

    def report(self) -> dict[str, object]:
        """Items per task, number of texts and n-grams, and skipped items by reason."""
        tasks = Counter(item.task for item in self._items)
        postings = self._exact.values()
        return {"tasks": dict(tasks), "texts": len(self._owner),
                "ngrams": sum(len(table.keys) for table in postings),
                "common_ngrams": sum(table.num_common for table in postings),
                "skipped": {reason: count for reason, count in sorted(self._skipped.items())
                            if count}}


    def describe(self) -> str:
        """What is searched for and what is not, in a line."""
        report = self.report()
        skipped = ", ".join(f"{count} {reason}" for reason, count in report["skipped"].items())
        return (f"{len(self._items)} items of {len(report['tasks'])} tasks; n-grams that many "
                f"items of a task share, and which are no evidence: {report['common_ngrams']}"
                + (f"; left out: {skipped}" if skipped else ""))


class KeySet:
    """Distinct uint64 keys, with a table that rejects most absent keys in one lookup."""

    def __init__(self, keys: np.ndarray):
        self._keys = np.unique(keys)
        num_bits = max((SLOTS_PER_KEY * len(self._keys)).bit_length(), 1)
        self._shift = np.uint64(64 - num_bits)
        self._slots = np.zeros(1 << num_bits, bool)
        self._slots[self._keys >> self._shift] = True

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `keys` are in the set: their positions, and their indices in it."""
        places = np.flatnonzero(self._slots[keys >> self._shift])
        at = np.searchsorted(self._keys, keys[places])
        is_held = at < len(self._keys)
        is_held[is_held] = self._keys[at[is_held]] == keys[places[is_held]]
        return places[is_held], at[is_held]


class _Templates:
    """Runs of words that many items of a task share; equal items of a task count once.

    Args:
        owners: the item of each text.
        text_of: the text of each word.
    """

    def __init__(self, items: Sequence[Item], owners: np.ndarray, text_of: np.ndarray):
        distinct: dict[tuple[str, tuple[str, ...]], int] = {}
        items_of = [distinct.setdefault((item.task, item.fields), len(distinct)) for item in items]
        numbers: dict[str, int] = {}
        tasks_of = [numbers.setdefault(task, len(numbers)) for task, _ in distinct]
        self._sizes = np.bincount(tasks_of, minlength=len(numbers))
        self._text_of = text_of
        self._item = np.array(items_of, np.int64)[owners[text_of]]
        self._task = np.array(tasks_of, np.int64)[self._item]

    def runs(self, words: np.ndarray, length: int,
             share: float = MAX_SHARE) -> tuple[np.ndarray, np.ndarray]:
        """For the run of `length` words that begins at each word: whether it lies within a text,
        and whether it is in more items of the task than one, and than `share` of them."""
        inside, shared = np.zeros((2, len(words)), bool)
        grams, last = hash_grams(words, length), length - 1
        count = len(grams)
        inside[:count] = self._text_of[:count] == self._text_of[last:]
        starts = np.flatnonzero(inside)
        item, task = self._item[starts], self._task[starts]
        _, value = np.unique(grams[starts], return_inverse=True)
        _, group = np.unique(value * len(self._sizes) + task, return_inverse=True)
        num_items = item.max(initial=0) + 1
        held = np.unique(group * num_items + item)      # pairs of a group and an item
        counts = np.bincount(held // num_items)
        shared[starts] = counts[group] > np.maximum(share * self._sizes[task], 1)
        return inside, shared

    def cover(self, words: np.ndarray) -> np.ndarray:
        """Whether each word is in most items of the task, or within a shared run of three."""
        covered = self.runs(words, 1, MAX_WORD_SHARE)[1]
        starts = np.flatnonzero(self.runs(words, 3)[1])
        for place in range(3):
            covered[starts + place] = True
        return covered


class _Postings:
    """Inverted index from n-grams to the texts that contain them, in sorted arrays.

    Args:
        chosen: the texts to index.
        own_pairs: whether each word and its successor are a pair that is not of a template.
        owner_of: the item of each word.

    Attributes:
        keys: distinct n-grams that are matched.
        num_common: distinct n-grams that are not, because they occur in too many items, or belong
            to a template.
    """

    def __init__(self, words: np.ndarray, offsets: np.ndarray, chosen: np.ndarray, length: int,
                 own_pairs: np.ndarray, owner_of: np.ndarray, max_items: int):
        grams = hash_grams(words, length)
        before = np.concatenate([[0], np.cumsum(own_pairs)])
        num_own = before[length - 1:length - 1 + len(grams)] - before[:len(grams)]
        text_of = np.repeat(np.arange(len(chosen)), np.diff(offsets))[:len(grams)]
        fits = np.arange(len(grams)) + length <= offsets[text_of + 1]
        fits &= chosen[text_of]
        grams, text_of, owners, num_own = (
            grams[fits], text_of[fits], owner_of[:len(grams)][fits], num_own[fits])
        order = np.lexsort((-num_own, text_of, grams))
        grams, text_of, owners, num_own = (
            grams[order], text_of[order], owners[order], num_own[order])
        new_gram = np.diff(grams, prepend=~grams[:1]) != 0
        group = np.cumsum(new_gram) - 1
        # Texts of one item are adjacent: an item begins where the index changes.
        num_items = np.bincount(group[new_gram | (np.diff(owners, prepend=-1) != 0)])
        is_common = num_items > max_items
        is_common |= np.bincount(group, num_own, minlength=len(is_common)) == 0
        keep = (~is_common[group] if len(grams) else np.zeros(0, bool)) & (num_own > 0)
        keep &= new_gram | (np.diff(text_of, prepend=-1) != 0)
        self.num_common = int(is_common.sum())
        self.length = length
        keys, self._starts = np.unique(grams[keep], return_index=True)
        self.keys = KeySet(keys)
        self._texts, self._is_enough = text_of[keep], num_own[keep] >= MIN_WORDS - 1
        self._stops = np.append(self._starts[1:], len(self._texts))
        self._sizes = np.bincount(self._texts, minlength=len(chosen))

    def find(self, words: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
        """Yields the texts that share n-grams of sufficient evidence with a document.

        Args:
            words: hashes of the document's words.

        Yields:
            The text, the positions of the shared n-grams in the document, and the share of the
            text's distinct n-grams that are shared.
        """
        grams = hash_grams(words, self.length)
        places, at = self.keys.find(grams)
        if not len(places):
            return
        counts = self._stops[at] - self._starts[at]
        firsts = np.repeat(self._starts[at] - np.cumsum(counts) + counts, counts)
        entries = firsts + np.arange(len(firsts))
        texts, is_enough = self._texts[entries], self._is_enough[entries]
        places, at = np.repeat(places, counts), np.repeat(at, counts)
        for text in np.unique(texts).tolist():
            mine = texts == text
            overlap = len(np.unique(at[mine])) / int(self._sizes[text])
            if overlap == 1 or is_enough[mine].any():
                yield text, places[mine], overlap


def _longest_run(places: np.ndarray) -> tuple[int, int]:
    """First and last of the longest run of successive numbers."""
    borders = np.flatnonzero(np.diff(places) != 1) + 1
    runs = np.split(places, borders)
    longest = max(runs, key=len)
    return int(longest[0]), int(longest[-1])
