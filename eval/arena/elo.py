"""Online Elo ratings, which depend on the order of the votes, and ratings over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.arena.ballots import Ballots, split_components
from eval.arena.bradley_terry import CENTRE, fit

K, SPREAD = 4.0, 400.0        # points that a vote moves at most; that odds of ten to one differ by


def online_elo(first: np.ndarray, second: np.ndarray, scores: np.ndarray, num_models: int,
               marks: Sequence[int]) -> np.ndarray:
    """Elo ratings after some of the comparisons, each model beginning at 1000.

    With K = 4, as `lm-sys/FastChat` at 0e6d3e4 has it. A comparison's effect fades with those after
    it, so for models that do not change it measures less than the likelihood (FastChat #3065).

    Args:
        first, second: numbers of the models, in the order of the votes, [comparisons].
        scores: of the first, [comparisons].
        marks: numbers of comparisons, ascending, after which ratings are taken.

    Returns:
        Ratings, [marks, models].
    """
    ratings, found, done = [CENTRE] * num_models, [], 0
    rows = list(zip(first.tolist(), second.tolist(), scores.tolist()))
    for mark in marks:
        for i, j, score in rows[done:mark]:
            step = K * (score - 1 / (1 + 10 ** ((ratings[j] - ratings[i]) / SPREAD)))
            ratings[i] += step
            ratings[j] -= step
        found.append(list(ratings))
        done = mark
    return np.array(found)


def ratings_over_time(ballots: Ballots, numbers: np.ndarray, final: np.ndarray,
                      marks: Sequence[int]) -> np.ndarray:
    """Bradley-Terry ratings of the first votes, for several numbers of them.

    They are of the models that most of these votes connect, and their mean is that of the same
    models' final ratings: a model that joins moves none of the others.

    Args:
        numbers: of each vote's ballot, in the order of the votes, [votes].
        final: ratings of all votes, [models].
        marks: numbers of votes.

    Returns:
        Ratings, NaN where a model has none yet, [marks, models].
    """
    found = np.full((len(marks), len(final)), np.nan)
    for row, mark in enumerate(marks):
        counts = np.bincount(numbers[:mark], minlength=len(ballots.counts))
        models, part = split_components(ballots.recount(counts))[0]
        ratings = fit(part).ratings()
        found[row, models] = ratings - ratings.mean() + final[models].mean()
    return found
