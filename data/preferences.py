"""Preferences: responses to one prompt, in order; the one format of votes, labels and rankings.

A file holds one JSON object a line:

    {"messages": [{"role": "user", "content": "..."}], "responses": ["...", "..."],
     "ranks": [1, 2], "source": "verifiable", "meta": {"annotator": "p3"},
     "finishes": ["stop", "length"]}
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.artifacts import write_jsonl
from core.errors import UserError
from core.json_text import read_lines
from data.chat import Conversation, make_conversation


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two or more responses to a prompt, and their order.

    Attributes:
        prompt: messages up to the user's last.
        responses: what was answered.
        ranks: rank of each response, 1 for the best; equal ranks are a tie.
        source: who ordered them: a task, a judge, a person.
        meta: whatever else is known, as plain JSON; `annotator` names the person who ordered them.
            Of a vote in an arena, `models` names who gave each response, which are in the order
            shown, and there may be `id`, `time`, `secs` and `category`; see `eval.arena.votes`.
        finishes: how each response ended, stop or length (cut at a limit); empty if unknown.
        scores: the number that each response was given; empty if unknown.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    source: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finishes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    def pairs(self) -> list[tuple[int, int]]:
        """Indices (preferred, other) of every two responses that are not tied."""
        ranked = sorted(zip(self.ranks, range(len(self.ranks))))
        return [(i, j) for (better, i), (worse, j) in itertools.combinations(ranked, 2)
                if better < worse]

    def to_dict(self) -> dict[str, Any]:
        """The preference as plain JSON."""
        return {"messages": self.prompt.to_dict()["messages"], "responses": list(self.responses),
                "ranks": list(self.ranks), "source": self.source, "meta": dict(self.meta),
                "finishes": list(self.finishes), "scores": list(self.scores)}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One response to a prompt, and whether it is good.

    Attributes:
        prompt: messages up to the user's last.
        response: what was answered.
        is_good: whether it is one to imitate.
        source, meta: as of `Preference`.
        finish: how the response ended, stop or length; "" if unknown.
    """

    prompt: Conversation
    response: str
    is_good: bool
    source: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finish: str = ""


def make_preference(row: Mapping[str, Any], where: str) -> Preference:
    """Makes a preference from plain JSON.

    Args:
        where: the row's place, for messages.

    Raises:
        UserError: a field is missing or of another type, or the ranks do not fit the responses.
    """
    remedy = 'write {"messages": [...], "responses": ["...", "..."], "ranks": [1, 2]}'
    if not isinstance(row, Mapping):
        raise UserError(where, "is no JSON object", remedy)
    for field in ("messages", "responses", "ranks"):
        if not isinstance(row.get(field), list):
            raise UserError(where, f"has no list {field!r}", remedy)
    responses, ranks = row["responses"], row["ranks"]
    if len(responses) < 2 or not all(isinstance(text, str) for text in responses):
        raise UserError(where, "needs at least two responses, each a text", remedy)
    if len(ranks) != len(responses) or not all(type(rank) is int and rank > 0 for rank in ranks):
        raise UserError(where, "needs one rank from 1 on for each response", remedy)
    finishes = row.get("finishes", [])
    if not isinstance(finishes, list) or len(finishes) not in (0, len(responses)):
        raise UserError(where, "needs one of finishes for each response, or none", remedy)
    scores = row.get("scores", [])
    if (not isinstance(scores, list) or len(scores) not in (0, len(responses))
            or not all(isinstance(score, int | float) for score in scores)):
        raise UserError(where, "needs one number of scores for each response, or none", remedy)
    return Preference(make_conversation(row["messages"], where), tuple(responses), tuple(ranks),
                      row.get("source", ""), row.get("meta", {}), tuple(finishes),
                      tuple(map(float, scores)))


def write_preferences(path: Path, preferences: Iterable[Preference]) -> None:
    """Writes preferences as JSON lines."""
    write_jsonl(path, (preference.to_dict() for preference in preferences))


def read_preferences(path: Path) -> list[Preference]:
    """Reads preferences; see `make_preference` for what is refused."""
    return [make_preference(row, place) for place, row in read_lines(path)]
