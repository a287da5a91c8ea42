"""Answers that wait for the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any


class Waiting:
    """A queue in which requests take turns, each with one answer at a time: one that asks for many
    answers does not hold up another that came after it."""

    def __init__(self) -> None:
        self._requests: deque[deque[Any]] = deque()

    def add(self, answers: Sequence[Any]) -> None:
        """Adds the answers to one request."""
        self._requests.append(deque(answers))

    def take(self, count: int) -> list[Any]:
        """Takes out up to `count` answers; those that are over do not count, and are dropped."""
        taken: list[Any] = []
        while self._requests and len(taken) < count:
            answers = self._requests.popleft()
            if not (answer := answers.popleft()).is_over:
                taken.append(answer)
            if answers:
                self._requests.append(answers)
        return taken

    def __len__(self) -> int:
        return sum(map(len, self._requests))

    def __iter__(self) -> Iterator[Any]:
        return (answer for answers in self._requests for answer in answers)
