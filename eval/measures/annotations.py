"""Ratings by people in files of preferences and labels: one for each item, annotator and answer.

An item is a prompt with two responses, in whichever order they were shown, or a prompt with one
response. What somebody wrote about an item twice is one rating if it is the same both times, and
none if it is not.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.artifacts import digest
from core.errors import UserError
from data.chat import Message
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import Labelled, Preference

SUBJECTS = ("choices", "scores", "labels")      # what of a file is compared
TIES = ("category", "drop")
FIRST, TIE, SECOND = -1.0, 0.0, 1.0             # choices of two responses, sorted by their text


class Rating(NamedTuple):
    """What an annotator thinks of an item.

    Attributes:
        item: marks prompt and responses.
        prompt: marks the prompt; items of one prompt are not independent of each other.
        value: of choices `FIRST`, `TIE` or `SECOND`, of labels 0 or 1, or a score.
        place: the row, for messages.
    """

    item: Hashable
    prompt: Hashable
    annotator: str
    value: float
    place: str


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Ratings as arrays, one for each item and annotator.

    Attributes:
        items, annotators, codes: numbers of each rating's item, annotator and value, [ratings].
        values: the values by number, ascending, [values].
        names: of the annotators, by number, sorted.
        prompts: of the items, by number.
    """

    items: np.ndarray
    annotators: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    prompts: tuple[Hashable, ...]


class Repeats(NamedTuple):
    """Items that an annotator rated more than once.

    Attributes:
        num: pairs of an item and an annotator.
        conflicting: those whose ratings differ: annotator and the places of the ratings.
    """

    num: int
    conflicting: list[tuple[str, tuple[str, ...]]]


def read_ratings(path: Path, subject: str, *, ties: str = "category", needs_name: bool = True,
                 faults: Faults) -> Iterator[Rating]:
    """The ratings of a file or folder in any layout of `data.layouts`, as a stream.

    Args:
        subject: `choices` between every two responses, by their ranks; `scores` of responses;
            `labels`, whether a response is good.
        ties: of choices; `category`: a tie is an answer like others; `drop`: it is none, and
            counted as `tie`.
        needs_name: whether a row without an annotator is none; otherwise its place names one.
        faults: counts rows that name no annotator, and responses without a score or equal ones.

    Raises:
        UserError: there is no such subject or rule, or see `read_examples`.
    """
    for field, word, words in (("of", subject, SUBJECTS), ("ties", ties, TIES)):
        if word not in words:
            raise UserError(f"--{field}={word}", f"is none of {', '.join(words)}",
                            "choose one of them")
    kind = "labels" if subject == "labels" else "preferences"
    for example in read_examples(path, kind, faults=faults):
        place, annotator = str(example.meta.get("place", path)), example.meta.get("annotator")
        annotator = annotator if needs_name else annotator or place
        if not isinstance(annotator, str | int) or not str(annotator).strip():
            faults.add("no_annotator", place, "does not name its annotator as `annotator`")
            continue
        prompt = _mark_prompt(example.prompt.messages)
        for responses, value in _VALUES[subject](example, place, ties, faults):
            yield Rating(digest([prompt, *responses]), prompt, str(annotator).strip(), value, place)


def mark_item(prompt: Sequence[Message], responses: Sequence[str]) -> str:
    """The `item` of a choice between two responses, in whichever order they are given."""
    return digest([_mark_prompt(prompt), *sorted(responses)])


def _mark_prompt(messages: Sequence[Message]) -> str:
    return digest([[message.role, message.content] for message in messages])


def merge_repeats(ratings: Iterable[Rating]) -> tuple[list[Rating], Repeats]:
    """One rating for each item and annotator; of those who contradict themselves none."""
    groups: dict[tuple[Hashable, str], list[Rating]] = {}
    for rating in ratings:
        groups.setdefault((rating.item, rating.annotator), []).append(rating)
    kept, conflicting, num = [], [], 0
    for group in groups.values():
        num += len(group) > 1
        if len({rating.value for rating in group}) > 1:
            conflicting.append((group[0].annotator, tuple(rating.place for rating in group)))
        else:
            kept.append(group[0])
    return kept, Repeats(num, conflicting)


def make_ratings(ratings: Sequence[Rating], values: Sequence[float] = ()) -> Ratings:
    """Arrays of ratings, of which each item and annotator has one.

    Args:
        values: that belong to the scale, also where nobody gave them.
    """
    names = tuple(sorted({rating.annotator for rating in ratings}))
    prompts = {rating.item: rating.prompt for rating in ratings}
    scale = np.unique(np.array([*values, *(rating.value for rating in ratings)], np.float64))
    number_of_item = {item: number for number, item in enumerate(prompts)}
    number_of_name = {name: number for number, name in enumerate(names)}
    return Ratings(np.array([number_of_item[rating.item] for rating in ratings], np.int64),
                   np.array([number_of_name[rating.annotator] for rating in ratings], np.int64),
                   np.searchsorted(scale, [rating.value for rating in ratings]), scale, names,
                   tuple(prompts.values()))


def _choices(preference: Preference, place: str, ties: str,
             faults: Faults) -> Iterator[tuple[tuple[str, ...], float]]:
    ranked = zip(preference.responses, preference.ranks)
    for (one, rank), (other, other_rank) in itertools.combinations(ranked, 2):
        if one == other:
            faults.add("equal", place, "has the same response twice")
            continue
        value = SECOND if rank > other_rank else FIRST if rank < other_rank else TIE
        if value == TIE and ties == "drop":
            faults.add("tie", place, "prefers none of two responses")
            continue
        yield ((one, other), value) if one < other else ((other, one), -value)


def _scores(preference: Preference, place: str, ties: str,
            faults: Faults) -> Iterator[tuple[tuple[str, ...], float]]:
    if not preference.scores:
        faults.add("no_scores", place, "has no scores")
    for response, score in zip(preference.responses, preference.scores):
        yield (response,), score


def _labels(labelled: Labelled, place: str, ties: str,
            faults: Faults) -> Iterator[tuple[tuple[str, ...], float]]:
    yield (labelled.response,), float(labelled.is_good)


_VALUES = {"choices": _choices, "scores": _scores, "labels": _labels}
