"""Whether a generated text is one of the reference answers, exactly or by its words.

In every script: a perfect Cyrillic, Arabic or Japanese answer scores 1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from data.writing import separate

_ARTICLES = ("a", "an", "the")
_SQUAD_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DIVIDING = ",;:/\\"         # beside dashes and low lines
_MINUS = str.maketrans("\u2212\ufe63\uff0d", "---")
_POINT = re.compile(r"(?<=\d)[.,](?=\d)")           # within a number
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SIGN = re.compile(r"(?<![\w.)\]])-(?=\d)")         # of a negative number

Normalisation = Callable[[str], str]


def normalise(text: str) -> str:
    """A text without what does not matter to an answer; doing so twice changes no more.

    Compatibility forms (NFKC) and case are folded; punctuation (the Unicode categories P, and Sk:
    accents that stand alone) is removed, and so are format characters; dashes, low lines, commas,
    colons and slashes leave a space; English articles are removed; white space becomes single
    spaces. Kept are the point and the sign of a number, so that 3.5 is not 35, nor -5 equal to 5;
    symbols, so that C++ is not C; and the whole of a text of which nothing would remain.
    """
    while (shorter := _normalise_once(text)) != text:
        text = shorter
    return text


def _normalise_once(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.translate(_MINUS))
    text = unicodedata.normalize("NFKC", text.casefold())
    text = " ".join(_THOUSANDS.sub("", text).split())
    kept = {found.start() for pattern in (_POINT, _SIGN) for found in pattern.finditer(text)}
    bare = "".join(char if place in kept else _without_mark(char)
                   for place, char in enumerate(text))
    bare = " ".join(bare.split()) or text
    return " ".join(word for word in bare.split() if word not in _ARTICLES) or bare


def _without_mark(char: str) -> str:
    category = unicodedata.category(char)
    if category in ("Pd", "Pc") or char in _DIVIDING:
        return " "
    return "" if category[0] == "P" or category in ("Sk", "Cf") else char


def normalise_squad(text: str) -> str:
    """SQuAD's normalisation (arXiv 1606.05250, its evaluation script v1.1), for comparisons.

    Lower case, ASCII punctuation deleted, English articles, white space. It makes 3.5 equal to 35.
    """
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(_SQUAD_ARTICLES.sub(" ", text).split())


# By name, for tasks that say how they compare.
NORMALISATIONS: dict[str, Normalisation] = {
    "exact": str.strip, "normalised": normalise, "squad": normalise_squad}


def matches(answer: str, references: Sequence[str], normalisation: Normalisation = normalise
            ) -> bool:
    """Whether an answer equals one of the references, after normalisation of both.

    An answer without text matches nothing.
    """
    given = normalisation(answer)
    return bool(given) and any(given == normalisation(reference) for reference in references)


def split_words(text: str) -> list[str]:
    """Words of a text in lower case: runs of letters, marks and digits.

    Of scripts without spaces between words, a word is a character with its marks
    (`data.writing.separate`). Of ASCII text these are the tokens of `rouge_score`.
    """
    folded = unicodedata.normalize("NFC", separate(text).casefold())
    return "".join(char if unicodedata.category(char)[0] in "LMN" else " "
                   for char in folded).split()


def token_f1(answer: str, references: Sequence[str], normalisation: Normalisation = normalise
             ) -> float:
    """The best F1 of the words that an answer shares with a reference, from 0 to 1.

    SQuAD's measure (arXiv 1606.05250, section 6.1), with words by `data.writing.separate`, that is,
    by character in scripts without spaces. Two texts without words are compared as they are.
    """
    given = separate(normalisation(answer)).split()
    return max((_f1(given, separate(normalisation(reference)).split())
                for reference in references), default=0.0)


def _f1(given: Sequence[str], expected: Sequence[str]) -> float:
    if not given or not expected:
        return float(given == expected)
    shared = sum((Counter(given) & Counter(expected)).values())
    return 2 * shared / (len(given) + len(expected))
