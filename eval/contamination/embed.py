"""Passages of a corpus that mean what an item means, by the cosine of their embeddings.

Documents are cut into overlapping windows of words. A window as long as a paraphrase or longer
finds it best; one that is found in a window of another subject is diluted. Of the corpus only the
best window of each item is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from core.errors import UserError
from data.contamination.index import searched_texts
from data.contamination.task_files import Item
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.execution import Execution
from model.families.encoder import encode
from model.families.registry import Params
from model.heads.embedding import mean_embedding

WINDOW_WORDS, STRIDE_WORDS = 64, 32     # between white space
MIN_WINDOW_WORDS = 8        # a shorter text means too little
MAX_TOKENS = 256            # all-MiniLM-L6-v2 was trained on no longer texts
ROW_TOKENS = (32, 64, 96, 128, 192, MAX_TOKENS)      # rows of a batch have one of these lengths
BATCH_TOKENS = 8192
CHUNK_WINDOWS = 1024        # of the corpus that are embedded and compared together
BEGIN, END = "[CLS]", "[SEP]"


class Window(NamedTuple):
    """A passage: the first of its words in its document, and its text."""

    start: int
    text: str


class Near(NamedTuple):
    """The nearest window of an item's texts in a corpus; of none, a cosine of -1."""

    cosine: float = -1.0
    source: str = ""
    window: Window = Window(0, "")


class Encoder(NamedTuple):
    """A loaded encoder."""

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1: [num_texts, D] float32. Tokens beyond `MAX_TOKENS` do not
        count."""
        begin, end = self.tokenizer.special(BEGIN), self.tokenizer.special(END)
        rows = [[begin, *ids[:MAX_TOKENS - 2], end] for ids in self.tokenizer.encode_batch(texts)]
        found_ND = np.zeros((len(texts), self.config.D), np.float32)
        for numbers, length in _plan([len(row) for row in rows]):
            tokens_BL = np.zeros((BATCH_TOKENS // length, length), np.int32)
            segment_ids_BL = np.zeros_like(tokens_BL)
            for row, number in enumerate(numbers):
                tokens_BL[row, :len(rows[number])] = rows[number]
                segment_ids_BL[row, :len(rows[number])] = 1
            found_ND[numbers] = _embed(self.params, tokens_BL, segment_ids_BL,
                                       config=self.config)[:len(numbers)]
        return found_ND


def load_encoder(folder: Path) -> Encoder:
    """Opens the model directory of an encoder of texts such as all-MiniLM-L6-v2.

    Raises:
        UserError: it is no model directory, or no encoder whose tokenizer has [CLS] and [SEP].
    """
    described = read_description(folder)
    tokenizer = load_tokenizer(Path(folder) / "tokenizer")
    if described.config.family != "encoder" or not {BEGIN, END} <= set(tokenizer.specials):
        raise UserError(f"--encoder={folder}", f"is a {described.config.family.replace('_', '-')}, "
                        "and no encoder of texts", "name a model directory of one, such as the "
                        "import of all-MiniLM-L6-v2 by `python -m model.hf import`")
    return Encoder(load_params(folder, described.config), described.config, tokenizer)


def cut_windows(text: str) -> list[Window]:
    """Windows of `WINDOW_WORDS` words every `STRIDE_WORDS`; a shorter text is one, if any."""
    places = [match.span() for match in re.finditer(r"\S+", text)]
    if len(places) < MIN_WINDOW_WORDS:
        return []
    starts = range(0, max(len(places) - WINDOW_WORDS + STRIDE_WORDS, 1), STRIDE_WORDS)
    return [Window(start, text[places[start][0]:
                               places[min(start + WINDOW_WORDS, len(places)) - 1][1]])
            for start in starts]


class Nearby:
    """The nearest windows of a corpus to each item, found in one pass over it.

    Args:
        items: the first searched text of each, usually its question, is cut into windows as
            documents are.
    """

    def __init__(self, encoder: Encoder, items: Sequence[Item]):
        pairs = [(number, window.text) for number, item in enumerate(items)
                 for text in searched_texts(item)[:1] for window in cut_windows(text)]
        self._encoder, self._waiting = encoder, []
        self._owner = np.array([number for number, _ in pairs], np.int64)
        self._items_ND = encoder.embed([text for _, text in pairs])
        self.nearest = [Near()] * len(items)
        self.num_windows = 0

    def add(self, source: str, text: str) -> None:
        """Takes a document; windows are embedded when there are enough."""
        self._waiting += [(source, window) for window in cut_windows(text)]
        while len(self._waiting) >= CHUNK_WINDOWS:
            self._compare(self._waiting[:CHUNK_WINDOWS])
            del self._waiting[:CHUNK_WINDOWS]

    def finish(self) -> None:
        """Embeds what waits."""
        if self._waiting:
            self._compare(self._waiting)
            self._waiting = []

    def _compare(self, windows: Sequence[tuple[str, Window]]) -> None:
        self.num_windows += len(windows)
        cosines = self.cosines([window.text for _, window in windows])
        for item, window in enumerate(cosines.argmax(axis=1).tolist()):
            if cosines[item, window] > self.nearest[item].cosine:
                self.nearest[item] = Near(float(cosines[item, window]), *windows[window])

    def cosines(self, texts: Sequence[str]) -> np.ndarray:
        """Of each item's best window with each of some texts: [num_items, num_texts]; -1 for an
        item without windows."""
        best = np.full((len(self.nearest), len(texts)), -1, np.float32)
        if len(self._owner):
            first = np.flatnonzero(np.diff(self._owner, prepend=-1))
            best[self._owner[first]] = np.maximum.reduceat(
                self._items_ND @ self._encoder.embed(texts).T, first, axis=0)
        return best


@partial(jax.jit, static_argnames="config")
def _embed(params: Params, tokens_BL: jax.Array, segment_ids_BL: jax.Array, *,
           config: ModelConfig) -> jax.Array:
    positions_BL = np.tile(np.arange(tokens_BL.shape[1]), (len(tokens_BL), 1))
    x_BLD, _ = encode(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                      execution=Execution())
    return mean_embedding(x_BLD, segment_ids_BL)


def _plan(sizes: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Numbers of rows for each batch, and the length of its rows."""
    kinds = np.searchsorted(ROW_TOKENS, sizes)
    for kind, length in enumerate(ROW_TOKENS):
        members = np.flatnonzero(kinds == kind)
        for first in range(0, len(members), BATCH_TOKENS // length):
            yield members[first:first + BATCH_TOKENS // length].tolist(), length
