"""Principles of a constitution and solved examples, from files of JSON or JSON lines.

Rows of our own, of which a file may hold any:

    {"critique": "...", "revision": "...", "name": "..."}       requests; the name may be left out
    {"preference": "..."}                           by what one of two answers is to be chosen
    {"messages": [...], "critique_request": "...", "critique": "...",
     "revision_request": "...", "revision": "..."}  an example; its messages end with the answer

A row of answers in an order (`data.layouts.table`) is an example of a choice. The files published
with Constitutional AI (arXiv 2212.08073; anthropics/ConstitutionalHarmlessnessPaper at 831f781) are
read as they are: objects with `prompt` and `edit_request` by name, lists of preferences,
transcripts with ``CritiqueRequest:``, and examples with `corrects` and `incorrects`.
"""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.json_text import parse_json, read_lines
from data.chat import Message
from data.layouts.table import LAYOUTS, PREFERENCES, find_layout
from data.layouts.turns import Fault, check_conversation, read_messages, read_transcript
from data.preferences import Preference

OWN = Path(__file__).with_name("principles.jsonl")
REMEDY = ('write {"critique": "...", "revision": "..."} or {"preference": "..."}, as '
          "align/synthetic/principles.py describes")
STEPS = ("CritiqueRequest", "Critique", "RevisionRequest", "Revision")      # of a transcript
EXAMPLE_FIELDS = ("critique_request", "critique", "revision_request", "revision")


@dataclasses.dataclass(frozen=True)
class Principle:
    """A pair of requests.

    Attributes:
        name: for records.
        critique: asks what is wrong with an answer.
        revision: asks for a better one.
    """

    name: str
    critique: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A critique and a revision of the answer with which `messages` end, and their requests."""

    messages: tuple[Message, ...]
    critique_request: str
    critique: str
    revision_request: str
    revision: str


@dataclasses.dataclass(frozen=True)
class Constitution:
    """What a critic is asked by.

    Attributes:
        principles: of critiques and revisions.
        preferences: of choices between two answers.
        examples: of critiques and revisions.
        choices: examples of choices; each has a preferred response.
    """

    principles: tuple[Principle, ...]
    preferences: tuple[str, ...]
    examples: tuple[Example, ...]
    choices: tuple[Preference, ...]

    def with_examples(self, num_examples: int) -> Constitution:
        """The same with at most so many examples of each kind, the first ones."""
        return dataclasses.replace(self, examples=self.examples[:num_examples],
                                   choices=self.choices[:num_examples])


def read_constitution(paths: Sequence[Path]) -> Constitution:
    """Reads files in their order.

    Raises:
        UserError: a file does not exist or is damaged; or a row is none of the above, or lacks a
            text or has an empty one: the message has the file and the row's number.
    """
    found: dict[type, list[Any]] = {Principle: [], str: [], Example: [], Preference: []}
    for path in paths:
        for place, value in _read_values(Path(path)):
            for part in _read_row(value, place):
                found[type(part)].append(part)
    return Constitution(*map(tuple, found.values()))


def _read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file with their places; an object of objects has a row for each of its names.
    """
    try:
        value = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8).decode())
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "correct the name") from None
    except ValueError:      # lines, or damaged ones
        yield from read_lines(path)
        return
    if isinstance(value, Mapping) and value and all(
            isinstance(part, Mapping) for part in value.values()):
        for number, (name, part) in enumerate(value.items(), start=1):
            yield f"{path}, row {number} ({name})", {"name": name, **part}
        return
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


def _read_row(row: Any, place: str) -> list[Principle | str | Example | Preference]:
    if isinstance(row, str):
        is_example = any(f"{step}:" in row for step in STEPS)
        return [_read_steps(row, place) if is_example else _read_preference(row, place)]
    if not isinstance(row, Mapping):
        raise UserError(place, "is neither an object nor a text", REMEDY)
    if "preference" in row:
        return [_read_preference(row["preference"], place)]
    if "messages" in row and any(field in row for field in EXAMPLE_FIELDS):
        return [_read_example(row, place)]
    if "edit_request" in row or (isinstance(row.get("prompt"), list) and "corrects" not in row):
        return _read_published(row, place)
    if "critique" in row or "revision" in row:
        critique, revision = (_text(row.get(field), field, place)
                              for field in ("critique", "revision"))
        return [Principle(str(row.get("name") or place.rpartition(", ")[2]), critique, revision)]
    layout = find_layout(row)
    if layout is None or LAYOUTS[layout].kinds != PREFERENCES:
        raise UserError(place, "holds neither a principle nor an example (fields: "
                        f"{', '.join(map(str, row)) or 'none'})", REMEDY)
    return [_read_choice(row, layout, place)]


def _read_published(row: Mapping[str, Any], place: str) -> list[Principle]:
    prompts = row.get("prompt")
    if not isinstance(prompts, list) or not prompts:
        raise UserError(place, "has no list `prompt` of critique requests", REMEDY)
    revision = _between(row.get("edit_request"), "edit_request", place, *STEPS[2:])
    return [Principle(row["name"], _between(text, "prompt", place, *STEPS[:2]), revision)
            for text in prompts]


def _between(value: Any, field: str, place: str, first: str, last: str) -> str:
    """The request in a published prompt: the text after ``first:`` and before ``last:``."""
    text = _text(value, field, place).strip().removeprefix(f"{first}:").removesuffix(f"{last}:")
    return _text(text, field, place)


def _read_preference(value: Any, place: str) -> str:
    text = _text(value, "preference", place).removesuffix("Options:")
    return _text(text, "preference", place)


def _read_example(row: Mapping[str, Any], place: str) -> Example:
    texts = [_text(row.get(field), field, place) for field in EXAMPLE_FIELDS]
    try:
        messages = read_messages(row["messages"], "messages")
    except Fault as fault:
        raise UserError(place, fault.what, REMEDY) from None
    return Example(_check_turns(messages, place), *texts)


def _read_steps(text: str, place: str) -> Example:
    """The example in a transcript whose last turns are the four of `STEPS`."""
    # The published texts end with the marker of the next example's first turn.
    text = re.sub(r"\n\nHuman:\s*\Z", "", text)
    head, *parts = re.split(rf"\n\n(?:{'|'.join(STEPS)}):", text)
    names = re.findall(rf"\n\n({'|'.join(STEPS)}):", text)
    if tuple(names) != STEPS:
        raise UserError(place, f"holds {', '.join(names) or 'none'} where an example has "
                        f"{', '.join(STEPS)}, in this order", "correct it, or remove it")
    texts = [_text(part, name, place) for name, part in zip(names, parts)]
    try:
        messages = read_transcript(head)
    except Fault as fault:
        raise UserError(place, fault.what, REMEDY) from None
    return Example(_check_turns(messages, place), *texts)


def _check_turns(messages: list[Message], place: str) -> tuple[Message, ...]:
    try:
        check_conversation(messages or [Message("user", "")])
    except Fault as fault:
        raise UserError(place, fault.what, "let its messages end with the answer") from None
    return tuple(messages)


def _read_choice(row: Mapping[str, Any], layout: str, place: str) -> Preference:
    try:
        choice = LAYOUTS[layout].read(row)
    except Fault as fault:
        raise UserError(place, fault.what, "correct it, or remove it") from None
    if not choice.pairs():
        raise UserError(place, "prefers none of its answers", "remove it")
    return choice


def _text(value: Any, field: str, place: str) -> str:
    if value is None:
        raise UserError(place, f"has no {field!r}", REMEDY)
    if not isinstance(value, str) or not value.strip():
        kind = "is empty" if isinstance(value, str) else "is no text"
        raise UserError(place, f"its {field!r} {kind}", REMEDY)
    return value.strip()
