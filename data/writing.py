"""Scripts without spaces between words: the units of a text, and how many of them make a word.

A *unit* is what such a text is divided into instead of words, as by the default rules of UAX #29,
which need no dictionary:
    ideographs, kana, Yi: a character with its marks.
    Thai, Lao, Khmer, Burmese and their kin: a letter with its vowel signs, tone marks and
        subscript consonants.
    Tibetan: a syllable, which ends at a tsheg.
N-grams are made of units. Where words are counted, a unit is a part of a word, as `UNSPACED` says:
the units of a translation of the Universal Declaration of Human Rights over the 1,747 words of the
English one, so that a bound on words means as much text in every script. For Chinese it agrees
with segmented corpora, which have 1.5 to 1.7 characters per word (Emerson 2005, table 1).

Zero-width spaces, which divide words in Khmer, Thai, Burmese and Lao, and the Ethiopic wordspace
separate words as blanks do.
"""

from __future__ import annotations

import functools
import math
import sys
import unicodedata

import numpy as np

# First and last code points of a script, and units per word. Scripts without a long translation
# (the last row) have the number of Khmer.
UNSPACED = {
    "Han": ("3005-3007 3400-4dbf 4e00-9fff f900-faff 20000-323af", 1.5),
    "Kana": ("3031-3035 3041-309f 30a1-30fa 30fc-30ff 31f0-31ff ff66-ff9f 1b000-1b16f", 3.5),
    "Yi": ("a000-a48c", 1.7),
    "Thai": ("e01-e3a e40-e4e", 4.0),
    "Lao": ("e81-ece edc-edf", 4.5),
    "Tibetan": ("f00 f18-f19 f35 f37 f39 f3e-f84 f86-fbc", 1.8),
    "Burmese": ("1000-103f 1050-108f 109a-109f a9e0-a9ef a9fa-a9fe aa60-aa7f", 3.5),
    "Khmer": ("1780-17d3 17d7 17dc-17dd", 3.0),
    "Tai, Balinese, Javanese": ("1950-1974 1980-19c9 1a20-1a7f 1aa7 1b00-1b4c a980-a9c0 aa80-aadd",
                                3.0)}
# The same by language, for those whose texts are made of units; Japanese mixes two scripts.
UNITS_PER_WORD = {"bo": 1.8, "ja": 2.2, "km": 3.0, "lo": 4.5, "my": 3.5, "th": 4.0, "yue": 1.5,
                  "zh": 1.5}
FIRST_UNIT = 0xE01  # code point
PARTS = 60  # of a word: counts of parts are whole numbers, so their sums do not depend on the order

_UNIT, _MARK, _JOINER, _SYLLABLE, _SEPARATOR = 1, 2, 3, 4, 5
_JOINERS = "\u1039\u17d2\u1a60\u1b44\ua9c0"  # the next consonant is written below
_SEPARATORS = "\u200b\u1361\u0f0b\u0f0c"  # zero-width space, Ethiopic wordspace, tsheg


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Kind of each code point, 0 outside of these scripts, and its parts of a word."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    parts = np.full(sys.maxunicode + 1, PARTS, np.uint8)
    for name, (ranges, units_per_word) in UNSPACED.items():
        for item in ranges.split():
            first, _, last = item.partition("-")
            codes = range(int(first, 16), int(last or first, 16) + 1)
            parts[codes.start:codes.stop] = round(PARTS / units_per_word)
            kinds[codes.start:codes.stop] = _SYLLABLE if name == "Tibetan" else _UNIT
            if name not in ("Tibetan", "Han", "Yi"):
                kinds[[code for code in codes if unicodedata.category(chr(code))[0] == "M"]] = _MARK
    for char in _JOINERS:
        kinds[ord(char)] = _JOINER
    for char in _SEPARATORS:
        kinds[ord(char)] = _SEPARATOR
    return kinds, parts


def codes_of(text: str) -> np.ndarray:
    """Code points of a text: [n] uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def unit_borders(codes: np.ndarray) -> np.ndarray:
    """Marks the code points before which a unit begins or a run of units has ended: [n] bool."""
    kinds = _tables()[0][codes]
    if not kinds.any():
        return np.zeros(len(codes), bool)
    inside = (kinds > 0) & (kinds < _SEPARATOR)
    before = np.concatenate([[0], kinds[:-1]])
    begins = (kinds == _UNIT) & (before != _JOINER) | (kinds == _SYLLABLE) & (before != _SYLLABLE)
    return begins | (inside != np.concatenate([[False], inside[:-1]]))


def is_unspaced(text: str) -> bool:
    """Whether a text has a unit or a separator of words other than white space."""
    return not text.isascii() and bool(_tables()[0][codes_of(text)].any())


def is_mostly_unspaced(text: str) -> bool:
    """Whether a tenth or more of a text's characters are those of units."""
    if not is_unspaced(text):
        return False
    kinds = _tables()[0][codes_of(text)]
    return bool(((kinds > 0) & (kinds < _SEPARATOR)).sum() * 10 >= len(kinds) > 0)


def separate(text: str) -> str:
    """The text with spaces around each unit, and one for each separator of words.

    A text without such scripts and separators is returned as it is.
    """
    if text.isascii():
        return text
    codes = codes_of(text)
    kinds = _tables()[0][codes]
    if not kinds.any():
        return text
    spaced = np.where(kinds == _SEPARATOR, np.uint32(ord(" ")), codes)
    spaced = np.insert(spaced, np.flatnonzero(unit_borders(codes)), ord(" "))
    return spaced.tobytes().decode("utf-32-le", "surrogatepass")


def word_parts(word: str) -> int:
    """Parts of a word in a unit; `PARTS` for a word of another script."""
    return PARTS if word.isascii() else int(_tables()[1][ord(word[0])])


def count_words(text: str) -> int:
    """Number of words: runs of non-space characters, or as many as the units make.

    In a text with units, marks alone are not counted.
    """
    if text.isascii():
        return len(text.split())
    codes = codes_of(text)
    kinds, parts = (table[codes] for table in _tables())
    if not kinds.any():
        return len(text.split())
    units = unit_borders(codes) & (kinds > 0) & (kinds < _SEPARATOR)
    rest = np.where(kinds > 0, np.uint32(ord(" ")), codes).tobytes().decode("utf-32-le",
                                                                           "surrogatepass")
    num_spaced = sum(any(map(str.isalnum, word)) for word in rest.split())
    return num_spaced + math.ceil(parts[units].sum(dtype=np.int64) / PARTS)


def longest_word(text: str) -> int:
    """Characters of the longest run without a space; a unit is a run of its own."""
    return max(map(len, separate(text).split()), default=0)
