"""Prompts: rephrasing of a passage in several styles, and questions with answers.

The styles are those of WRAP (arXiv 2401.16380, section 3) and of Nemotron-CC (arXiv 2412.02595,
section 2.3), with wording of our own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from core.artifacts import digest

_KEEP_FACTS = ("Keep every fact, name, number and formula, add nothing that the text does not say, "
               "and write in the language of the text.")
_BARE = "Write the result only, without any remark before or after it."


@dataclasses.dataclass(frozen=True)
class Style:
    """A style of prompt.

    Attributes:
        name: its name in configs and `meta`.
        instruction: precedes the passage.
        is_pairs: whether the answer must be ``Question:`` and ``Answer:`` lines.
    """

    name: str
    instruction: str
    is_pairs: bool = False

    @property
    def prompt_id(self) -> str:
        """Name and digest of the wording."""
        return f"{self.name}-{digest(self.instruction)[:8]}"

    def prompt(self, passage: str) -> str:
        """The whole prompt for a passage."""
        return f"{self.instruction}\n\nText:\n{passage}"


STYLES = {style.name: style for style in (
    Style("encyclopedic", "Rewrite the text below in the clear, neutral and precise prose of a "
          f"good encyclopedia. {_KEEP_FACTS} {_BARE}"),
    Style("simple", "Rewrite the text below for a child of ten years: short sentences and everyday "
          f"words, every hard word explained. {_KEEP_FACTS} {_BARE}"),
    Style("question_answer", "Turn the whole of the text below into a series of questions and "
          "answers that together say everything it says. Begin each question with \"Question:\" "
          f"and each answer with \"Answer:\", on lines of their own. {_KEEP_FACTS} {_BARE}", True),
    Style("dialogue", "Turn the text below into a conversation between two people, one who wants "
          "to understand the matter and one who knows it. Begin every turn with the speaker's "
          f"name and a colon, on a line of its own. {_KEEP_FACTS} {_BARE}"),
    Style("pairs", "Write up to eight questions that the text below answers, of different kinds: "
          "what, why, how, comparisons, numbers, yes or no. Each must make sense to somebody who "
          "has not seen the text, and each answer must be complete and short. Begin each question "
          "with \"Question:\" and each answer with \"Answer:\", on lines of their own. "
          f"{_KEEP_FACTS} {_BARE}", True))}

# Models add numbers and bold face: "1. **Question 1:** ...".
MARK = r"^[^\w\n]*(?:\d+[.)]?)?[^\w\n]*{}(?: \d+)?\W*?:"
_QUESTION, _ANSWER = (re.compile(MARK.format(word), re.M) for word in ("Question", "Answer"))


def parse_pairs(answer: str) -> list[tuple[str, str]]:
    """Parses (question, answer) pairs of a model's answer; incomplete pairs are skipped."""
    pairs = []
    for block in _QUESTION.split(answer)[1:]:
        question, *replies = _ANSWER.split(block)
        question, reply = (part.strip("*# \n") for part in (question, "".join(replies[:1])))
        if question and reply:
            pairs.append((" ".join(question.split()), reply))
    return pairs


def format_pairs(pairs: list[tuple[str, str]]) -> str:
    """Questions and answers as text, the form that `parse_pairs` reads back."""
    return "\n\n".join(f"Question: {question}\nAnswer: {reply}" for question, reply in pairs)


def split_passages(text: str, max_words: int) -> Iterator[str]:
    """Cuts a text into passages of at most `max_words`, at line ends where it can.

    With longer passages a model omits their middle when rephrasing (arXiv 2401.16380, section 3.1,
    uses 300 tokens).
    """
    held: list[str] = []
    num_words = 0
    for line in text.split("\n"):
        for piece in _pieces(line, max_words):
            size = len(piece.split())
            if num_words + size > max_words:
                yield "\n".join(held).strip("\n")
                held, num_words = [], 0
            held.append(piece)
            num_words += size
    if num_words:
        yield "\n".join(held).strip("\n")


def _pieces(line: str, max_words: int) -> list[str]:
    words = line.split()
    if len(words) <= max_words:
        return [line]
    return [" ".join(words[first:first + max_words]) for first in range(0, len(words), max_words)]
