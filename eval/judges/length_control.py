"""The length-controlled win rate of AlpacaEval 2 (arXiv 2404.04475).

A logistic regression explains a judge's preferences by the two lengths, by the difficulty of the
instruction and by the model; the win rate that it predicts for answers of equal lengths is the
length-controlled one. The reference is `get_length_controlled_winrate` of
tatsu-lab/alpaca_eval@cd543a1, whose regression is scikit-learn's `LogisticRegressionCV` with an L1
penalty and without an intercept.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from core.errors import UserError

FEATURES = ("length", "difficulty", "model")
GAMED_WEIGHT = 0.1      # of a row of the gamed baselines: 0.2 over the two of them
NUM_FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)      # C of scikit-learn: the loss's weight against the penalty

MAX_STEPS, TOLERANCE = 200, 1e-10       # of a fit, in coefficients


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """Answers of a model against those of a baseline, one comparison for each instruction.

    Attributes:
        preferences: probability that the model's answer is better, from 0 to 1, [rows].
        lengths, baseline_lengths: characters of the two answers, [rows].
        difficulties: of the instructions; zeros where it is not known, [rows].
    """

    preferences: np.ndarray
    lengths: np.ndarray
    baseline_lengths: np.ndarray
    difficulties: np.ndarray

    def length_features(self) -> np.ndarray:
        """tanh of the baseline's length less the model's, in standard deviations of it, [rows]."""
        differences = self.baseline_lengths - self.lengths
        deviation = differences.std(ddof=1) if len(differences) > 1 else 0.0
        return np.tanh(differences / deviation) if deviation else np.zeros(len(differences))


@dataclasses.dataclass(frozen=True)
class LengthControlled:
    """A fitted regression.

    Attributes:
        win_rate: predicted for answers of equal lengths, from 0 to 1.
        spread_stderr: standard error of the mean of the predictions over instructions, which is
            what the leaderboard prints as `lc_standard_error`: without the error of the fit.
        stderr: standard error of `win_rate` with the error of the fit, see `_stderr`.
        coefficients: by the names of `FEATURES`.
        strength: C that the cross-validation chose.
    """

    win_rate: float
    spread_stderr: float
    stderr: float
    coefficients: dict[str, float]
    strength: float


def control_length(compared: Comparisons, gamed: Sequence[Comparisons] = ()) -> LengthControlled:
    """Fits the regression for one model, and predicts its win rate at equal lengths.

    The features of a comparison are the tanh of the standardised difference of lengths, the
    difficulty, and 1 for the model. Rows of the gamed baselines, which are the baseline's own
    answers made longer and shorter, have a small weight and no feature of the model: they tie the
    first two coefficients to a model that is the baseline itself.

    Args:
        gamed: those of each gamed baseline; without any, nothing ties them.

    Raises:
        UserError: there are fewer comparisons than folds.
    """
    if len(compared.preferences) < NUM_FOLDS:
        raise UserError("comparisons", f"{len(compared.preferences)} of them cannot be divided "
                        f"into {NUM_FOLDS} folds", f"compare at least {NUM_FOLDS} answers")
    own = _features(compared, 1.0)
    # The order of the rows, gamed ones first, decides the folds.
    parts = [(_features(one, 0.0), one.preferences, GAMED_WEIGHT) for one in gamed]
    parts.append((own, compared.preferences, 1.0))
    rows = Rows(np.concatenate([x for x, _, _ in parts]), np.concatenate([y for _, y, _ in parts]),
                np.concatenate([np.full(len(y), weight) for _, y, weight in parts]))
    strength = choose_strength(rows)
    coefficients = fit_logistic(rows, strength)
    at_equal = own * [0.0, 1.0, 1.0]
    predicted = expit(at_equal @ coefficients)
    return LengthControlled(
        float(predicted.mean()), float(predicted.std(ddof=1) / np.sqrt(len(predicted))),
        _stderr(rows, coefficients, at_equal), dict(zip(FEATURES, map(float, coefficients))),
        float(strength))


def predict_win_rate(coefficients: dict[str, float], difficulties: np.ndarray) -> float:
    """The win rate at equal lengths by given coefficients, from 0 to 1.

    Args:
        coefficients: of `FEATURES`; for a model against another one than the baseline, the
            differences of the two models' coefficients.
    """
    return float(expit(coefficients["difficulty"] * np.asarray(difficulties)
                       + coefficients["model"]).mean())


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a regression is fitted to: features [rows, features], targets in [0, 1], weights."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    def take(self, picked: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(self.features[picked], self.targets[picked], self.weights[picked])


def _features(compared: Comparisons, is_model: float) -> np.ndarray:
    return np.stack([compared.length_features(), compared.difficulties,
                     np.full(len(compared.preferences), is_model)], axis=1)


def log_losses(rows: Rows, coefficients: np.ndarray) -> np.ndarray:
    """Weighted cross entropy of each row, in nats."""
    logits = rows.features @ coefficients
    return rows.weights * (np.logaddexp(0, logits) - rows.targets * logits)


def fit_logistic(rows: Rows, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """argmin over w of |w|_1 + strength * sum of `log_losses`, without an intercept, [features].

    Proximal Newton steps (Lee, Sun and Saunders, SIAM J. Optim. 24, 2014): each minimises the
    penalty and the quadratic expansion of the loss, and is halved until the objective falls.

    Args:
        start: coefficients near the result.
    """
    x = rows.features

    def objective(coefficients: np.ndarray) -> float:
        return float(np.abs(coefficients).sum() + strength * log_losses(rows, coefficients).sum())

    found = np.zeros(x.shape[1]) if start is None else start
    value = objective(found)
    for _ in range(MAX_STEPS):
        predicted = expit(x @ found)
        slope = strength * ((rows.weights * (predicted - rows.targets)) @ x)
        curved = x * (rows.weights * predicted * (1 - predicted))[:, None]
        step = _minimise_quadratic(found, slope, strength * (curved.T @ x)) - found
        if np.abs(step).max() < TOLERANCE:
            break
        while (lower := objective(found + step)) > value and np.abs(step).max() >= TOLERANCE:
            step = step / 2
        if lower > value:
            break
        found, value = found + step, lower
    return found


def _minimise_quadratic(at: np.ndarray, slope: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """argmin over w of |w|_1 + slope.(w - at) + (w - at)'H(w - at)/2.

    Given which coefficients are not zero and their signs, it is the solution of a linear system;
    three coefficients have 27 such patterns, of which the best is taken. Coordinate descent takes
    many steps where lengths nearly tell the models apart.
    """
    linear = slope - hessian @ at
    signs = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=len(at))))
    kept = signs != 0
    systems = hessian * (kept[:, :, None] & kept[:, None, :])
    w = -np.einsum("pij,pj->pi", np.linalg.pinv(systems, hermitian=True), (linear + signs) * kept)
    values = np.abs(w).sum(axis=1) + w @ linear + ((w @ hessian) * w).sum(axis=1) / 2
    return w[np.argmin(values)]


def choose_strength(rows: Rows) -> float:
    """The strength with the lowest mean log loss over folds of rows that were held out.

    Row i of n is in fold (n - 1 - i) mod 5: scikit-learn's `GroupKFold` of groups of equal size.
    """
    num = len(rows.targets)
    fold = (num - 1 - np.arange(num)) % NUM_FOLDS
    losses = np.zeros(len(STRENGTHS))
    for number in range(NUM_FOLDS):
        fitted, held_out = rows.take(fold != number), rows.take(fold == number)
        coefficients = None
        for at, strength in enumerate(STRENGTHS):
            coefficients = fit_logistic(fitted, strength, coefficients)
            losses[at] += log_losses(held_out, coefficients).mean()
    return float(STRENGTHS[np.argmin(losses)])


def _stderr(rows: Rows, coefficients: np.ndarray, at_equal: np.ndarray) -> float:
    """Standard error of the predicted win rate: the root of the sum of squared influences.

    The influence of a comparison is its part in the mean of the predictions plus what it moves the
    coefficients by (the sandwich of an M-estimator; Huber 1967). Gamed rows are taken as given, the
    penalty as small, and a coefficient that it made zero as fixed.
    """
    kept = np.flatnonzero(coefficients)
    x, predicted = rows.features[:, kept], expit(rows.features @ coefficients)
    hessian = (x * (rows.weights * predicted * (1 - predicted))[:, None]).T @ x
    win_rates = expit(at_equal @ coefficients)
    slope = (win_rates * (1 - win_rates)) @ at_equal[:, kept] / len(at_equal)
    num = len(at_equal)     # the model's own rows are the last
    residuals = (rows.targets - predicted)[-num:]
    moved = residuals * (x[-num:] @ np.linalg.lstsq(hessian, slope, rcond=None)[0])
    return float(np.sqrt(np.sum(((win_rates - win_rates.mean()) / num + moved)**2)))
