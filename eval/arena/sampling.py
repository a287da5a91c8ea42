"""Which two models to show next: those whose vote tells most about the ratings."""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from eval.arena.ballots import Ballots
from eval.arena.bradley_terry import PRIOR_TIES, design


def information_gains(ballots: Ballots, strengths: np.ndarray) -> np.ndarray:
    """Nats by which the next vote on each pair is expected to narrow the ratings.

    Half the growth of the log determinant of the Fisher information, 1/2 log(1 + p (1 - p) x' H^-1
    x): Bayesian D-optimal design of the logistic model (Chaloner and Verdinelli 1995). The
    information has `PRIOR_TIES` of each model with an opponent of strength 0, so that models
    without votes, and pairs that no votes connect, have the largest gains and not infinite ones.

    Args:
        strengths: log odds; of a model without votes 0, [models].

    Returns:
        Gains, 0 of a model and itself, [models, models].
    """
    weights = ballots.weights()
    p = expit(strengths[ballots.first] - strengths[ballots.second])
    rows = design(ballots.first, ballots.second, ballots.num_models)
    information = (rows.T @ (rows * (weights * p * (1 - p))[:, None])).toarray()
    p_prior = expit(strengths)
    inverse = np.linalg.inv(information + np.diag(PRIOR_TIES * p_prior * (1 - p_prior)))
    variances = np.diag(inverse)
    spread = variances[:, None] + variances - 2 * inverse
    p_next = expit(strengths[:, None] - strengths)
    return 0.5 * np.log1p(p_next * (1 - p_next) * np.maximum(spread, 0.0))


def pair_probabilities(gains: np.ndarray) -> np.ndarray:
    """Probability with which each pair should be drawn, in proportion to its gain.

    Every pair keeps being drawn, as a design that shows the best pair alone would show only what
    the ratings so far call close.

    Returns:
        Probabilities of unordered pairs, above the diagonal, which sum to 1, [models, models].
    """
    upper = np.triu(gains, 1)
    return upper / upper.sum()
