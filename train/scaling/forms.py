"""Forms of scaling laws: the logarithm of the loss, and its slope in the law's parameters.

Each form is a sum of terms under a logarithm, so a fit to log losses needs no constraint: what is
positive is held as its logarithm. N is parameters, D tokens, C FLOPs; C = 6 N D for allocations.

Sources: Hoffmann et al., arXiv 2203.15556, equations 2 to 4 and 10; Kaplan et al., arXiv
2001.08361, equations 1.3 and 1.5; Gadre et al., arXiv 2403.08540, equation 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.optimize import nnls

FLOPS_PER_PARAM = 6     # and token: two of the forward pass, four of the backward pass
START_EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.2)
START_KAPLAN = (0.03, 0.06, 0.1, 0.2, 0.4)
START_FLOOR = 1e-4      # of a term's share, where its non-negative coefficient is 0

Evaluated = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """A family of laws with the parameters `names`.

    Attributes:
        names: of the parameters theta_P.
        inputs: whose logarithms are x_RX: `params` and `tokens`, or `flops`.
        evaluate: log losses [R] and their slopes [R, P] by theta_P and x_RX.
        shift: theta_P of x_RX, from that of x_RX less a vector [X].
        starts: points [S, P] from which to fit losses [R], for x_RX of mean 0.
        constants: the numbers that papers give, by theta_P.
        terms: log A, alpha, log B and beta of the two terms A / N^alpha + B / D^beta whose balance
            decides the best N for a budget; None of a law in compute alone.
    """

    name: str
    names: tuple[str, ...]
    inputs: tuple[str, ...]
    evaluate: Callable[[np.ndarray, np.ndarray], Evaluated]
    shift: Callable[[np.ndarray, np.ndarray], np.ndarray]
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray]
    constants: Callable[[np.ndarray], dict[str, float]]
    terms: Callable[[np.ndarray], tuple[float, float, float, float]] | None


def optimal_sizes(form: Form, theta_P: np.ndarray, flops: Any) -> tuple[Any, Any]:
    """Parameters and tokens of the lowest loss for a budget C = 6 N D (arXiv 2203.15556, eq. 4).

    Args:
        flops: budgets, of any shape.
    """
    log_a, alpha, log_b, beta = form.terms(theta_P)
    log_g = (log_a + math.log(alpha) - log_b - math.log(beta)) / (alpha + beta)
    log_product = np.log(np.asarray(flops, np.float64) / FLOPS_PER_PARAM)
    params = np.exp(log_g + beta / (alpha + beta) * log_product)
    return params, np.exp(log_product) / params


def project(basis_RT: np.ndarray, target_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative coefficients [T] of a sum of terms, and its relative residuals [R]."""
    scaled_RT = basis_RT / target_R[:, None]
    coefs_T, _ = nnls(scaled_RT, np.ones(len(target_R)))
    return coefs_T, scaled_RT @ coefs_T - 1


def surface_basis(x_RX: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The terms 1 / N^alpha, 1 / D^beta and 1, [R, 3]."""
    return np.stack([np.exp(-alpha * x_RX[:, 0]), np.exp(-beta * x_RX[:, 1]),
                     np.ones(len(x_RX))], axis=1)


def _log_sum(terms_RT: np.ndarray) -> Evaluated:
    """The log of a sum of exponentials, and the share of each in it."""
    top_R = terms_RT.max(axis=1)
    powers_RT = np.exp(terms_RT - top_R[:, None])
    sum_R = powers_RT.sum(axis=1)
    return top_R + np.log(sum_R), powers_RT / sum_R[:, None]


def _log_coefs(basis_RT: np.ndarray, target_R: np.ndarray) -> np.ndarray:
    """Logs of the coefficients of `project`, which are kept above 0."""
    coefs_T, _ = project(basis_RT, target_R)
    least_T = START_FLOOR * target_R.mean() / basis_RT.mean(axis=0)
    return np.log(np.maximum(coefs_T, least_T))


def _hoffmann(theta_P: np.ndarray, x_RX: np.ndarray) -> Evaluated:
    a, b, e, alpha, beta = theta_P
    n_R, d_R = x_RX.T
    log_loss_R, share_RT = _log_sum(
        np.stack([a - alpha * n_R, b - beta * d_R, np.full(len(n_R), e)], axis=1))
    slope_RP = np.empty((len(n_R), 5))
    slope_RP[:, :3] = share_RT
    slope_RP[:, 3:] = -share_RT[:, :2] * x_RX
    return log_loss_R, slope_RP


def _hoffmann_starts(x_RX: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
    return np.array([[*_log_coefs(surface_basis(x_RX, alpha, beta), loss_R), alpha, beta]
                     for alpha in START_EXPONENTS for beta in START_EXPONENTS])


HOFFMANN = Form(
    "hoffmann", ("a", "b", "e", "alpha", "beta"), ("params", "tokens"), _hoffmann,
    lambda theta_P, x_X: theta_P + np.array([theta_P[3] * x_X[0], theta_P[4] * x_X[1], 0, 0, 0]),
    _hoffmann_starts,
    lambda theta_P: {**dict(zip("ABE", np.exp(theta_P[:3]).tolist())),
                     "alpha": float(theta_P[3]), "beta": float(theta_P[4])},
    lambda theta_P: (theta_P[0], theta_P[3], theta_P[1], theta_P[4]))


def _widen(theta_P: np.ndarray) -> np.ndarray:
    """The parameters of `HOFFMANN` that say the same: alpha is beta."""
    return np.append(theta_P, theta_P[3])


def _overtraining(theta_P: np.ndarray, x_RX: np.ndarray) -> Evaluated:
    log_loss_R, slope_RP = _hoffmann(_widen(theta_P), x_RX)
    return log_loss_R, np.column_stack([slope_RP[:, :3], slope_RP[:, 3] + slope_RP[:, 4]])


OVERTRAINING = Form(
    "overtraining", ("a", "b", "e", "alpha"), ("params", "tokens"), _overtraining,
    lambda theta_P, x_X: HOFFMANN.shift(_widen(theta_P), x_X)[:4],
    lambda x_RX, loss_R: np.array([[*_log_coefs(surface_basis(x_RX, alpha, alpha), loss_R), alpha]
                                   for alpha in START_EXPONENTS]),
    lambda theta_P: {**dict(zip("ABE", np.exp(theta_P[:3]).tolist())), "alpha": float(theta_P[3])},
    lambda theta_P: HOFFMANN.terms(_widen(theta_P)))


def _kaplan(theta_P: np.ndarray, x_RX: np.ndarray) -> Evaluated:
    a, b, alpha_n, alpha_d = theta_P
    below_R = a - x_RX[:, 0]
    sum_R, share_RT = _log_sum(np.stack([alpha_n / alpha_d * below_R, b - x_RX[:, 1]], axis=1))
    moved_R = share_RT[:, 0] * below_R
    return alpha_d * sum_R, np.column_stack([
        alpha_n * share_RT[:, 0], alpha_d * share_RT[:, 1], moved_R,
        sum_R - alpha_n / alpha_d * moved_R])


def _kaplan_starts(x_RX: np.ndarray, loss_R: np.ndarray) -> np.ndarray:
    starts = []
    for alpha_n in START_KAPLAN:
        for alpha_d in START_KAPLAN:
            scaled_R = loss_R / np.exp(np.log(loss_R).mean())
            log_a, log_b = _log_coefs(surface_basis(x_RX, alpha_n / alpha_d, 1.0)[:, :2],
                                      scaled_R ** (1 / alpha_d))
            level = np.log(loss_R).mean() / alpha_d
            starts.append([(log_a + level) * alpha_d / alpha_n, log_b + level, alpha_n, alpha_d])
    return np.array(starts)


KAPLAN = Form(
    "kaplan", ("log_n_c", "log_d_c", "alpha_n", "alpha_d"), ("params", "tokens"), _kaplan,
    lambda theta_P, x_X: theta_P + np.array([x_X[0], x_X[1], 0, 0]), _kaplan_starts,
    lambda theta_P: {"N_c": math.exp(theta_P[0]), "D_c": math.exp(theta_P[1]),
                     "alpha_N": float(theta_P[2]), "alpha_D": float(theta_P[3])},
    lambda theta_P: (theta_P[0] * theta_P[2] / theta_P[3], theta_P[2] / theta_P[3], theta_P[1],
                     1.0))

COMPUTE = Form(
    "kaplan_compute", ("log_c_c", "alpha_c"), ("flops",),
    lambda theta_P, x_RX: (theta_P[1] * (theta_P[0] - x_RX[:, 0]), np.column_stack(
        [np.full(len(x_RX), theta_P[1]), theta_P[0] - x_RX[:, 0]])),
    lambda theta_P, x_X: theta_P + np.array([x_X[0], 0]),
    lambda x_RX, loss_R: np.array([[np.log(loss_R).mean() / alpha, alpha]
                                   for alpha in START_KAPLAN]),
    lambda theta_P: {"C_c": math.exp(theta_P[0]), "alpha_C": float(theta_P[1])}, None)

FORMS: Mapping[str, Form] = {form.name: form for form in (HOFFMANN, OVERTRAINING, KAPLAN)}
