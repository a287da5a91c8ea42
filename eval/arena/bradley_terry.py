"""Bradley-Terry ratings by maximum likelihood, with sandwich and bootstrap intervals.

The log odds that one model beats another are the difference of their strengths; a tie is half a
win of each (Chatbot Arena, arXiv 2403.04132, section 4). A rating is 1000 + 400 / ln 10 times the
strength, where strengths have mean 0 over the models that votes connect: 400 points are odds of
ten to one, as of Elo.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import sparse
from scipy.special import expit

from eval.arena.ballots import Ballots, find_levels
from eval.statistics import Z_95

SCALE, CENTRE = 400 / math.log(10), 1000.0      # of ratings
# Where the likelihood has no maximum, as of a model that always wins, each model gets so many
# ties with an opponent of strength 0.
PRIOR_TIES = 1.0
MAX_STEPS, TOLERANCE = 200, 1e-10               # of Newton's method; of strengths
BATCH_NUMBERS = 1_000_000                       # counts of ballots in samples fitted at once
MULTINOMIAL_FROM = 40                           # votes for a ballot on average
NEAR_STEPS, NEAR_TOLERANCE = 30, 1e-7           # of the bootstrap; of strengths


@dataclasses.dataclass(frozen=True)
class Fit:
    """Strengths of models that votes connect.

    Attributes:
        strengths: log odds, with mean 0, [models].
        covariance: of the strengths, [models, models].
        prior_ties: 0, or `PRIOR_TIES` where the likelihood has no maximum.
    """

    strengths: np.ndarray
    covariance: np.ndarray
    prior_ties: float

    @property
    def interval(self) -> str:
        """Kind of the intervals: `sandwich`, or `posterior` where there is a prior."""
        return "posterior" if self.prior_ties else "sandwich"

    def ratings(self) -> np.ndarray:
        """On the scale of Elo, [models]."""
        return CENTRE + SCALE * self.strengths

    def bounds(self) -> np.ndarray:
        """Ends of the normal 95 % intervals of the ratings, [models, 2]."""
        half = Z_95 * SCALE * np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        return self.ratings()[:, None] + half[:, None] * np.array([-1.0, 1.0])

    def win_rates(self) -> np.ndarray:
        """Probability that the model of the row beats that of the column, [models, models]."""
        return expit(self.strengths[:, None] - self.strengths)


@dataclasses.dataclass(frozen=True)
class Samples:
    """Bootstrap samples of the ratings.

    Attributes:
        ratings: [samples, models].
        num_prior: samples whose likelihood had no maximum; they were fitted with `PRIOR_TIES`.
    """

    ratings: np.ndarray
    num_prior: int

    def bounds(self) -> np.ndarray:
        """Ends of the percentile 95 % intervals, [models, 2]."""
        return np.quantile(self.ratings, [0.025, 0.975], axis=0).T


def fit(ballots: Ballots) -> Fit:
    """Ratings of largest likelihood of models that are connected, see `split_components`.

    The covariance is the sandwich H^-1 G H^-1, where H is the Hessian and G the sum of the outer
    products of the ballots' gradients (White 1982; `lmarena/arena-rank` at 3900eae): it holds
    where ties, or outcomes of one ranking, do not follow the model. With a prior it is H^-1, as
    residuals of what always wins tend to 0.
    """
    pairs = _Pairs(ballots)
    num, won = pairs.count(ballots.weights()[None])
    prior = pairs.prior_ties(num, won)
    strengths, hessian = pairs.maximise(num, won, prior, np.zeros((1, ballots.num_models)))
    inverse = np.linalg.inv(hessian[0])
    odds = strengths[0, ballots.first] - strengths[0, ballots.second]
    gradients = ballots.incidence @ (sparse.diags_array(ballots.scores - expit(odds))
                                     @ design(ballots.first, ballots.second, ballots.num_models))
    middle = (gradients.T @ sparse.diags_array(ballots.counts) @ gradients).toarray()
    covariance = inverse if prior[0] else inverse @ middle @ inverse
    centring = np.eye(ballots.num_models) - 1 / ballots.num_models
    return Fit(centring @ strengths[0], centring @ covariance @ centring, float(prior[0]))


def bootstrap(ballots: Ballots, fitted: Fit, *, num_samples: int, seed: int) -> Samples:
    """Ratings of samples of as many votes, drawn with replacement."""
    pairs, rng = _Pairs(ballots), np.random.default_rng(seed)
    batch = max(1, BATCH_NUMBERS // len(ballots.counts))
    found, num_prior = [], 0
    for start in range(0, num_samples, batch):
        size = min(batch, num_samples - start)
        num, won = pairs.count(ballots.weights(_draw(ballots.counts, size, rng)))
        prior = (np.full(size, fitted.prior_ties) if fitted.prior_ties
                 else pairs.prior_ties(num, won))
        num_prior += int(np.count_nonzero(prior))
        strengths = pairs.maximise_near(num, won, prior, fitted.strengths)
        found.append(strengths - strengths.mean(axis=1, keepdims=True))
    return Samples(CENTRE + SCALE * np.concatenate(found), num_prior)


def _draw(counts: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Counts of as many votes drawn with replacement, float64 [size, ballots]."""
    num_votes = round(counts.sum())
    if num_votes > MULTINOMIAL_FROM * len(counts):
        return rng.multinomial(num_votes, counts / num_votes, size=size).astype(np.float64)
    # Few votes for each ballot: they are drawn one by one, which is the same and faster.
    votes = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
    return np.stack([np.bincount(votes[rng.integers(num_votes, size=num_votes)],
                                 minlength=len(counts)) for _ in range(size)]).astype(np.float64)


def design(first: np.ndarray, second: np.ndarray, num_models: int) -> sparse.csr_array:
    """1 for the first model of a row and -1 for the second, sparse [rows, models]."""
    rows = np.arange(len(first))
    return sparse.csr_array((np.repeat([1.0, -1.0], len(rows)), (
        np.concatenate([rows, rows]), np.concatenate([first, second]))),
        shape=(len(rows), num_models))


def damp(width: np.ndarray) -> np.ndarray:
    """The part of a Newton step that is taken, so that the likelihood never falls.

    log(1 + d) / d for a step that moves no row's log odds by more than d: the logistic loss is
    generalised self-concordant (arXiv 1703.04599, section 3).
    """
    return np.where(width > 0, np.log1p(width) / np.maximum(width, 1e-300), 1.0)


class _Pairs:
    """The pairs of models of ballots, and fits of many counts of them at once."""

    def __init__(self, ballots: Ballots):
        """Takes the pairs, and the comparisons of each, from ballots of connected models."""
        self._starts, self._scores = ballots.pair_starts(), ballots.scores
        self._first = ballots.first[self._starts]
        self._second = ballots.second[self._starts]
        self._num_models = ballots.num_models
        self._design = design(self._first, self._second, ballots.num_models)
        self._sides = abs(self._design)
        self._num, _ = self.count(ballots.weights()[None])

    def count(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Comparisons of each pair, and wins of its first with half its ties, [samples, pairs].

        Args:
            weights: of the outcomes, [samples, outcomes].
        """
        return tuple(np.add.reduceat(part, self._starts, axis=1)
                     for part in (weights, weights * self._scores))

    def prior_ties(self, num: np.ndarray, won: np.ndarray) -> np.ndarray:
        """0, or `PRIOR_TIES` where the likelihood has no maximum, [samples]."""
        winners, losers = (np.concatenate(sides) for sides in (
            (self._first, self._second), (self._second, self._first)))
        held = np.concatenate([won, num - won], axis=1) > 0
        return np.array([PRIOR_TIES if find_levels(winners[row], losers[row],
                                                   self._num_models).any() else 0.0
                         for row in held])

    def maximise(self, num: np.ndarray, won: np.ndarray, prior: np.ndarray,
                 start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Newton's method on all samples at once.

        Args:
            num, won: see `count`.
            prior: ties of each model with an opponent of strength 0, [samples].
            start: strengths, [samples, models].

        Returns:
            Strengths, [samples, models], and the Hessians there, [samples, models, models]; where
            there is no prior, they are regular in the direction of all ones by an added constant.
        """
        strengths = start
        for _ in range(MAX_STEPS):
            slope, curvature = self._derive(num, won, prior, strengths)
            hessian = self._hessian(curvature, prior, strengths)
            step = np.linalg.solve(hessian, slope[..., None])[..., 0]
            width = _width(step)
            if width.max(initial=0.0) < TOLERANCE:
                break
            strengths = strengths + step * damp(width)[:, None]
        return strengths, hessian

    def maximise_near(self, num: np.ndarray, won: np.ndarray, prior: np.ndarray,
                      start: np.ndarray) -> np.ndarray:
        """The strengths of `maximise`, of samples of the ballots, [samples, models].

        All samples share the inverse Hessian of the ballots, scaled to the diagonal of each
        sample's own, which differs most for models of few votes. Samples that converge too slowly
        so are left to Newton's method.

        Args:
            num, won, prior: as of `maximise`.
            start: the ballots' own strengths, [models].
        """
        strengths = np.tile(start, (len(num), 1))
        p = expit(start[self._first] - start[self._second])
        left = []
        for ties in np.unique(prior):
            todo, ties = np.flatnonzero(prior == ties), np.array([ties])
            own = self._num * p * (1 - p)
            inverse = np.linalg.inv(self._hessian(own, ties, start[None])[0])
            diagonal = self._diagonals(own, ties, start)
            for _ in range(NEAR_STEPS):
                here = strengths[todo]
                slope, curvature = self._derive(num[todo], won[todo], prior[todo], here)
                scales = np.sqrt(diagonal / self._diagonals(curvature, ties, here))
                step = ((slope * scales) @ inverse) * scales
                width = _width(step)
                strengths[todo] = here + step * damp(width)[:, None]
                todo = todo[width >= NEAR_TOLERANCE]
                if not len(todo):
                    break
            left.append(todo)
        left = np.concatenate(left)
        batch = max(1, BATCH_NUMBERS // self._num_models**2)
        for rows in np.split(left, range(batch, len(left), batch)):
            strengths[rows], _ = self.maximise(num[rows], won[rows], prior[rows],
                                               np.tile(start, (len(rows), 1)))
        return strengths

    def _derive(self, num: np.ndarray, won: np.ndarray, prior: np.ndarray,
                strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of the log-likelihood, [samples, models], and the curvature of each pair."""
        p = expit(strengths[:, self._first] - strengths[:, self._second])
        slope = (self._design.T @ (won - num * p).T).T
        return slope + prior[:, None] * (0.5 - expit(strengths)), num * p * (1 - p)

    def _diagonals(self, curvature: np.ndarray, prior: np.ndarray,
                   strengths: np.ndarray) -> np.ndarray:
        """Of the Hessians of the negative log-likelihood, [samples, models]."""
        return (self._sides.T @ curvature.T).T + prior * expit(strengths) * expit(-strengths)

    def _hessian(self, curvature: np.ndarray, prior: np.ndarray,
                 strengths: np.ndarray) -> np.ndarray:
        """Of the negative log-likelihood, see `maximise`."""
        size = self._num_models
        hessian = np.zeros((len(curvature), size, size))
        hessian[:, self._first, self._second] = hessian[:, self._second, self._first] = -curvature
        diagonal = self._diagonals(curvature, prior[:, None], strengths)
        hessian[:, np.arange(size), np.arange(size)] = diagonal
        # Without a prior the strengths are known up to a constant, which is kept.
        constant = np.where(prior > 0, 0.0, diagonal.mean(axis=1) / size)
        return hessian + constant[:, None, None]


def _width(step: np.ndarray) -> np.ndarray:
    """The most by which a step can move log odds of two models, or of one and 0, [samples]."""
    return step.max(axis=1, initial=0.0) - step.min(axis=1, initial=0.0)
