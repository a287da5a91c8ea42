"""A file of votes: the answers of a round, whose ranks people fill in.

A line is a preference of `data.preferences` whose `ranks` are null until somebody orders the
answers: 1 for the best, equal numbers for a tie. A line may be there several times, from several
people, with `annotator` in its `meta`; one that nobody wants to judge may be removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import write_jsonl
from core.errors import UserError
from core.json_text import read_lines
from data.preferences import Preference, make_preference


def write_blank(path: Path, candidates: Sequence[Preference]) -> None:
    """Writes the file with all ranks null, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_jsonl(temporary, (one.to_dict() | {"ranks": [None] * len(one.responses)}
                            for one in candidates))
    os.replace(temporary, path)


def count_blank(path: Path, candidates: Sequence[Preference]) -> int:
    """Lines without an order; errors as `read_votes`, but for these."""
    return sum(is_blank for _, _, is_blank in _read(path, candidates))


def read_votes(path: Path,
               candidates: Sequence[Preference]) -> tuple[list[Preference], dict[str, int]]:
    """The votes, and counts.

    Returns:
        The votes in the file's order; and `votes`, how many; `ties`, those that prefer nothing;
        `not_voted`, candidates without a vote; `annotators`, people who gave their name.

    Raises:
        UserError: a line has no order, or its answers are none of the candidates'.
    """
    votes = []
    for place, vote, is_blank in _read(path, candidates):
        if is_blank:
            raise UserError(place, "has no order of its answers", "fill in ranks, or remove it")
        votes.append(vote)
    people = {str(vote.meta["annotator"]) for vote in votes if vote.meta.get("annotator")}
    not_voted = {_key(one) for one in candidates} - {_key(vote) for vote in votes}
    return votes, {"votes": len(votes), "ties": sum(not vote.pairs() for vote in votes),
                   "not_voted": len(not_voted), "annotators": len(people)}


def _read(path: Path,
          candidates: Sequence[Preference]) -> Iterator[tuple[str, Preference, bool]]:
    """Place of each line, its preference, and whether it has no order: then it is a tie."""
    asked = {_key(one) for one in candidates}
    for place, row in read_lines(path):
        is_blank = _is_blank(row)
        if is_blank:
            row = row | {"ranks": [1] * len(row.get("responses") or ())}
        vote = make_preference(row, place)
        if _key(vote) not in asked:
            raise UserError(place, "has a prompt or answers that this round did not ask about",
                            "change nothing but ranks; where the round has new answers, move the "
                            "file away and run the same command again")
        yield place, vote, is_blank


def _is_blank(row: Any) -> bool:
    ranks = row.get("ranks") if isinstance(row, dict) else ()
    return ranks is None or (isinstance(ranks, list) and None in ranks)


def _key(one: Preference) -> tuple[Any, ...]:
    """What is compared: a labelling page may show the answers in any order."""
    return (*((message.role, message.content) for message in one.prompt.messages),
            *sorted(one.responses))
