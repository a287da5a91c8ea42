"""Which two models a battle is between, and on which sides they stand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from eval.arena.ballots import count_ballots, split_components
from eval.arena.bradley_terry import fit
from eval.arena.sampling import information_gains, pair_probabilities

Outcome = tuple[str, str, float]    # models in the order shown, and the score of the first


def pair_shares(names: Sequence[str], outcomes: Sequence[Outcome]) -> np.ndarray:
    """Probabilities of unordered pairs, above the diagonal, which sum to 1, [models, models].

    They are in proportion to what the pair's next vote tells about the ratings, which is most of
    models with few votes; see `eval.arena.sampling`.

    Args:
        names: of the models that are served; votes on others do not count.
    """
    number = {name: place for place, name in enumerate(names)}
    known = [(number[first], number[second], score) for first, second, score in outcomes
             if first in number and second in number and first != second]
    if not known:
        shares = np.triu(np.ones((len(names),) * 2), 1)
        return shares / shares.sum()
    first, second, scores = map(np.array, zip(*known))
    ballots, _ = count_ballots(first, second, scores, np.arange(len(known)), len(names))
    strengths = np.zeros(len(names))
    for models, part in split_components(ballots):
        strengths[models] = fit(part).strengths
    return pair_probabilities(information_gains(ballots, strengths))


class Pairs:
    """Draws pairs of the models that are served.

    Args:
        rng: of pairs and sides.
    """

    def __init__(self, names: Sequence[str], rng: random.Random):
        self._names, self._rng = [*names], rng
        self._known = -1, np.zeros(0)       # number of votes, and the shares after them

    def draw(self, outcomes: Sequence[Outcome]) -> tuple[str, str]:
        """Two names, in the order of their sides; the order is as likely as the other one."""
        known, shares = self._known     # in one step, as several threads draw
        if known != len(outcomes):
            shares = pair_shares(self._names, outcomes)
            self._known = len(outcomes), shares
        rows, columns = np.triu_indices(len(self._names), 1)
        [place] = self._rng.choices(range(len(rows)), shares[rows, columns].tolist())
        pair = [self._names[rows[place]], self._names[columns[place]]]
        self._rng.shuffle(pair)
        return pair[0], pair[1]
