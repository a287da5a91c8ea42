"""Rules in place of a critic's model: for tests, and for experiments with a known right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from core.errors import UserError
from core.functions import load_function

_SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s|\Z)|\n+|\Z)\s*", re.S)


class Rule(Protocol):
    """Criticises, revises and scores answers."""

    def critique(self, answer: str) -> str:
        """What is wrong with an answer, or that nothing is."""

    def revise(self, answer: str) -> str:
        """A better answer; the same where nothing is wrong with it."""

    def score(self, answer: str) -> float:
        """How good an answer is; higher is better."""


class Length:
    """Answers have at most `max_words` words; of two the shorter is better."""

    def __init__(self, settings: Mapping[str, Any]):
        self._max_words = settings["max_words"]

    def critique(self, answer: str) -> str:
        """Counts the words."""
        return f"The answer has {len(answer.split())} words; {self._max_words} are allowed."

    def revise(self, answer: str) -> str:
        """The first sentences that fit, or the first words where the first sentence does not."""
        if len(answer.split()) <= self._max_words:
            return answer
        kept = ""
        for sentence in _SENTENCE.findall(answer):
            if len((kept + sentence).split()) > self._max_words:
                break
            kept += sentence
        return kept.strip() or " ".join(answer.split()[:self._max_words])

    def score(self, answer: str) -> float:
        """Minus the number of words."""
        return -float(len(answer.split()))


class WordList:
    """Answers have none of the listed `words`, whatever their case; fewer of them are better."""

    def __init__(self, settings: Mapping[str, Any]):
        words = settings["words"]
        if not words:
            raise UserError("constitution.rule.words", "names no word, which this rule needs",
                            "set --config.constitution.rule.words")
        self._pattern = re.compile(rf"(?i)(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")

    def critique(self, answer: str) -> str:
        """Names the words that were found."""
        found = sorted({word.lower() for word in self._pattern.findall(answer)})
        return f"The answer holds {', '.join(found)}." if found else "The answer is in order."

    def revise(self, answer: str) -> str:
        """The sentences without such a word; the answer without the words where none is left."""
        kept = [sentence for sentence in _SENTENCE.findall(answer)
                if not self._pattern.search(sentence)]
        return "".join(kept).strip() or " ".join(self._pattern.sub("", answer).split())

    def score(self, answer: str) -> float:
        """Minus the number of such words."""
        return -float(len(self._pattern.findall(answer)))


RULES: dict[str, Callable[[Mapping[str, Any]], Rule]] = {"length": Length, "word_list": WordList}


def make_rule(name: str, settings: Mapping[str, Any]) -> Rule:
    """A rule by its name, or one of the user's own, ``module.Class``, made from the same settings.

    Raises:
        UserError: there is no such rule, or a setting that it needs is empty.
    """
    if name in RULES:
        return RULES[name](settings)
    if "." not in name:
        raise UserError(f"constitution.critic_rule={name!r}", f"is none of {', '.join(RULES)}",
                        "choose one of them, or name a class of your own: module.Class")
    return load_function("constitution.critic_rule", name)(settings)
