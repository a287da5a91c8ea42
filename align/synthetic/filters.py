"""Filters of a model's answers, with the reason of each removal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from align.synthetic.prompts import Style, format_pairs, parse_pairs
from data.dedup.shingles import shingle

SHINGLE_WORDS = 5       # of copies and repetitions
ECHO_WORDS = 8          # consecutive words of the instruction
MIN_LANGUAGE_SCORE = 0.5    # below it, a text's language is uncertain

_PREFACE = re.compile(
    r"(?i)^(?:sure|certainly|of course|here(?:'s|’s| is| are)|below is)\b[^\n]*:[ \t]*(?:\n|\Z)")
_REFUSAL = re.compile(
    r"(?i)^\W*(?:(?:i['’]m|i am) (?:very |so |really )?(?:sorry|unable|not able)|sorry\b"
    r"|my apologies|i apologi[sz]e|as an? (?:ai|large language|language|artificial)"
    r"|unfortunately,? i|i (?:cannot|can['’]t|can not|won['’]t|will not|do not|don['’]t) "
    r"(?:\w+ ){0,2}?(?:assist|help|provide|fulfil|fulfill|comply|create|write|generate|rewrite"
    r"|continue|have (?:access|enough|the ability)))\b")

Identify = Callable[[str], tuple[str, float]]


class Verdict(NamedTuple):
    """A cleaned answer; `reason` is empty if it is accepted."""

    text: str
    reason: str
    score: float


def judge(answer: str, passage: str, style: Style, bounds: Mapping[str, Any],
          identify: Identify) -> Verdict:
    """Judges one answer; the first reason that applies is returned.

    Reasons:
        empty: only white space.
        refusal: begins with an apology or a reference to itself as a model.
        prompt_echo: eight consecutive words of the instruction; score: number of such runs.
        malformed_pairs: no question with its answer, if the style requires them.
        too_short: fewer words than ``min_words``.
        repetition: a larger share of its word 5-grams than ``max_repeated_frac`` is repeated.
        copy: a larger share of its distinct word 5-grams than ``max_copied_frac`` is the passage's.
        language_change: its language is not the passage's.

    Args:
        bounds: the bounds named above.
        identify: returns a text's language and its confidence, from 0 to 1.
    """
    text = without_preface(answer)
    if not text:
        return Verdict(text, "empty", 0.0)
    if is_refusal(text):
        return Verdict(text, "refusal", 1.0)
    echoed = _shared(shingle(text, ECHO_WORDS), shingle(style.instruction, ECHO_WORDS))
    if echoed and len(text.split()) >= ECHO_WORDS:
        return Verdict(text, "prompt_echo", float(echoed))
    if style.is_pairs:
        pairs = parse_pairs(text)
        if not pairs:
            return Verdict(text, "malformed_pairs", 0.0)
        text = format_pairs(pairs)
    words = text.split()
    if len(words) < bounds["min_words"]:
        return Verdict(text, "too_short", float(len(words)))
    grams = shingle(text, SHINGLE_WORDS)
    repeated_frac = 1 - len(grams) / max(len(words) - SHINGLE_WORDS + 1, len(grams))
    if repeated_frac > bounds["max_repeated_frac"]:
        return Verdict(text, "repetition", repeated_frac)
    copied_frac = _shared(grams, shingle(passage, SHINGLE_WORDS)) / max(len(grams), 1)
    if copied_frac > bounds["max_copied_frac"]:
        return Verdict(text, "copy", copied_frac)
    (was, was_score), (now, now_score) = identify(passage), identify(text)
    if was != now and min(was_score, now_score) >= MIN_LANGUAGE_SCORE:
        return Verdict(text, "language_change", now_score)
    return Verdict(text, "", 0.0)


def without_preface(answer: str) -> str:
    """The answer without a first line such as "Here is the text:", and without outer space."""
    return _PREFACE.sub("", answer.strip()).strip()


def is_refusal(text: str) -> bool:
    """Whether a text begins with an apology or a reference to itself as a model."""
    return bool(_REFUSAL.match(text))


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    return len(np.intersect1d(first, second, assume_unique=True))
