"""Loss where data is limited: tokens that are repeated, and parameters beyond what they feed.

Source: Muennighoff et al., arXiv 2305.16264, equations 5 and 6, constants of appendix A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import huber

from core.errors import UserError
from train.scaling.forms import HOFFMANN, optimal_sizes
from train.scaling.surface import DELTA

START_REPEATS = (2.0, 6.0, 20.0)
RANGE = (1e-3, 1e6)     # of R_D* and R_N*; where one ends at a limit, the runs do not decide it


@dataclasses.dataclass(frozen=True)
class DataLimited:
    """Hoffmann's law in effective parameters and tokens.

    Attributes:
        theta_P: a, b, e, alpha and beta of the law; the published ones as default, for the loss on
            C4 in nats per token.
        repeats: R_D*, repetitions after which repeated tokens are worth 1 - 1/e of fresh ones on
            average.
        excess: R_N*, the same of parameters beyond the best number for the unique tokens.
    """

    theta_P: tuple[float, ...] = (6.255414, 7.3049974, 0.6254804, 0.3526596, 0.3526596)
    repeats: float = 15.387756
    excess: float = 5.309743

    def best_params(self, unique_tokens: Any) -> np.ndarray:
        """U_N: the best number of parameters for so many tokens, each read once."""
        a, b, _, alpha, beta = self.theta_P
        log_g = (a + np.log(alpha) - b - np.log(beta)) / (alpha + beta)
        log_n = (beta * np.log(np.asarray(unique_tokens, np.float64))
                 + (alpha + beta) * log_g) / alpha
        return np.exp(log_n)

    def effective_tokens(self, tokens: Any, unique_tokens: Any) -> np.ndarray:
        """D': as many fresh tokens as `tokens` are worth that repeat `unique_tokens`."""
        return _effective(tokens, unique_tokens, self.repeats)

    def effective_params(self, params: Any, tokens: Any, unique_tokens: Any) -> np.ndarray:
        """N': as many parameters as `params` are worth for the unique tokens among `tokens`."""
        read = np.minimum(np.asarray(tokens, np.float64), unique_tokens)
        return _effective(params, self.best_params(read), self.excess)

    def predict(self, params: Any, tokens: Any, unique_tokens: Any) -> np.ndarray:
        """Losses [R] of models of so many parameters, trained on so many tokens.

        Args:
            unique_tokens: those that there are; where `tokens` are fewer, none is repeated.
        """
        x_RX = np.log(np.stack(np.broadcast_arrays(
            np.atleast_1d(self.effective_params(params, tokens, unique_tokens)),
            np.atleast_1d(self.effective_tokens(tokens, unique_tokens))), axis=1))
        return np.exp(HOFFMANN.evaluate(np.array(self.theta_P), x_RX)[0])

    def allocate(self, flops: float, unique_tokens: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss for C = 6 N D with limited data.

        Found on a grid of tokens, 0.1 % apart, as the optimum has no closed form.
        """
        params, tokens = (float(size) for size in optimal_sizes(
            HOFFMANN, np.array(self.theta_P), flops))
        if tokens <= unique_tokens:
            return params, tokens
        tokens_R = np.exp(np.arange(np.log(unique_tokens) - 1, np.log(tokens) + 7, 1e-3))
        params_R = params * tokens / tokens_R
        best = int(np.argmin(self.predict(params_R, tokens_R, unique_tokens)))
        return float(params_R[best]), float(tokens_R[best])


def fit_repeats(theta_P: Sequence[float], params_R: np.ndarray, tokens_R: np.ndarray,
                unique_R: np.ndarray, loss_R: np.ndarray) -> DataLimited:
    """Fits R_D* and R_N* to runs that repeat data, by the objective of `fit_law`.

    Args:
        theta_P: of `HOFFMANN`, fitted to runs that read each token once.
        unique_R: unique tokens that each run had.

    Raises:
        UserError: no run repeats its data.
    """
    if not (np.asarray(tokens_R) > np.asarray(unique_R)).any():
        raise UserError(f"{len(loss_R)} runs", "none repeats its data",
                        "add runs with more tokens than unique ones")

    def objective(log_X: np.ndarray) -> float:
        law = DataLimited(tuple(theta_P), *np.exp(log_X))
        residual_R = np.log(law.predict(params_R, tokens_R, unique_R) / loss_R)
        return float(np.sum(huber(DELTA, residual_R)) / DELTA**2)

    ends = [minimize(objective, np.log([repeats, excess]), method="Nelder-Mead",
                     bounds=[tuple(np.log(RANGE))] * 2, options={"xatol": 1e-6, "fatol": 1e-10})
            for repeats in START_REPEATS for excess in START_REPEATS]
    repeats, excess = np.exp(min(ends, key=lambda end: end.fun).x)
    return DataLimited(tuple(theta_P), float(repeats), float(excess))


def _effective(total: Any, unique: Any, decay: float) -> np.ndarray:
    """U + U R* (1 - exp(-R / R*)) of R = total / U - 1 repetitions; the total where R <= 0."""
    total, unique = np.asarray(total, np.float64), np.asarray(unique, np.float64)
    repeated = np.maximum(total / unique - 1, 0.0)
    return np.minimum(total, unique) + unique * decay * -np.expm1(-repeated / decay)
