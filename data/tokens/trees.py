"""Packs texts that begin alike into rows of trees, in which a shared beginning stands once.

A question with four options is one path that parts into four; questions behind the same solved
examples part after these. In rows of trees a token sees the tokens of its own path alone, so that
each text reads as if it stood by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Trees:
    """Rows of trees of tokens in depth-first order, and where each text is in them.

    Attributes:
        tokens_RL: int32 ids; 0 at padding.
        positions_RL: int32, depth of each token in its tree.
        ends_RL: int32, index after the last descendant of each token; 0 at padding.
        row_of: of each text, in the order in which they were given.
        paths: of each text, the indices of its tokens in its row.
    """

    tokens_RL: np.ndarray
    positions_RL: np.ndarray
    ends_RL: np.ndarray
    row_of: np.ndarray
    paths: list[np.ndarray]


def pack_trees(texts: Sequence[Sequence[int]], row_length: int, *, shares: bool = True) -> Trees:
    """Packs texts into the trees of rows, sorted, so that those that begin alike come together.

    A text that does not fit into the room that is left begins the next row, where what it shares
    with earlier ones is repeated.

    Args:
        texts: token ids, at least one and at most `row_length` each.
        shares: False keeps each text apart, for models that cannot read trees; `ends_RL` then
            numbers the texts of a row from 1, as segment ids do.
    """
    order = sorted(range(len(texts)), key=lambda n: tuple(texts[n]))
    rows: list[_Row] = []
    row_of, paths = np.zeros(len(texts), np.int64), [np.zeros(0, np.int64)] * len(texts)
    for n in order:
        text = np.asarray(texts[n], np.int32)
        if not rows or not rows[-1].fits(text, shares):
            rows.append(_Row(row_length))
        row_of[n], paths[n] = len(rows) - 1, rows[-1].add(text, shares)
    arrays = [np.stack([getattr(row, name) for row in rows]) if rows
              else np.zeros((0, row_length), np.int32) for name in ("tokens", "positions", "ends")]
    return Trees(*arrays, row_of, paths)


class _Row:
    """A row that is being filled."""

    def __init__(self, row_length: int):
        self.tokens, self.positions, self.ends = np.zeros((3, row_length), np.int32)
        self._size, self._num_texts = 0, 0
        self._path = np.zeros(0, np.int64)      # of the newest text

    def fits(self, text: np.ndarray, shares: bool) -> bool:
        """Whether there is room for what the newest text does not share."""
        num_new = len(text) - (self._num_shared(text) if shares else 0)
        return self._size + num_new <= len(self.tokens)

    def add(self, text: np.ndarray, shares: bool) -> np.ndarray:
        """Adds a text; returns its path."""
        num_shared, begin = self._num_shared(text) if shares else 0, self._size
        new = np.arange(begin, begin + len(text) - num_shared)
        self._path = np.concatenate([self._path[:num_shared], new])
        self._size, self._num_texts = begin + len(new), self._num_texts + 1
        self.tokens[new], self.positions[new] = text[num_shared:], np.arange(num_shared, len(text))
        # All tokens of the path have a descendant in what was added, or are part of it.
        self.ends[self._path if shares else new] = self._size if shares else self._num_texts
        return self._path

    def _num_shared(self, text: np.ndarray) -> int:
        """How many tokens a text has in common with the newest one, from the first on."""
        size = min(len(text), len(self._path))
        differs = self.tokens[self._path[:size]] != text[:size]
        return int(np.argmax(differs)) if differs.any() else size
