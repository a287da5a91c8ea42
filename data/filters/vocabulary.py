"""Vocabulary: a cache of text chunks and of their words, so that each chunk is split once.

Text is tokenised by looking up its chunks; properties of words are stored in arrays by number.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from data.filters.fineweb2 import FINEWEB2
from data.filters.words import STOP_WORDS, SYMBOLS, Splitter

MAX_REMEMBERED_CHUNKS = 600_000  # of all languages together: about 150 MB
MAX_REMEMBERED_CHARS = 20_000_000

ALPHABETIC, SYMBOL = 1, 2  # flags of a word
CHUNK_ALPHABETIC, CHUNK_WORD = 1, 2  # flags of a chunk: holds a letter; a letter or a digit

_ENGLISH_STOPS = {word: place for place, word in enumerate(STOP_WORDS, 1)}


class Vocabulary(dict):
    """Maps the chunks seen so far to numbers, and stores the numbered words of each.

    Args:
        language: of the splitting rules.
        stop_words: words that `stop_of_word` numbers from 1; all others are 0.
    """

    def __init__(self, language: str, stop_words: Sequence[str]):
        super().__init__()
        self._split = Splitter(language).split
        self.num_chars = 0  # of all chunks
        self._stops = {word: place for place, word in enumerate(stop_words, 1)}
        self._word_ids: dict[str, int] = {}
        self._first, self._num_words, self._words = array("i"), array("i"), array("i")
        self._chunk_chars, self._chunk_flags = array("i"), array("B")
        self._chunk_stop = array("B")
        self._word_chars, self._word_flags, self._word_stop = array("i"), array("B"), array("B")

    def __missing__(self, chunk: str) -> int:
        number = self[chunk] = len(self)
        self.num_chars += len(chunk)
        words = self._split(chunk)
        self._first.append(len(self._words))
        self._num_words.append(len(words))
        self._words.extend(map(self._number, words))
        self._chunk_chars.append(len(chunk))
        self._chunk_flags.append(CHUNK_ALPHABETIC | CHUNK_WORD if chunk.isalpha() else
                                 any(map(str.isalpha, chunk)) * CHUNK_ALPHABETIC
                                 | any(map(str.isalnum, chunk)) * CHUNK_WORD)
        self._chunk_stop.append(_ENGLISH_STOPS.get(chunk.lower().strip(".,;:()\"'"), 0))
        return number

    def _number(self, word: str) -> int:
        number = self._word_ids.get(word)
        if number is None:
            number = self._word_ids[word] = len(self._word_ids)
            self._word_chars.append(len(word))
            self._word_flags.append(ALPHABETIC if word.isalpha() else
                                    any(map(str.isalpha, word)) * ALPHABETIC
                                    | SYMBOLS.issuperset(word) * SYMBOL)
            self._word_stop.append(self._stops.get(word, 0))
        return number

    def chunks_of(self, text: str) -> np.ndarray:
        """Numbers of the chunks of `text`: [num_chunks] int32."""
        chunks = text.split()
        return np.fromiter(map(self.__getitem__, chunks), np.int32, len(chunks))

    def words_of(self, chunks: np.ndarray) -> np.ndarray:
        """Numbers of the words of numbered chunks, in order: [num_words] int32."""
        counts = _view(self._num_words)[chunks]
        before = np.cumsum(counts) - counts
        at = np.repeat(_view(self._first)[chunks] - before, counts)
        return _view(self._words)[at + np.arange(len(at))]

    @property
    def num_words_of_chunk(self) -> np.ndarray:
        """Number of words of each chunk."""
        return _view(self._num_words)

    @property
    def chars_of_chunk(self) -> np.ndarray:
        """Characters of each chunk."""
        return _view(self._chunk_chars)

    @property
    def flags_of_chunk(self) -> np.ndarray:
        """`CHUNK_ALPHABETIC` and `CHUNK_WORD`."""
        return _view(self._chunk_flags)

    @property
    def english_stop_of_chunk(self) -> np.ndarray:
        """Place among `STOP_WORDS`, from 1, of a chunk in lower case without marks; or 0."""
        return _view(self._chunk_stop)

    @property
    def chars_of_word(self) -> np.ndarray:
        """Characters of each word."""
        return _view(self._word_chars)

    @property
    def flags_of_word(self) -> np.ndarray:
        """`ALPHABETIC` and `SYMBOL`."""
        return _view(self._word_flags)

    @property
    def stop_of_word(self) -> np.ndarray:
        """Place among the stop words, from 1; or 0."""
        return _view(self._word_stop)


def _view(values: array) -> np.ndarray:
    # A copy: an array cannot grow while a buffer refers to it.
    return np.array(values)


_vocabularies: dict[str, Vocabulary] = {}


def vocabulary_of(language: str) -> Vocabulary:
    """The vocabulary of `language`; all are cleared when they exceed a fixed size."""
    known = _vocabularies.values()
    if (sum(map(len, known)) > MAX_REMEMBERED_CHUNKS
            or sum(vocabulary.num_chars for vocabulary in known) > MAX_REMEMBERED_CHARS):
        _vocabularies.clear()
    if language not in _vocabularies:
        stop_words = FINEWEB2[language].stop_words if language in FINEWEB2 else STOP_WORDS
        _vocabularies[language] = Vocabulary(language, stop_words)
    return _vocabularies[language]
