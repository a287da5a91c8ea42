"""Search for substrings of benchmark items by characters, spaces and symbols left out.

As GPT-4's authors did (arXiv 2303.08774, appendix C): an item is found in a document that has one
of three random substrings of 50 characters of it. Here letters are compared in lower case and
without accents, and every substring can be searched for as well, at the same cost. Substrings that
many items of a task share belong to its template and are no evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.contamination.index import MAX_SHARE, KeySet, searched_texts
from data.contamination.task_files import Item
from data.dedup.words import hash_spans, hash_unspaced

NUM_CHARS = 50
NUM_RANDOM = 3


class SubstringHit(NamedTuple):
    """An item of which a document has substrings.

    Attributes:
        item: its index among the items.
        share: of the substrings of the text of it that has most of them, how many are there.
        is_drawn: whether one of the random ones is among them.
        start, stop: words of the document, from the first to behind the last of them.
    """

    item: int
    share: float
    is_drawn: bool
    start: int
    stop: int


class SubstringIndex:
    """Index of the substrings of all items; its memory depends on the items alone.

    Args:
        num_chars: length of a substring. A shorter text has none.
        num_random: substrings drawn of each item.
        seed: of the draw.

    Attributes:
        num_short: items without any substring, being too short or nothing but template.
    """

    def __init__(self, items: Sequence[Item], *, num_chars: int = NUM_CHARS,
                 num_random: int = NUM_RANDOM, seed: int = 0):
        self._num_chars = num_chars
        texts = [(number, text) for number, item in enumerate(items)
                 for text in searched_texts(item)]
        hashes = [self._hash(text)[0] for _, text in texts]
        sizes = np.array([len(part) for part in hashes], np.int64)
        keys = np.concatenate([np.zeros(0, np.uint64), *hashes])
        text_of = np.repeat(np.arange(len(texts)), sizes)
        owner = np.array([number for number, _ in texts], np.int64)[text_of]
        own = ~_is_shared(keys, owner, items)
        keys, text_of, owner = keys[own], text_of[own], owner[own]
        self.num_short = len(items) - len(np.unique(owner))
        drawn = _draw(owner, num_random, np.random.default_rng(seed))
        order = np.lexsort((text_of, keys))
        self._texts, self._owners, self._drawn = text_of[order], owner[order], drawn[order]
        self._sizes = np.bincount(text_of, minlength=len(texts))
        self._keys = KeySet(keys)
        _, self._starts = np.unique(keys[order], return_index=True)
        self._stops = np.append(self._starts[1:], len(keys))

    def find(self, text: str) -> list[SubstringHit]:
        """The items of which a document has a substring, in their order."""
        hashes, words = self._hash(text)
        places, at = self._keys.find(hashes)
        if not len(places):
            return []
        counts = self._stops[at] - self._starts[at]
        entries = np.arange(counts.sum()) + np.repeat(
            self._starts[at] - np.cumsum(counts) + counts, counts)
        places, found = np.repeat(places, counts), []
        owners = self._owners[entries]
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            held = np.unique(entries[mine])
            share = (np.bincount(self._texts[held]) / self._sizes[:self._texts[held].max() + 1]
                     .clip(1)).max()
            first, last = places[mine].min(), places[mine].max() + self._num_chars - 1
            found.append(SubstringHit(owner, float(share), bool(self._drawn[held].any()),
                                      int(words[first]), int(words[last]) + 1))
        return found

    def _hash(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all substrings of a text, and the word that each of its characters is of."""
        values, words = hash_unspaced(text, keep_digits=True)
        starts = np.arange(max(len(values) - self._num_chars + 1, 0))
        return hash_spans(values, starts, starts + self._num_chars), words


def _is_shared(keys: np.ndarray, owner: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    """Whether each substring is in more items of its task than one, and than `MAX_SHARE`; equal
    items of a task count once."""
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    distinct = np.array([first.setdefault((item.task, item.fields), number)
                         for number, item in enumerate(items)])
    tasks = [task for task, _ in first]
    names, task_of = np.unique(np.array([item.task for item in items]), return_inverse=True)
    sizes = np.array([tasks.count(name) for name in names.tolist()])
    _, value = np.unique(keys, return_inverse=True)
    _, group = np.unique(value * len(names) + task_of[owner], return_inverse=True)
    held = np.unique(group * len(items) + distinct[owner])      # pairs of a group and an item
    counts = np.bincount(held // len(items))
    return counts[group] > np.maximum(MAX_SHARE * sizes[task_of[owner]], 1)


def _draw(owner: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Marks `num` random entries of each owner."""
    order = np.lexsort((rng.random(len(owner)), owner))
    first = np.flatnonzero(np.diff(owner[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    drawn = np.zeros(len(owner), bool)
    drawn[order[rank < num]] = True
    return drawn
