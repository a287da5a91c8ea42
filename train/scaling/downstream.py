"""Accuracy of a task from the loss: a sigmoid of the loss, or a power of the perplexity.

Both are fitted by the binomial likelihood of right answers over items, so that a run's weight
follows from its number of items and no error need be estimated. Sources: sigmoid, arXiv 2412.04403;
power of the perplexity, arXiv 2403.08540.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from core.errors import UserError
from eval.statistics import Z_95

LINKS = ("sigmoid", "power")
MARGIN = 1e-9       # accuracies are kept so far from 0 and 1
MIN_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A fitted curve of accuracy over loss.

    Attributes:
        link: one of `LINKS`.
        chance: the accuracy of guessing, which high losses approach.
        theta_P: sigmoid: (rise, steepness, middle) of chance + rise * sigmoid(steepness *
            (middle - loss)); power: (log scale, exponent) of chance + scale *
            exp(-exponent * loss), where exp(loss) is the perplexity of a loss in nats.
        covariance_PP: of theta_P, by the binomial errors, times `dispersion` if that is above 1.
        dispersion: Pearson's chi squared over runs less parameters; above 1, runs differ from the
            curve by more than their items explain.
    """

    link: str
    chance: float
    theta_P: np.ndarray
    covariance_PP: np.ndarray
    dispersion: float

    def predict(self, loss_R: np.ndarray) -> np.ndarray:
        """Accuracies at losses."""
        return _evaluate(self.link, self.chance, self.theta_P, np.asarray(loss_R, np.float64))[0]

    def sample(self, loss_SR: np.ndarray, seed: int) -> np.ndarray:
        """Accuracies [S, R] at sampled losses [S, R], each by a curve drawn from its errors."""
        rng = np.random.default_rng(seed)
        theta_SP = rng.multivariate_normal(self.theta_P, self.covariance_PP, len(loss_SR),
                                           method="eigh")
        return np.stack([_evaluate(self.link, self.chance, theta_P, loss_R)[0]
                         for theta_P, loss_R in zip(theta_SP, loss_SR)])

    def interval(self, loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the 95 % interval of the curve, by the delta method; within 0 and 1."""
        accuracy_R, slope_RP = _evaluate(self.link, self.chance, self.theta_P,
                                         np.asarray(loss_R, np.float64))
        error_R = np.sqrt(np.einsum("rp,pq,rq->r", slope_RP, self.covariance_PP, slope_RP))
        return (np.clip(accuracy_R - Z_95 * error_R, 0, 1),
                np.clip(accuracy_R + Z_95 * error_R, 0, 1))


def fit_accuracy(loss_R: np.ndarray, accuracy_R: np.ndarray, items: int, *, link: str,
                 chance: float = 0.0) -> Accuracy:
    """Fits accuracy over loss by maximum likelihood of `items` independent answers a run.

    Raises:
        UserError: runs are too few, an accuracy is not from 0 to 1, or none is above chance.
    """
    loss_R, accuracy_R = np.asarray(loss_R, np.float64), np.asarray(accuracy_R, np.float64)
    if len(loss_R) < MIN_RUNS:
        raise UserError(f"{len(loss_R)} accuracies", "are too few",
                        f"add runs until there are {MIN_RUNS}")
    if not ((accuracy_R >= 0) & (accuracy_R <= 1)).all():
        raise UserError(f"accuracies from {accuracy_R.min():.3g} to {accuracy_R.max():.3g}",
                        "are no shares of right answers", "give numbers from 0 to 1")
    if not 0 <= chance < accuracy_R.max():
        raise UserError(f"accuracies up to {accuracy_R.max():.3g}",
                        f"are never above chance, {chance:.3g}", "choose an easier task")

    def objective(theta_P: np.ndarray) -> tuple[float, np.ndarray]:
        found_R, slope_RP = _evaluate(link, chance, theta_P, loss_R)
        right_R, wrong_R = accuracy_R / found_R, (1 - accuracy_R) / (1 - found_R)
        value = -np.sum(accuracy_R * np.log(found_R) + (1 - accuracy_R) * np.log1p(-found_R))
        return items * value, -items * (right_R - wrong_R) @ slope_RP

    ends = [minimize(objective, start_P, jac=True, method="L-BFGS-B", bounds=_bounds(link, chance),
                     options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9})
            for start_P in _starts(link, chance, loss_R, accuracy_R)]
    theta_P = min(ends, key=lambda end: end.fun).x
    found_R, slope_RP = _evaluate(link, chance, theta_P, loss_R)
    variance_R = found_R * (1 - found_R) / items
    dispersion = float(np.sum((accuracy_R - found_R)**2 / variance_R)
                       / (len(loss_R) - len(theta_P)))
    information_PP = slope_RP.T @ (slope_RP / variance_R[:, None])
    return Accuracy(link, chance, theta_P, np.linalg.pinv(information_PP) * max(dispersion, 1.0),
                    dispersion)


def _evaluate(link: str, chance: float, theta_P: np.ndarray,
              loss_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies and their slopes in theta_P."""
    if link == "sigmoid":
        rise, steepness, middle = theta_P
        share_R = expit(steepness * (middle - loss_R))
        bend_R = rise * share_R * (1 - share_R)
        slope_RP = np.stack([share_R, bend_R * (middle - loss_R), bend_R * steepness], axis=1)
        found_R = chance + rise * share_R
    else:
        log_scale, exponent = theta_P
        above_R = np.exp(log_scale - exponent * loss_R)
        slope_RP = np.stack([above_R, -loss_R * above_R], axis=1)
        found_R = chance + above_R
    inside_R = (found_R > MARGIN) & (found_R < 1 - MARGIN)
    return np.clip(found_R, MARGIN, 1 - MARGIN), slope_RP * inside_R[:, None]


def _bounds(link: str, chance: float) -> list[tuple[float, float]]:
    if link == "sigmoid":
        return [(1e-3, 1 - chance), (1e-3, 1e3), (-100.0, 100.0)]
    return [(-100.0, 100.0), (1e-3, 1e3)]


def _starts(link: str, chance: float, loss_R: np.ndarray, accuracy_R: np.ndarray) -> list:
    if link == "sigmoid":
        width = max(np.ptp(loss_R), 1e-6)
        return [np.array([rise * (1 - chance), steepness / width, middle])
                for rise in (0.5, 0.95) for steepness in (3.0, 10.0)
                for middle in np.quantile(loss_R, (0.1, 0.5))]
    above_R = np.maximum(accuracy_R - chance, 0.01)
    slope, level = np.polyfit(loss_R, np.log(above_R), 1)
    return [np.array([level, max(-slope, 0.1)]), np.array([loss_R.min(), 1.0])]
