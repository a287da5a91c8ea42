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

SCORES = {"1": (1, 2), "2": (2, 1), "3": (1, 1)}      # of the score that stands for a winner
IDS, TIMES = ("id", "vote_id"), ("time", "tstamp")
PROMPTS = ("messages", "prompt", "question", "question_id")
STYLES = ("words", "header", "list", "bold")            # columns of `MEASURES`


class Vote(NamedTuple):
    """One line: models in the order shown, their ranks, and what is known besides.

    Attributes:
        ranks: 1 for the best; equal ranks are a tie.
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

    def choose(self, kept: np.ndarray) -> tuple[np.ndarray, ...]:
        """`first`, `second`, `scores` and `votes` of chosen votes, a mask [votes]."""
        rows = kept[self.votes]
        return self.first[rows], self.second[rows], self.scores[rows], self.votes[rows]


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
            models = _models_of(row)
            names.update(models)
            mark = _find(row, IDS)
            if mark is not None and str(mark) in ids:
                raise Fault("repeated_id", f"has the id {quote(mark)} of an earlier vote")
            votes.append(_read(row, models))
            if mark is not None:
                ids.add(str(mark))
        except Fault as fault:
            faults.add(fault.reason, place, fault.what)
    if not votes:
        counts = ", ".join(f"{num} {reason}" for reason, num in faults.counts.items())
        raise UserError(str(path), "holds no vote" + f" (left out: {counts})" * bool(counts),
                        'write lines like {"model_a": "x", "model_b": "y", "winner": "model_a"}')
    return _make_votes(votes, tuple(sorted(names)))


def _find(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of several fields that the row, or its `meta`, has; None if there is none."""
    meta = row.get("meta")
    for fields in (row, meta if isinstance(meta, Mapping) else {}):
        for name in names:
            if fields.get(name) is not None:
                return fields[name]
    return None


def _models_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    models = _find(row, ("models",))
    if models is None:
        models = [_find(row, (name,)) for name in ("model_a", "model_b")]
        if models == [None, None]:
            raise Fault("no_models", "names no models: write model_a and model_b, or models")
    if (not isinstance(models, list) or len(models) < 2
            or not all(isinstance(name, str) and name.strip() for name in models)):
        raise Fault("broken_models", f"its models {quote(models)} are not two or more names")
    return tuple(name.strip() for name in models)


def _read(row: Mapping[str, Any], models: tuple[str, ...]) -> Vote:
    ranks = _ranks_of(row, len(models))
    if len(set(models)) == 1:
        raise Fault("same_model", f"compares {quote(models[0])} with itself")
    texts = _texts_of(row, len(models))
    styles = tuple(map(measure_style, texts)) or _styles_of(row)
    prompt, category = _find(row, PROMPTS), _find(row, ("category",))
    if prompt is None and isinstance(row.get("conversation_a"), list):
        prompt = [turn for turn in row["conversation_a"] if _role(turn) == "user"]
    annotator = _find(row, ANNOTATORS)
    return Vote(models, ranks, styles,
                "" if prompt is None else prompt if isinstance(prompt, str) else json.dumps(prompt),
                texts, "" if annotator is None else str(annotator).strip(),
                "" if category is None else str(category).strip(),
                _seconds(_find(row, TIMES), "time"), _seconds(_find(row, ("secs",)), "secs"))


def _ranks_of(row: Mapping[str, Any], num: int) -> tuple[int, ...]:
    if "ranks" in row:
        ranks = row["ranks"]
        if ranks is None or (isinstance(ranks, list) and None in ranks):
            raise Fault("not_voted", "has no order yet")
        if (not isinstance(ranks, list) or len(ranks) != num
                or not all(type(rank) is int and rank > 0 for rank in ranks)):
            raise Fault("broken_ranks", "needs one rank from 1 on, for the best, for each model")
        return tuple(ranks)
    winner, score = _find(row, ("winner",)), str(_find(row, ("score",))).removesuffix(".0")
    if num == 2 and isinstance(winner, str) and winner in VOTES:
        return VOTES[winner]
    if winner is None and score in SCORES and num == 2:
        return SCORES[score]
    if winner is None and score == "-1":
        raise Fault("no_verdict", "its score is -1: no verdict")
    raise Fault("unknown_vote", f"its winner {quote(winner if winner is not None else score)} is "
                f"none of {', '.join(VOTES)}")


def _texts_of(row: Mapping[str, Any], num: int) -> tuple[str, ...]:
    """The answers' texts; none if there are none."""
    texts = row.get("responses")
    sides = [row.get(name) for name in ("conversation_a", "conversation_b")]
    if all(isinstance(side, list) for side in sides):
        texts = ["\n".join(str(turn.get("content", "")) for turn in side
                           if _role(turn) == "assistant") for side in sides]
    if texts is None:
        return ()
    if (not isinstance(texts, list) or len(texts) != num
            or not all(isinstance(text, str) for text in texts)):
        raise Fault("broken_responses", "has not one text of `responses` for each model")
    return tuple(texts)


def _role(turn: Any) -> str:
    return str(turn.get("role", "")) if isinstance(turn, Mapping) else ""


def _styles_of(row: Mapping[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Counts of style beside a battle; none if one is missing."""
    try:
        found = tuple(tuple(float(row[f"{name}_{side}"]) for name in STYLES) for side in "ab")
    except (KeyError, TypeError, ValueError):
        return ()
    return found if all(0 <= value < math.inf for side in found for value in side) else ()


def _seconds(value: Any, field: str) -> float:
    if value is None:
        return math.nan
    try:
        if isinstance(value, str) and "-" in value[1:]:
            moment = datetime.datetime.fromisoformat(value)
            zone = moment.tzinfo or datetime.UTC
            return moment.replace(tzinfo=zone).timestamp()
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
    unknown = (math.nan,) * len(MEASURES)
    for place, vote in enumerate(votes):
        for i, j in itertools.combinations(range(len(vote.models)), 2):
            if vote.models[i] == vote.models[j]:
                num_same_model += 1
                continue
            item = -1
            if vote.prompt:
                sides = sorted((vote.models[k], vote.texts[k] if vote.texts else "")
                               for k in (i, j))
                item = items[vote.prompt, *sides]
                if item == len(prompt_of_item):
                    prompt_of_item.append(prompts[vote.prompt])
            score = (1 + np.sign(vote.ranks[j] - vote.ranks[i])) / 2
            rows.append((number[vote.models[i]], number[vote.models[j]], score, place, item))
            styles.append((vote.styles[i], vote.styles[j]) if vote.styles else (unknown, unknown))
    first, second, scores, of_vote, of_item = (np.array(column) for column in zip(*rows))
    annotators, annotator = _code([vote.annotator for vote in votes])
    categories, category = _code([vote.category for vote in votes])
    return Votes(models, annotators, categories, first, second, scores.astype(np.float64), of_vote,
                 of_item, np.array(styles, np.float64), annotator, category,
                 np.array([vote.time for vote in votes]), np.array([vote.secs for vote in votes]),
                 np.array(prompt_of_item, np.int64), num_same_model)


def _code(names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The different names, sorted, and the number of each; -1 for ""."""
    known = sorted(set(names) - {""})
    number = {name: place for place, name in enumerate(known)} | {"": -1}
    return tuple(known), np.array([number[name] for name in names], np.int64)
