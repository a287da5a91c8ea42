"""Fits of a law to the final losses of runs (approach 3), with bootstrap samples of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy.optimize import least_squares, minimize

from core.errors import UserError
from train.scaling.forms import (
    HOFFMANN,
    START_EXPONENTS,
    Form,
    optimal_sizes,
    project,
    surface_basis,
)
from train.scaling.runs import Runs

DELTA = 1e-3        # of the Huber loss of log losses, arXiv 2203.15556, appendix D.3
SAME_OBJECTIVE = 1e-4       # of the smallest: a start that ends so near it has found it
NUM_SAMPLES = 200
PASSES = (1e-6, 1e-9, 1e-13)       # relative changes of the objective at which each pass ends
MAX_STEPS = 200     # of a pass


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        theta_P: its parameters.
        samples_SP: those of fits to resampled runs.
        residual_R: log loss of each run less that of the law.
        objective: the sum of Huber losses at theta_P.
        num_starts: points that the fit was begun from.
        num_agreeing: those of them that ended at the same objective.
    """

    form: Form
    theta_P: np.ndarray
    samples_SP: np.ndarray
    residual_R: np.ndarray
    objective: float
    num_starts: int
    num_agreeing: int

    def predict(self, **inputs: Any) -> np.ndarray:
        """Losses [R] at inputs [R], which the form names: params and tokens, or flops."""
        return np.exp(self.form.evaluate(self.theta_P, self._logs(inputs))[0])

    def predict_samples(self, **inputs: Any) -> np.ndarray:
        """Losses [S, R] by the bootstrap samples."""
        x_RX = self._logs(inputs)
        return np.exp(np.stack([self.form.evaluate(theta_P, x_RX)[0]
                                for theta_P in self.samples_SP]))

    def predict_runs(self, seed: int, **inputs: Any) -> np.ndarray:
        """Losses [S, R] that new runs may have: of the samples, each with a residual of the fit."""
        mean_SR = self.predict_samples(**inputs)
        drawn_SR = np.random.default_rng(seed).choice(self.residual_R, mean_SR.shape)
        return mean_SR * np.exp(drawn_SR)

    def optimal_sizes(self, flops: Any) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and tokens of the lowest loss for budgets of FLOPs."""
        return optimal_sizes(self.form, self.theta_P, flops)

    def _logs(self, inputs: Any) -> np.ndarray:
        return np.log(np.stack([np.atleast_1d(np.asarray(inputs[name], np.float64))
                                for name in self.form.inputs], axis=1))


def fit_law(form: Form, runs: Runs, *, num_samples: int = NUM_SAMPLES, seed: int = 0) -> Fit:
    """Fits a law by the sum of Huber losses of log losses, from many starts.

    Inputs are centred while fitting, so that factors and exponents are nearly independent; the
    objective is in units of DELTA squared, so that the tolerance does not depend on its scale. A
    mean instead of the sum, or another scale, ends L-BFGS too early (arXiv 2404.10102, section 3).

    Args:
        num_samples: bootstrap samples, runs drawn with replacement; 0 gives none.
        seed: of the draw.

    Raises:
        UserError: no start led to a finite law.
    """
    x_RX = np.log(np.stack([runs.column(name) for name in form.inputs], axis=1))
    centre_X, log_loss_R = x_RX.mean(axis=0), np.log(runs.loss_R)
    x_RX = x_RX - centre_X
    starts_SP = form.starts(x_RX, runs.loss_R)
    ones_R = np.ones(len(log_loss_R))
    ends = [_minimise(form, x_RX, log_loss_R, ones_R, start_P) for start_P in starts_SP]
    finite = [end for end in ends if np.isfinite(end[1]) and np.isfinite(end[0]).all()]
    if not finite:
        raise UserError(f"law {form.name}", f"none of {len(ends)} starts led to finite parameters",
                        "check the runs' losses, or fit another law with --law")
    theta_P, least = min(finite, key=lambda end: end[1])
    rng, num_runs = np.random.default_rng(seed), len(log_loss_R)
    samples_SP = np.array([form.shift(_minimise(
        form, x_RX, log_loss_R, np.bincount(rng.integers(num_runs, size=num_runs),
                                            minlength=num_runs), theta_P)[0], centre_X)
        for _ in range(num_samples)]).reshape(num_samples, len(form.names))
    residual_R = log_loss_R - form.evaluate(theta_P, x_RX)[0]
    return Fit(form, form.shift(theta_P, centre_X), samples_SP, residual_R, least * DELTA**2,
               len(ends), sum(end[1] <= least * (1 + SAME_OBJECTIVE) + 1e-9 for end in finite))


def _minimise(form: Form, x_RX: np.ndarray, log_loss_R: np.ndarray, weights_R: np.ndarray,
              start_P: np.ndarray) -> tuple[np.ndarray, float]:
    """The parameters and the objective where L-BFGS ends, begun anew in better coordinates.

    A pass runs in coordinates in which the curvature at its start is about the identity: factors
    and exponents vary along a narrow valley, which L-BFGS follows slowly otherwise.
    """
    theta_P, value = start_P, np.inf
    for ftol in PASSES:
        axes_PP = _whiten(form, x_RX, log_loss_R, weights_R, theta_P)
        if axes_PP is None:
            break
        found = minimize(
            lambda u_P, start_P=theta_P, axes_PP=axes_PP: _objective(
                form, x_RX, log_loss_R, weights_R, start_P, axes_PP, u_P),
            np.zeros_like(theta_P), jac=True, method="L-BFGS-B",
            options={"maxiter": MAX_STEPS, "maxcor": 20, "ftol": ftol, "gtol": 1e-9})
        theta_P, value = theta_P + axes_PP @ found.x, float(found.fun)
    return theta_P, value


def _objective(form: Form, x_RX: np.ndarray, log_loss_R: np.ndarray, weights_R: np.ndarray,
               start_P: np.ndarray, axes_PP: np.ndarray,
               u_P: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum of Huber losses in units of DELTA squared, and its slope, at start + axes u."""
    with np.errstate(all="ignore"):     # a step too far gives no number, and is taken back
        found_R, slope_RP = form.evaluate(start_P + axes_PP @ u_P, x_RX)
        z_R = (found_R - log_loss_R) / DELTA
        size_R = np.abs(z_R)
        inner_R = np.minimum(size_R, 1.0)
        value = weights_R @ (inner_R * (size_R - 0.5 * inner_R))
        slope_P = ((weights_R * np.sign(z_R) * inner_R) @ slope_RP / DELTA) @ axes_PP
    if not (np.isfinite(value) and np.isfinite(slope_P).all()):
        return 1e300, np.zeros_like(u_P)
    return value, slope_P


def _whiten(form: Form, x_RX: np.ndarray, log_loss_R: np.ndarray, weights_R: np.ndarray,
            theta_P: np.ndarray) -> np.ndarray | None:
    """Axes [P, P] along which the objective curves by about 1 each; None where it is not finite."""
    with np.errstate(all="ignore"):
        found_R, slope_RP = form.evaluate(theta_P, x_RX)
        size_R = np.abs(found_R - log_loss_R) / DELTA
        scaled_RP = np.sqrt(weights_R / np.maximum(size_R, 1.0))[:, None] * slope_RP / DELTA
    if not np.isfinite(scaled_RP).all():
        return None
    values_P, vectors_PP = np.linalg.eigh(scaled_RP.T @ scaled_RP)
    return vectors_PP / np.sqrt(np.maximum(values_P, 1e-10 * values_P[-1]))


def fit_projected(runs: Runs) -> dict[str, float]:
    """Constants of Hoffmann's law by variable projection: least squares of relative residuals.

    For given exponents the law is linear in A, B and E >= 0, so the search is over two numbers
    alone (arXiv 2603.22339). It is exact without noise, and not robust to outliers.
    """
    x_RX = np.log(np.stack([runs.params_R, runs.tokens_R], axis=1))
    centre_X = x_RX.mean(axis=0)
    x_RX = x_RX - centre_X

    def residual(exponents: np.ndarray) -> np.ndarray:
        return project(surface_basis(x_RX, *exponents), runs.loss_R)[1]

    starts = [(alpha, beta) for alpha in START_EXPONENTS for beta in START_EXPONENTS]
    start = min(starts, key=lambda pair: float(np.sum(residual(np.array(pair))**2)))
    alpha, beta = least_squares(residual, start, bounds=(1e-3, 3.0), xtol=1e-15, ftol=1e-15,
                                gtol=1e-15).x
    coefs_T, _ = project(surface_basis(x_RX, alpha, beta), runs.loss_R)
    with np.errstate(divide="ignore"):
        theta_P = np.array([*np.log(coefs_T), alpha, beta])
    return HOFFMANN.constants(HOFFMANN.shift(theta_P, centre_X))
