"""Order of letters: tells text of any language from random letters, without a word list."""

from __future__ import annotations

import unicodedata

import numpy as np

from data.writing import codes_of

MIN_EXPECTED = 5  # coincidences of pairs, below which there are too few to compare
MIN_COINCIDENCE = 0.002  # of letters; Chinese has .004 and more, random ideographs .00005


def pair_ratio(text: str) -> float | None:
    """How much more often two pairs of neighbouring letters are equal than if letters followed
    each other at random; None where the text is too short to tell.

    It is the index of coincidence (Friedman 1922) of the pairs over the product of the indices of
    their first and of their second letters. It does not depend on the number of letters of a
    script, and is unbiased in short texts: about 1 for random letters of any frequencies, 1.2 to 4
    for the 387 translations of the Universal Declaration of Human Rights. Pairs are taken within
    words, with combining marks, in lower case. A text of a large script, such as Chinese, in which
    hardly any letter recurs, has 0.
    """
    distinct, numbers = np.unique(codes_of(text.lower()), return_inverse=True)
    is_letter = np.array([unicodedata.category(chr(code))[0] in "LM" for code in distinct], bool)
    inside = is_letter[numbers]
    pairs = inside[1:] & inside[:-1]
    first, second = numbers[:-1][pairs], numbers[1:][pairs]
    expected = _coincidence(first) * _coincidence(second)
    if expected * len(first) * (len(first) - 1) / 2 >= MIN_EXPECTED:
        return _coincidence(first * len(distinct) + second) / expected
    return None if _coincidence(first) >= MIN_COINCIDENCE else 0.0


def _coincidence(values: np.ndarray) -> float:
    """Probability that two different places hold the same value."""
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / max(len(values) * (len(values) - 1), 1))
