"""What of a generated answer is compared: a number, or the letter of an option."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

# Of openai/grade-school-math@3101c7d (dataset.py), after the delimiter.
STRICT_NUMBER = r"(-?[0-9.,]+)"
# Of EleutherAI/lm-evaluation-harness@4e7e0d4 (tasks/gsm8k, "flexible-extract").
FLEXIBLE_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
# Minus signs and hyphens; marks of thousands and fractions of full-width and Arabic numbers.
_MARKS = str.maketrans("\u2212\u2010\u2011\ufe63\uff0d\uff0c\u066c\uff0e\u066b", "-----,,..")

# Words that announce a verdict: of languages with spaces between words; and of others.
_SPACED = ("answer", "choice", "option", "antwort", "réponse", "respuesta", "risposta", "resposta",
           "ответ", "الإجابة", "उत्तर")
_UNSPACED = ("答案", "答え", "正解")
_OPEN, _CLOSE = r"[\s\"'(\[{*_`$]*", r"[\"')\]}*_`$]*"


def parse_number(text: str) -> Decimal | None:
    """The value of a number as people write it: 18, 18.0, 18., $18, 1,234; else None.

    Digits of any script are read. Commas are taken as those of thousands, as both references of
    GSM8K do; a fraction's mark is a point.
    """
    text = re.sub(r",|[$€£¥]\s*", "", _with_ascii_digits(text)).strip().rstrip(".")
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _with_ascii_digits(text: str) -> str:
    """The text with decimal digits, minus signs and marks of numbers in ASCII; no others: m² has
    no number."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char
                   for char in text.translate(_MARKS))


def equal_numbers(given: str | None, expected: str) -> bool:
    """Whether two texts are the same number; False where one of them is none."""
    value = None if given is None else parse_number(given)
    return value is not None and value == parse_number(expected)


def strict_number(text: str, delimiter: str) -> str | None:
    """The first number that follows a delimiter immediately, as written; None if there is none.

    With the delimiter "#### " this is the official extraction of GSM8K. A model that repeats the
    examples of its prompt before it answers is judged by the first of them.
    """
    found = re.search(re.escape(delimiter) + STRICT_NUMBER, _with_ascii_digits(text))
    return found[1] if found and parse_number(found[1]) is not None else None


def flexible_number(text: str) -> str | None:
    """The last number of a text, as written; None if there is none.

    lm-eval's "flexible-extract", but for one case: points and signs without a digit, such as an
    ellipsis at the end, are no number, and the one before them is taken.
    """
    numbers = [found for found in FLEXIBLE_NUMBER.findall(_with_ascii_digits(text))
               if parse_number(found) is not None]
    return numbers[-1] if numbers else None


def extract_letter(text: str, letters: str = "ABCD") -> str | None:
    """The option that a generated answer decides for; None where that is unclear.

    Taken is the last verdict: a letter right after "answer is", "Answer:" and the like or in
    ``\\boxed{}``. Where there is none, the answer's first or last line counts if it begins with
    a letter that stands alone: "B", "(B)", "**B.** Paris"; unless lines begin with several, as
    where the options are repeated. An article is no option ("A cat ..."), nor is a letter within a
    sentence, nor one that is denied. Of several letters in one verdict ("A or B"), none is taken.

    Args:
        letters: of the options; their case counts.
    """
    text = unicodedata.normalize("NFKC", text)
    verdicts = list(_verdict_pattern(letters).finditer(text))
    if verdicts:
        found = verdicts[-1]
        named = set(re.findall(f"[{letters}]", found["letters"] or found["boxed"]))
        return named.pop() if len(named) == 1 else None
    lines = [line for line in text.splitlines() if line.strip()]
    bare = [re.match(rf"{_OPEN}([{letters}])(?:\s*[.:)\]]|{_CLOSE}(?:[.:]|\s*$))", line)
            for line in lines]
    named = {found[1] for found in bare if found}
    return named.pop() if len(named) == 1 and any(bare[:1] + bare[-1:]) else None


def _verdict_pattern(letters: str) -> re.Pattern[str]:
    word = rf"(?i:\b(?:{'|'.join(_SPACED)})\b|{'|'.join(_UNSPACED)})"
    link = (r"(?i:\s*(?:is|was|would\s+be|must\s+be|ist|est|es|è|é|option|choice"
            r"|:|-|–|—|=|是|为|は))*")
    one = rf"{_OPEN}(?:\\text\{{)?[{letters}](?!\w|'\w){_CLOSE}"
    several = rf"{one}(?:\s*(?:,|/|&|\bor\b|\band\b)\s*{one})*"
    # "Answer: A cat" begins a sentence.
    article = r"(?!\s+(?!because|since|as|is|and|or|with|for)[a-z])"
    return re.compile(rf"{word}{link}(?P<letters>{several}){article}|"
                      rf"\\boxed\{{(?P<boxed>{one})\}}?")
