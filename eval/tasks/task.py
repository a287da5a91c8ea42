"""The interface of tasks; `score` is used for evaluation and as a reward."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from data.chat import Conversation

SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A question whose options a model scores by their log-probabilities.

    Attributes:
        question: what is asked; its `meta` may have an `id`, by which records name the item, and a
            `group`, whose items belong together: a subject, a passage.
        choices: the options, as scored: where `contexts` are given byte for byte, the space that
            divides an option from its context included. Of one option alone the question is
            whether the model, word by word, would have said it.
        answer: index of the right option.
        contexts: literal prompts, one before each option or one before all of them; where there is
            none, the question is asked as the model was taught to be asked.
        baseline: literal prompt without the question, against which an option's own frequency is
            measured (PMI, arXiv 2104.08315); "" where there is none.
        answers: indices of all right options, where there may be several (TruthfulQA's MC2).
    """

    question: Conversation
    choices: tuple[str, ...]
    answer: int
    contexts: tuple[str, ...] = ()
    baseline: str = ""
    answers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Grade:
    """A judged answer.

    Attributes:
        score: from 0 to 1.
        extracted: what of the answer was compared; None where nothing was found to compare.
        measures: further scores by name, e.g. under another rule of extraction.
    """

    score: float
    extracted: str | None
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
class AnswerTask(Protocol):
    """A task of a benchmark, whose answers are generated after a literal prompt.

    The prompt of a conversation is the text `meta["prompt"]`; `id` and `group` are as in `Choice`.

    Attributes:
        stops: texts that end an answer, and are no part of it.
        max_new_tokens: of an answer.
    """

    stops: tuple[str, ...]
    max_new_tokens: int

    def grade(self, conversation: Conversation, completion: str) -> Grade:
        """Judges `completion` as the last answer of `conversation`; `score` is that of the grade.
        """


@runtime_checkable
class ProgramTask(AnswerTask, Protocol):
    """A task whose answers are programs, which are run several at a time."""

    def grade_all(self, answers: Sequence[tuple[Conversation, str]]) -> list[Grade]:
        """The grades of conversations with their completions."""


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
