"""A judge against people who voted on the same answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.chat import Conversation
from data.layouts.faults import Faults
from data.preferences import Preference
from eval.judges.bias import Outcome
from eval.judges.candidates import Pair
from eval.measures.agreement import cohen_kappa, count_values, raw_agreement
from eval.measures.annotations import (
    FIRST,
    SECOND,
    TIE,
    Rating,
    make_ratings,
    mark_item,
    merge_repeats,
    read_ratings,
)
from eval.statistics import bootstrap_interval, estimate_share

Votes = dict[str, list[float]]      # of people, by the item: shares of the first text of both


def read_votes(path: Path, faults: Faults) -> tuple[Votes, float | None]:
    """People's votes by item, and how far people agree with each other.

    Rows that name no annotator are votes of somebody each.

    Returns:
        The votes; and the share of pairs of people who agree on an item, None where no item has the
        votes of two.
    """
    kept, _ = merge_repeats(read_ratings(path, "choices", faults=faults, needs_name=False))
    votes: Votes = {}
    for rating in kept:
        votes.setdefault(str(rating.item), []).append(_share(rating))
    ratings = make_ratings(kept, (FIRST, TIE, SECOND))
    agreed = raw_agreement(count_values(ratings.items, ratings.codes, len(ratings.values)))
    return votes, None if math.isnan(agreed) else agreed


def votes_on(pair: Pair, votes: Votes) -> list[float]:
    """The shares that people gave the first candidate of a pair; none where nobody voted on it."""
    if any(len(answer) != 1 for answer in pair.answers):
        return []       # their conversations differ before the last answer
    texts = [answer[0].content for answer in pair.answers]
    shares = votes.get(mark_item(pair.prompt, texts), [])
    return shares if texts[0] < texts[1] else [1 - share for share in shares]


def mean_votes(outcomes: Sequence[Outcome], votes: Votes) -> list[float | None]:
    """The mean share that people give the first candidate of each pair; None without a vote."""
    found = [votes_on(one.pair, votes) for one in outcomes]
    return [sum(shares) / len(shares) if shares else None for shares in found]


def measure_agreement(outcomes: Sequence[Outcome], votes: Votes, seed: int) -> dict[str, Any]:
    """How far a judge agrees with people, vote by vote.

    Returns:
        `agreement`, the share of votes that name what the judge names, a tie being an answer like
        the others; `decided`, the same of votes and verdicts that are no ties; `kappa`, Cohen's, in
        both orders of the answers; each with a 95 % interval over pairs, None where there is none;
        `votes`, and `pairs` that have some.
    """
    rows = [(number, _side(one.share), _side(share)) for number, one in enumerate(outcomes)
            if one.share is not None for share in votes_on(one.pair, votes)]
    if not rows:
        return {"agreement": None, "decided": None, "kappa": None, "votes": 0, "pairs": 0}
    pairs, ours, theirs = map(np.array, zip(*rows))
    decided = (ours != TIE) & (theirs != TIE)
    return {"agreement": _estimate(ours == theirs, pairs),
            "decided": _estimate((ours == theirs)[decided], pairs[decided]),
            "kappa": _kappa(ours, theirs, pairs, seed), "votes": len(rows),
            "pairs": len(set(pairs))}


def _share(rating: Rating) -> float:
    return (1 - rating.value) / 2       # FIRST is -1


def _side(share: float) -> float:
    return float(np.sign(0.5 - share))


def _estimate(equal: np.ndarray, pairs: np.ndarray) -> dict[str, Any] | None:
    if not len(equal):
        return None
    found = estimate_share(equal.astype(float), list(pairs))
    return {"value": found.value, "low": found.low, "high": found.high, "items": found.items}


def _kappa(ours: np.ndarray, theirs: np.ndarray, pairs: np.ndarray,
           seed: int) -> dict[str, Any] | None:
    def statistic(picked: np.ndarray) -> float:
        first, second = ours[picked], theirs[picked]
        # In both orders, which makes it independent of which answer is the first.
        found = cohen_kappa(np.concatenate([first, -first]), np.concatenate([second, -second]))
        return 1.0 if math.isnan(found) else found      # a sample of ties alone

    if not ours.any() and not theirs.any():
        return None
    found = bootstrap_interval(statistic, len(ours), seed=seed, groups=list(pairs))
    return {"value": found.value, "low": found.low, "high": found.high, "items": found.items}


def as_preferences(outcomes: Sequence[Outcome], judge: str) -> Iterator[Preference]:
    """The verdicts as preferences of an annotator, for `eval.agreement` and for training."""
    for one in outcomes:
        if one.share is None or any(len(answer) != 1 for answer in one.pair.answers):
            continue
        ranks = (1, 1) if one.share == 0.5 else (1, 2) if one.share > 0.5 else (2, 1)
        yield Preference(Conversation(one.pair.prompt),
                         tuple(answer[0].content for answer in one.pair.answers), ranks, judge,
                         {"annotator": judge, "models": list(one.pair.names)},
                         scores=(one.share, 1 - one.share))
