"""MT-Bench (arXiv 2306.05685): its questions of two turns, files of answers, and prompts.

The files are those of `fastchat/llm_judge/data` (lm-sys/FastChat@0e6d3e4). Its prompts quote
nothing and ask for no code: a verdict that a judge copies from an answer counts. They make scores
comparable with published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.json_text import read_lines
from data.chat import Conversation, Message
from data.layouts.faults import Faults
from eval.judges.candidates import Answers, Messages, Pair, mark_question
from eval.judges.prompts import Asked

_FIELD = re.compile(r"\{(\w+)\}")
_NAMES = {("pairwise", False, 1): "pair-v2", ("pairwise", False, 2): "pair-v2-multi-turn",
          ("pairwise", True, 1): "pair-math-v1", ("pairwise", True, 2): "pair-math-v1-multi-turn",
          ("single", False, 1): "single-v1", ("single", False, 2): "single-v1-multi-turn",
          ("single", True, 1): "single-math-v1", ("single", True, 2): "single-math-v1-multi-turn"}


def read_turns(questions: Path, path: Path, faults: Faults) -> Answers:
    """The answers of a file of FastChat's: a conversation up to each of a question's turns.

    Args:
        questions: file with `question_id` and `turns`.
        path: file with `question_id` and `choices`, of which the first is taken.
        faults: counts answers to no such question as `unmatched`, and empty ones as `no_answer`.

    Raises:
        UserError: a line lacks a field, or nothing is left.
    """
    asked = {_get(row, "question_id", place): _texts(_get(row, "turns", place), place)
             for place, row in read_lines(questions)}
    found: Answers = {}
    for place, row in read_lines(path):
        question = _get(row, "question_id", place)
        choices = _get(row, "choices", place)
        if not isinstance(choices, list) or not choices:
            raise UserError(place, "has no choice", "write choices: [{turns: [...]}]")
        if question not in asked:
            faults.add("unmatched", place, f"answers {question}, which is no question")
            continue
        messages: Messages = ()
        for turn, answer in zip(asked[question], _texts(_get(choices[0], "turns", place), place)):
            messages += (Message("user", turn), Message("assistant", answer))
            if not answer.strip():
                faults.add("no_answer", place, "has an empty answer")
                break
            found[mark_question(messages)] = Conversation(
                messages, {"place": place, "question": question})
    if not found:
        raise UserError(str(path), "answers none of the questions", "name another file")
    return found


class PublishedPrompts:
    """The prompts of a file of FastChat's.

    Raises:
        UserError: one of its eight prompts is missing, or a line lacks a field.
    """

    def __init__(self, path: Path):
        rows = {_get(row, "name", place): (place, row) for place, row in read_lines(path)}
        self._templates: dict[tuple[str, bool, int], tuple[str, str]] = {}
        for key, name in _NAMES.items():
            if name not in rows:
                raise UserError(str(path), f"has no prompt {name!r}", "name judge_prompts.jsonl")
            place, row = rows[name]
            self._templates[key] = tuple(
                _texts([_get(row, field, place)], place)[0]
                for field in ("system_prompt", "prompt_template"))

    def compare(self, pair: Pair) -> Asked:
        """The request to compare two answers, in the order of the pair."""
        both = [(*pair.prompt, *answer) for answer in pair.answers]
        questions = [message.content for message in both[0] if message.role == "user"]
        fields = _number("question", questions)
        for letter, messages in zip("ab", both):
            fields |= _number(f"answer_{letter}", _answers(messages))
        return self._fill("pairwise", questions, fields, pair.reference)

    def rate(self, prompt: Messages, answer: Messages, reference: tuple[str, ...]) -> Asked:
        """The request to rate the last answer of a conversation."""
        messages = (*prompt, *answer)
        questions = [message.content for message in messages if message.role == "user"]
        return self._fill("single", questions, _number("question", questions)
                          | _number("answer", _answers(messages)), reference)

    def _fill(self, kind: str, questions: list[str], fields: Mapping[str, str],
              reference: tuple[str, ...]) -> Asked:
        """A filled template; what stands in an answer is not filled in again."""
        num = len(questions)
        if num > 2:
            raise UserError("judge.prompts", "MT-Bench has conversations of two turns, and one "
                            f"has {num}", "leave it out, or set judge.prompts to \"\"")
        system, template = self._templates[kind, bool(reference), num]
        known = {**fields, **_number("ref_answer", reference)}
        text = _FIELD.sub(lambda field: known.get(field[1], field[0]), template)
        return Asked(Conversation((Message("system", system), Message("user", text))), "")


def _answers(messages: Messages) -> list[str]:
    return [message.content for message in messages if message.role == "assistant"]


def _number(name: str, texts: list[str] | tuple[str, ...]) -> dict[str, str]:
    """Fields of texts: NAME for the first, and NAME_1, NAME_2 and so on."""
    return {name: texts[0] if texts else ""} | {
        f"{name}_{number}": text for number, text in enumerate(texts, start=1)}


def _get(row: Any, field: str, place: str) -> Any:
    if not isinstance(row, Mapping) or field not in row:
        raise UserError(place, f"has no {field!r}", "name a file of FastChat's")
    return row[field]


def _texts(values: Any, place: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(place, "has what is no text where texts should be",
                        "name a file of FastChat's")
    return values
