"""Votes from files: preferences that name their models, rankings, and battles as of arenas.

A line is a preference of `data.preferences` whose `meta` names the `models` of its responses, in
the order in which they were shown; or it has no texts, as a ranking or a battle:

    {"models": ["a", "b", "c"], "ranks": [1, 2, 2], "annotator": "p3"}
    {"model_a": "a", "model_b": "b", "winner": "model_a"}

`winner` is model_a, model_b, tie or both_bad; in its place may stand `score`: 1, 2, 3 for a tie, or
-1 for no verdict. Beside them, or in `meta`, may stand `id` of the vote, `annotator`, `time`
(seconds since 1970, or ISO 8601), `secs` that the voter took, `category`, `prompt` or
`question_id`, and counts of style: words_a, header_a, list_a, bold_a, and the same of b.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import UserError, quote
from data.layouts.faults import Faults
from data.layouts.orders import ANNOTATORS, VOTES
from data.layouts.rows import Damaged, find_files, read_rows
from data.layouts.turns import Fault
from eval.arena.style import MEASURES, measure_style

SCORES = {"1": "model_a", "2": "model_b", "3": "tie"}      # that stand for a winner
IDS, TIMES = ("id", "vote_id"), ("time", "tstamp", "timestamp")
PROMPTS = ("messages", "prompt", "question", "question_id")
# Fields of `MEASURES`, by side.
STYLES = tuple(tuple(f"{name}_{side}" for name in ("words", "header", "list", "bold"))
               for side in "ab")


class Vote(NamedTuple):
    """One line of votes.

    Attributes:
        models: of the answers, in the order in which they were shown.
        ranks: of the answers, 1 for the best; equal ranks are a tie.
        styles: the measures of each answer; empty if unknown.
        prompt: marks the prompt; "" if unknown.
        texts: of the answers; empty if unknown.
        annotator, category: "" if unknown.
        time, secs: seconds since 1970, and that the vote took; NaN if unknown.
    """

    models: tuple[str, ...]
    ranks: tuple[int, ...]
    styles: tuple[tuple[float, ...], ...]
    prompt: str
    texts: tuple[str, ...]
    annotator: str
    category: str
    time: float
    secs: float


@dataclasses.dataclass(frozen=True)
class Votes:
    """Votes as arrays; a vote has a comparison for every two of its answers.

    Attributes:
        models: all names, sorted; some may be in no comparison.
        annotators, categories: names, sorted.
        first, second: numbers of the models of a comparison in the order shown, [comparisons].
        scores: 1, 1/2 or 0 of the first, [comparisons].
        votes: number of its vote, ascending, [comparisons].
        items: number of what was compared, the same in both orders; -1 if the prompt is unknown,
            [comparisons].
        styles: measures of the two answers, NaN if unknown, [comparisons, 2, measures].
        annotator, category: numbers of each vote's, -1 if unknown, [votes].
        times, secs: NaN if unknown, [votes].
        prompts: number of each item's prompt, [items].
        num_same_model: comparisons left out of rankings, of two answers of one model.
    """

    models: tuple[str, ...]
    annotators: tuple[str, ...]
    categories: tuple[str, ...]
    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray
    votes: np.ndarray
    items: np.ndarray
    styles: np.ndarray
    annotator: np.ndarray
    category: np.ndarray
    times: np.ndarray
    secs: np.ndarray
    prompts: np.ndarray
    num_same_model: int

    @property
    def num_votes(self) -> int:
        """Votes that were kept."""
        return len(self.annotator)


def read_votes(path: Path, faults: Faults) -> Votes:
    """Reads a file, or the files of a folder, of the formats of `data.layouts.rows`.

    Of several votes with one id the first is kept. What is left out is counted by `faults`; models
    that only such votes name are among `models`.

    Raises:
        UserError: there is no such file, or not one vote in it.
    """
    names: set[str] = set()
    votes, ids = [], set()
    for place, row in itertools.chain.from_iterable(map(read_rows, find_files(path))):
        if isinstance(row, Damaged):
            faults.add(row.reason, place, row.what)
            continue
        try:
            fields = _fields_of(row)
            models = _models_of(fields)
            names.update(models)
            mark = _find(fields, IDS)
            if mark is not None and str(mark) in ids:
                raise Fault("repeated_id", f"has the id {quote(mark)} of an earlier vote")
            votes.append(_read(fields, models))
            if mark is not None:
                ids.add(str(mark))
        except Fault as fault:
            faults.add(fault.reason, place, fault.what)
    if not votes:
        counts = ", ".join(f"{num} {reason}" for reason, num in faults.counts.items())
        raise UserError(str(path), "holds no vote" + f" (left out: {counts})" * bool(counts),
                        'write lines like {"models": ["x", "y"], "ranks": [1, 2]}')
    return _make_votes(votes, tuple(sorted(names)))


def _fields_of(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a row and, where it lacks them, those of its `meta`."""
    meta = row.get("meta")
    if not isinstance(meta, Mapping):
        return row
    return {**row, **{name: value for name, value in meta.items() if row.get(name) is None}}


def _find(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of several fields that there is; None if there is none."""
    for name in names:
        value = fields.get(name)
        if value is not None:
            return value
    return None


def _models_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    models = fields.get("models")
    if models is None:
        models = [fields.get("model_a"), fields.get("model_b")]
        if models == [None, None]:
            raise Fault("no_models", "names no models: write model_a and model_b, or models")
    if (not isinstance(models, list) or len(models) < 2
            or not all(isinstance(name, str) and name.strip() for name in models)):
        raise Fault("broken_models", f"its models {quote(models)} are not two or more names")
    return tuple(name.strip() for name in models)


def _read(fields: Mapping[str, Any], models: tuple[str, ...]) -> Vote:
    ranks = _ranks_of(fields, len(models))
    if len(set(models)) == 1:
        raise Fault("same_model", f"compares {quote(models[0])} with itself")
    texts = _texts_of(fields, len(models))
    styles = tuple(map(measure_style, texts)) or _styles_of(fields)
    prompt = _find(fields, PROMPTS)
    if prompt is None and isinstance(fields.get("conversation_a"), list):
        prompt = [turn for turn in fields["conversation_a"] if _role(turn) == "user"]
    return Vote(models, ranks, styles, _text(prompt), texts, _text(_find(fields, ANNOTATORS)),
                _text(fields.get("category")), _seconds(_find(fields, TIMES), "time"),
                _seconds(fields.get("secs"), "secs"))


def _text(value: Any) -> str:
    """A name or a prompt as text; "" of none."""
    if isinstance(value, str):
        return value.strip()
    return "" if value is None else json.dumps(value)


def _ranks_of(fields: Mapping[str, Any], num: int) -> tuple[int, ...]:
    if "ranks" in fields:
        ranks = fields["ranks"]
        if ranks is None or (isinstance(ranks, list) and None in ranks):
            raise Fault("not_voted", "has no order yet")
        if (not isinstance(ranks, list) or len(ranks) != num
                or not all(type(rank) is int and rank > 0 for rank in ranks)):
            raise Fault("broken_ranks", "needs one rank from 1 on, for the best, for each model")
        return tuple(ranks)
    winner = fields.get("winner")
    if winner is None:
        score = str(fields.get("score")).removesuffix(".0")
        if score == "-1":
            raise Fault("no_verdict", "its score is -1: no verdict")
        winner = SCORES.get(score)
    if num != 2 or not isinstance(winner, str) or winner not in VOTES:
        raise Fault("unknown_vote", f"its winner {quote(fields.get('winner'))} is none of "
                    f"{', '.join(VOTES)}")
    return VOTES[winner]


def _texts_of(fields: Mapping[str, Any], num: int) -> tuple[str, ...]:
    """The answers' texts; none if there are none."""
    texts = fields.get("responses")
    if isinstance(fields.get("conversation_a"), list):
        texts = ["\n".join(str(turn.get("content", "")) for turn in side
                           if _role(turn) == "assistant") if isinstance(side, list) else None
                 for side in (fields["conversation_a"], fields.get("conversation_b"))]
    if texts is None:
        return ()
    if (not isinstance(texts, list) or len(texts) != num
            or not all(isinstance(text, str) for text in texts)):
        raise Fault("broken_responses", "has not one text of an answer for each model")
    return tuple(texts)


def _role(turn: Any) -> str:
    return str(turn.get("role", "")) if isinstance(turn, Mapping) else ""


def _styles_of(fields: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Counts of style beside a battle; none if one is missing or no count."""
    if STYLES[0][0] not in fields:
        return ()
    try:
        found = tuple(tuple([float(fields[name]) for name in side]) for side in STYLES)
    except (KeyError, TypeError, ValueError):
        return ()
    return found if all(0 <= value < math.inf for side in found for value in side) else ()


def _seconds(value: Any, field: str) -> float:
    """A number of seconds, or a time since 1970, as a text by ISO 8601; NaN of none."""
    if value is None or value == "":
        return math.nan
    try:
        if isinstance(value, str) and "-" in value[1:]:
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.datetime):        # as tables of Arrow have it, too
            return value.replace(tzinfo=value.tzinfo or datetime.UTC).timestamp()
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault(f"broken_{field}", f"its {field} {quote(value)} is no number of seconds")
    return number


class _Numbers(dict):
    """Numbers things in the order in which they come."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]


def _make_votes(votes: Sequence[Vote], models: tuple[str, ...]) -> Votes:
    number = {name: place for place, name in enumerate(models)}
    items, prompts = _Numbers(), _Numbers()
    prompt_of_item: list[int] = []
    rows, styles, num_same_model = [], [], 0
    unknown = ((math.nan,) * len(MEASURES),) * 2
    for place, vote in enumerate(votes):
        for i, j in itertools.combinations(range(len(vote.models)), 2):
            one, other = vote.models[i], vote.models[j]
            if one == other:
                num_same_model += 1
                continue
            item = -1
            if vote.prompt:
                sides = ((one, vote.texts[i]), (other, vote.texts[j])) if vote.texts else (
                    one, other)
                item = items[(vote.prompt, *sorted(sides))]
                if item == len(prompt_of_item):
                    prompt_of_item.append(prompts[vote.prompt])
            better, worse = vote.ranks[i], vote.ranks[j]
            rows.append((number[one], number[other],
                         1.0 if better < worse else 0.0 if better > worse else 0.5, place, item))
            styles.append((vote.styles[i], vote.styles[j]) if vote.styles else unknown)
    first, second, scores, of_vote, of_item = (
        np.array(column, kind) for column, kind in zip(zip(*rows), (int, int, float, int, int)))
    annotators, annotator = _code([vote.annotator for vote in votes])
    categories, category = _code([vote.category for vote in votes])
    return Votes(models, annotators, categories, first, second, scores, of_vote, of_item,
                 np.array(styles, np.float64), annotator, category,
                 np.array([vote.time for vote in votes]), np.array([vote.secs for vote in votes]),
                 np.array(prompt_of_item, np.int64), num_same_model)


def _code(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different names, sorted, and the number of each; -1 for ""."""
    known = sorted(set(names) - {""})
    number = {name: place for place, name in enumerate(known)} | {"": -1}
    return tuple(known), np.array([number[name] for name in names], np.int64)
