r"""Splits without look-ahead: the same pieces, in a third of the time.

The splits in use leave the last character of a run of white space to the word behind it, by
`\s+(?!\S)`. For this look-ahead the engine of rustbpe and tiktoken backtracks, where it would
otherwise run an automaton. Here that place is marked in the text by a character that no
alternative matches: the plain `\s+` ends there, and the engine passes over the mark.
"""

from __future__ import annotations

import re

import numpy as np

MARK = "\uffff"     # no character, by the Unicode standard, so that texts hardly have it

# What \s matches in Rust.
_SPACES = (*range(0x9, 0xE), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029,
           0x202F, 0x205F, 0x3000)
_NO_SPACE = max(_SPACES) + 1
_IS_SPACE = np.isin(np.arange(_NO_SPACE + 1), _SPACES)
_POSSESSIVE = re.compile(r"([?*+]|\{\d+,\d+\})\+")
_LINE_ENDS = r"[\r\n]"


def without_look_ahead(split: str) -> str:
    """An expression of `patterns.SPLITS` for texts that `mark` has marked.

    Possessive quantifiers, which an automaton does not need and does not know, become plain.
    """
    plain = _POSSESSIVE.sub(r"\1", split).replace(r"\s+(?!\S)", r"\s+")
    return plain.replace("[^", f"[^{MARK}")


def mark(text: str, split: str) -> str:
    r"""The text with `MARK` before the last character of each run of white space before a word.

    An expression that ends a piece at line ends, by `\s*[\r\n]`, does so before it comes to
    `\s+(?!\S)`, so that no line end is marked.

    Args:
        split: the expression, of `patterns.SPLITS`.
    """
    codes_T = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_space_T = _IS_SPACE[np.minimum(codes_T, _NO_SPACE)]
    places = 1 + np.flatnonzero(is_space_T[:-2] & is_space_T[1:-1] & ~is_space_T[2:])
    if _LINE_ENDS in split:
        places = places[(codes_T[places] != ord("\n")) & (codes_T[places] != ord("\r"))]
    if not len(places):
        return text
    marked_T = np.insert(codes_T, places, ord(MARK))
    return marked_T.tobytes().decode("utf-32-le", "surrogatepass")
