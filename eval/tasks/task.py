"""The interface of tasks; `score` is used for evaluation and as a reward."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Protocol, runtime_checkable

from data.chat import Conversation

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A multiple-choice question: `choices`, and the index of the right one."""

    question: Conversation
    choices: tuple[str, ...]
    answer: int


class Task(Protocol):
    """Questions that a program can score.

    Attributes:
        name: the task's name in tables and files.
    """

    name: str

    def conversations(self, split: str, num: int, seed: int) -> list[Conversation]:
        """`num` solved conversations of a split; train and test share no question."""

    def score(self, conversation: Conversation, completion: str) -> float:
        """Score of `completion` as the last answer of `conversation`, from 0 to 1."""


@runtime_checkable
class ChoiceTask(Protocol):
    """A task with multiple-choice questions."""

    def choices(self, split: str, num: int, seed: int) -> list[Choice]:
        """Up to `num` multiple-choice questions of a split."""


def split_of(text: str, num_parts: int = 10) -> str:
    """Assigns one in `num_parts` texts to the test split, by a machine-independent hash."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % num_parts
    return "test" if bucket == 0 else "train"


def answer_of(conversation: Conversation) -> str:
    """The reference answer: the content of the last message."""
    return conversation.messages[-1].content


def question_of(conversation: Conversation) -> Conversation:
    """The conversation without its answer."""
    return Conversation(conversation.messages[:-1], conversation.meta)
