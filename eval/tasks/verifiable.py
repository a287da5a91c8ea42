"""Verifiable tasks: generated arithmetic and string questions, scored by exact match.

Questions are split by hash, so no test question is among those of training.
"""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Callable

from data.chat import Conversation, ask
from eval.tasks.task import answer_of, split_of

# A family draws operands and turns them into a question and its answer.
Family = Callable[[random.Random], tuple[str, str]]


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 99), rng.randint(0, 9)
    return f"What is {a} + {b}?", str(a + b)


def _subtract(rng: random.Random) -> tuple[str, str]:
    a, b = sorted((rng.randint(0, 99), rng.randint(0, 9)), reverse=True)
    return f"What is {a} - {b}?", str(a - b)


def _larger(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(1000), 2)
    return f"Which is larger, {a} or {b}?", str(max(a, b))


def _successor(rng: random.Random) -> tuple[str, str]:
    a = rng.randint(0, 9999)
    return f"Which number comes after {a}?", str(a + 1)


def _reverse(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 3, 5)
    return f"Reverse: {' '.join(letters)}", " ".join(reversed(letters))


def _sort(rng: random.Random) -> tuple[str, str]:
    digits = rng.sample(string.digits, rng.randint(3, 5))
    return f"Sort: {' '.join(digits)}", " ".join(sorted(digits))


def _last(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 3, 6)
    return f"What is the last letter of: {' '.join(letters)}?", letters[-1]


def _count(rng: random.Random) -> tuple[str, str]:
    letters = _letters(rng, 1, 8)
    return f"How many letters are here: {' '.join(letters)}?", str(len(letters))


def _letters(rng: random.Random, least: int, most: int) -> list[str]:
    return rng.choices(string.ascii_lowercase, k=rng.randint(least, most))


FAMILIES: dict[str, Family] = {
    "add": _add, "subtract": _subtract, "larger": _larger, "successor": _successor,
    "reverse": _reverse, "sort": _sort, "last": _last, "count": _count}


ARITHMETIC = ("add", "subtract", "larger", "successor")


@dataclasses.dataclass(frozen=True)
class Verifiable:
    """Families in equal shares, as far as they have as many questions; a `Task`."""

    name: str = "verifiable"
    families: tuple[str, ...] = tuple(sorted(FAMILIES))

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """`num` distinct solved questions whose operands belong to `split`."""
        rng = random.Random(f"{split}/{seed}")
        made: dict[str, Conversation] = {}
        for attempt in range(100 * num):
            if len(made) == num:
                break
            family = self.families[attempt % len(self.families)]
            question, answer = FAMILIES[family](rng)
            if split_of(question) == split:
                made.setdefault(question, ask(question, answer, task=self.name, family=family))
        return list(made.values())

    def score(self, conversation: Conversation, completion: str) -> float:
        """1 if the completion equals the answer up to outer white space."""
        return float(completion.strip() == answer_of(conversation))
