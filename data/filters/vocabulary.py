"""Vocabulary: a cache of text chunks and of their words, so that each chunk is split once.

Text is tokenised by looking up its chunks; properties of words are stored in arrays by number.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Sequence
from functools import cache

import numpy as np

from data.filters.fineweb2 import FINEWEB2
from data.filters.words import FOREIGN_TERMINAL_MARKS, STOP_WORDS, SYMBOLS, Splitter
from data.writing import PARTS, UNITS_PER_WORD, separate, word_parts

MAX_REMEMBERED_CHUNKS = 600_000  # of all languages together: about 150 MB
MAX_REMEMBERED_CHARS = 20_000_000

ALPHABETIC, SYMBOL = 1, 2  # flags of a word
# Flags of a chunk: holds a letter; a letter or a digit; symbols between letters.
CHUNK_ALPHABETIC, CHUNK_WORD, CHUNK_GARBLED = 1, 2, 4

# Languages whose stop words are characters, parts of words or of several units.
STOPS_WITHIN_WORDS = ("bo", "ja", "km", "ko", "lo", "my", "th", "yue", "zh")
# Languages whose FineWeb-2 list is too rare in ordinary text: fewer than two of its words in more
# than a tenth of the passages of 60 words of the Universal Declaration of Human Rights, or, for the
# last three, no text to count them in. Most join what others write as words.
RARE_STOPS = ("am", "ckb", "dv", "eu", "kn", "la", "ml", "mn", "mt", "ta", "tt", "or", "sd",
                    "te")
# Marks at the ends of a chunk: English ones, others, and those of directions.
_ENGLISH_EDGES = ".,;:()\"'"
_EDGES = (_ENGLISH_EDGES + "".join(FOREIGN_TERMINAL_MARKS) + "!?«»„“”‘’،؛፣፤፥"
          "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Vocabulary(dict):
    """Maps the chunks seen so far to numbers, and stores the numbered words of each.

    A chunk is a run of non-space characters; in other languages than English, a unit of a script
    without spaces is one too.

    Args:
        language: of the splitting rules.
        stop_words: words that `stop_of_word` numbers from 1; all others are 0.

    Attributes:
        has_units: whether any chunk is a unit, which is a part of a word.
        units_per_word: of the language, on average; 1 where words are separated.
    """

    def __init__(self, language: str, stop_words: Sequence[str]):
        super().__init__()
        self._split = Splitter(language).split
        self.is_english = language == "en"
        self._edges = _ENGLISH_EDGES if self.is_english else _EDGES
        self.units_per_word = UNITS_PER_WORD.get(language, 1.0)
        self.stop_words = tuple(stop_words)
        self.are_stops_within_words = language in STOPS_WITHIN_WORDS
        self.are_stops_common = bool(stop_words) and language not in RARE_STOPS
        self.has_units = False
        self.num_chars = 0  # of all chunks
        self._stops = {word: place for place, word in enumerate(stop_words, 1)}
        self._lower_stops = {word.lower(): place for word, place in self._stops.items()}
        self._word_ids: dict[str, int] = {}
        self._first, self._num_words, self._words = array("i"), array("i"), array("i")
        self._chunk_chars, self._chunk_flags = array("i"), array("B")
        self._chunk_stop, self._chunk_parts = array("B"), array("B")
        self._word_chars, self._word_flags, self._word_stop = array("i"), array("B"), array("B")
        self._word_parts = array("B")

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
                                 | any(map(str.isalnum, chunk)) * CHUNK_WORD
                                 | (not chunk.isascii() and _is_garbled(chunk)) * CHUNK_GARBLED)
        self._chunk_stop.append(self._lower_stops.get(chunk.lower().strip(self._edges), 0))
        self._chunk_parts.append(self._parts_of(chunk))
        self.has_units |= self._chunk_parts[-1] < PARTS
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
            self._word_parts.append(self._parts_of(word))
        return number

    def _parts_of(self, word: str) -> int:
        return PARTS if self.is_english else word_parts(word)

    def chunks_of(self, text: str) -> np.ndarray:
        """Numbers of the chunks of `text`: [num_chunks] int32."""
        chunks = (text if self.is_english else separate(text)).split()
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
        """`CHUNK_ALPHABETIC`, `CHUNK_WORD` and `CHUNK_GARBLED`."""
        return _view(self._chunk_flags)

    @property
    def stop_of_chunk(self) -> np.ndarray:
        """Place among the stop words, from 1, of a chunk in any case without marks; or 0."""
        return _view(self._chunk_stop)

    @property
    def parts_of_chunk(self) -> np.ndarray:
        """Parts of a word that each chunk makes: `data.writing.PARTS`, or fewer for a unit."""
        return _view(self._chunk_parts)

    @property
    def parts_of_word(self) -> np.ndarray:
        """The same of each word."""
        return _view(self._word_parts)

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


@cache
def _garbled() -> re.Pattern[str]:
    """A replacement character; or letters around symbols, fractions or unassigned characters beyond
    ASCII, but for accents, which some orthographies use as apostrophes."""
    symbols = "".join(char for char in map(chr, (*range(0x80, 0x2C2), *range(0x300, 0xFFFD)))
                      if unicodedata.category(char) in ("Sc", "Sk", "Sm", "So", "No", "Co", "Cn"))
    symbols = re.escape(symbols.replace("´", ""))
    return re.compile(rf"\ufffd|[^\W\d_][{symbols}]+[^\W\d_]")


def _is_garbled(chunk: str) -> bool:
    return _garbled().search(chunk) is not None


def stop_words_of(language: str) -> tuple[str, ...]:
    """Gopher's stop words for English, FineWeb-2's for other languages; none for the rest."""
    if language == "en":
        return STOP_WORDS
    return FINEWEB2[language].stop_words if language in FINEWEB2 else ()


_vocabularies: dict[str, Vocabulary] = {}


def vocabulary_of(language: str) -> Vocabulary:
    """The vocabulary of `language`; all are cleared when they exceed a fixed size."""
    known = _vocabularies.values()
    if (sum(map(len, known)) > MAX_REMEMBERED_CHUNKS
            or sum(vocabulary.num_chars for vocabulary in known) > MAX_REMEMBERED_CHARS):
        _vocabularies.clear()
    if language not in _vocabularies:
        _vocabularies[language] = Vocabulary(language, stop_words_of(language))
    return _vocabularies[language]
