"""Layouts of solved questions: rows that hold one conversation with its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.chat import Conversation, Message
from data.layouts.turns import (
    Fault,
    check_conversation,
    check_text,
    is_transcript,
    read_answer,
    read_messages,
    read_prompt,
    read_transcript,
)
from data.readers import conversations

Row = Mapping[str, Any]
ALPACA = tuple(pair for pair in conversations.PAIRS if pair[0] == "instruction")
COMPLETIONS = tuple(pair for pair in conversations.PAIRS if pair[0] == "prompt")
ANSWERS = tuple(pair for pair in conversations.PAIRS if pair not in ALPACA + COMPLETIONS)


def system_of(row: Row) -> Any:
    """The content of a row's system message; None if it has none."""
    return next((row[name] for name in conversations.SYSTEM_FIELDS if row.get(name)), None)


def turns_of(row: Row) -> tuple[str, list[Any]] | None:
    """The field that holds a row's turns, and the turns; None if there is none."""
    for field in conversations.FIELDS:
        if field in row and (turns := conversations.list_turns(row[field])):
            return field, turns
    return None


def instruction_of(row: Row, field: str) -> Any:
    """A question, followed by the input of an instruction if there is one."""
    given = next((row[name] for name in conversations.INPUT_FIELDS
                  if isinstance(row.get(name), str) and row[name].strip()), None)
    question = row[field]
    return f"{question.rstrip()}\n\n{given}" if given and isinstance(question, str) else question


def has_messages(row: Row) -> bool:
    """Whether a row holds turns with `role` and `content`."""
    return _has_turns(row, "role")


def has_answered(row: Row) -> bool:
    """Whether a row holds turns with `role` and `content`, and a text that answers the last."""
    return (has_messages(row) and isinstance(row.get("completion"), str)
            and isinstance(last := turns_of(row)[1][-1], dict) and last.get("role") == "user")


def read_answered(row: Row) -> Conversation:
    """The conversation of turns and the answer to the last one; raises `Fault`."""
    field, turns = turns_of(row)
    answer = Message("assistant", check_text(row["completion"], "completion"))
    return _make([*read_prompt(turns, field, system_of(row)), answer], row)


def has_sharegpt(row: Row) -> bool:
    """Whether a row holds turns with `from` and `value`."""
    return _has_turns(row, "from")


def read_turns(row: Row) -> Conversation:
    """The conversation of turns with roles; raises `Fault`."""
    field, turns = turns_of(row)
    return _make(read_messages(turns, field, system_of(row)), row)


def has_alpaca(row: Row) -> bool:
    """Whether a row holds an instruction and its output."""
    return _pair_of(row, ALPACA) is not None or _instances_of(row) is not None


def read_alpaca(row: Row) -> Conversation:
    """The conversation of an instruction with input, output and earlier turns (`history`).

    Of Self-Instruct's instances the first is taken, as each of its tasks has one.
    """
    instances = _instances_of(row)
    if instances is not None:
        if len(instances) != 1 or not isinstance(instances[0], Mapping):
            raise Fault("several_instances", "does not hold exactly one instance")
        row = {**row, **instances[0]}
        if "output" not in row:
            raise Fault("no_answer", "its instance has no output")
    earlier = []
    for turn in conversations.list_turns(row.get("history")) or ():
        if not isinstance(turn, list) or len(turn) != 2:
            raise Fault("no_messages", "`history` holds no pairs of a question and its answer")
        earlier += [*read_prompt(turn[0], "history"), *read_answer(turn[1], "history")]
    return _read_pair(row, ALPACA, earlier)


def has_completion(row: Row) -> bool:
    """Whether a row holds a prompt and its completion or response."""
    return _pair_of(row, COMPLETIONS) is not None


def read_completion(row: Row) -> Conversation:
    """The conversation of a prompt and a completion, texts or messages."""
    return _read_pair(row, COMPLETIONS)


def has_answer(row: Row) -> bool:
    """Whether a row holds a question and its answer."""
    return _pair_of(row, ANSWERS) is not None


def read_question(row: Row) -> Conversation:
    """The conversation of a question and its answer."""
    return _read_pair(row, ANSWERS)


def has_transcript(row: Row) -> bool:
    """Whether a row holds a transcript as `text`."""
    return is_transcript(row.get("text"))


def read_text(row: Row) -> Conversation:
    """The conversation of a transcript."""
    return _make(read_transcript(row["text"]), row)


def _has_turns(row: Row, role: str) -> bool:
    found = turns_of(row)
    return found is not None and isinstance(found[1][0], Mapping) and role in found[1][0]


def _pair_of(row: Row, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    return next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)


def _instances_of(row: Row) -> list[Any] | None:
    instances = row.get("instances")
    return instances if "instruction" in row and isinstance(instances, list) else None


def _read_pair(row: Row, pairs: tuple[tuple[str, str], ...],
               earlier: list[Message] | None = None) -> Conversation:
    asks, answers = _pair_of(row, pairs)
    prompt = read_prompt(instruction_of(row, asks), asks, system_of(row))
    if earlier:
        first = prompt[:-1]     # a system message stands before the earlier turns
        prompt = [*first, *earlier, prompt[-1]]
    if row[answers] is None:
        raise Fault("no_answer", f"`{answers}` is null")
    answer = read_answer(row[answers], answers, after=row[asks])
    return _make([*prompt, *answer], row)


def _make(messages: list[Message], row: Row) -> Conversation:
    """The conversation, with the row's `meta` and its definitions of tools."""
    check_conversation(messages)
    meta = dict(row["meta"]) if isinstance(row.get("meta"), Mapping) else {}
    if row.get("tools"):
        meta["tools"] = row["tools"]
    return Conversation(tuple(messages), meta)
