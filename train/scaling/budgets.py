"""The best size for a budget, without a law of the loss: approaches 1 and 2 of Hoffmann et al.

Approach 1 takes, at each budget, the model whose curve of training is the lowest. Approach 2 takes
the vertex of a parabola through the losses of runs of one budget. Both then fit power laws
N = k C^a. Source: arXiv 2203.15556, sections 3.1 and 3.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.scaling.forms import FLOPS_PER_PARAM
from train.scaling.runs import Curve, Runs

SAME_BUDGET = 1.1       # runs whose FLOPs differ by less are of one budget
MIN_SIZES = 5       # of a budget: two more than a parabola needs
MIN_DRAWN = 3       # of a bootstrap sample of its runs
MIN_SPAN = 3.0      # the largest of its sizes over the smallest
NUM_BUDGETS = 1500      # of the envelope, as in section 3.1


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor * C^exponent."""

    factor: float
    exponent: float

    def __call__(self, flops: np.ndarray | float) -> np.ndarray:
        return self.factor * np.asarray(flops, np.float64) ** self.exponent


@dataclasses.dataclass(frozen=True)
class Valley:
    """The runs of one budget.

    Attributes:
        flops: of the budget, the geometric mean.
        members: indices of the runs.
        coefs: c0, c1, c2 of the parabola loss = c0 + c1 n + c2 n^2, n = log N; None without one.
        fault: why there is no vertex: `too few sizes`, `sizes too close`, `no minimum` or
            `minimum outside`; or "".
    """

    flops: float
    members: tuple[int, ...]
    coefs: tuple[float, float, float] | None
    fault: str

    @property
    def best_params(self) -> float:
        """Parameters at the vertex."""
        return float(np.exp(-self.coefs[1] / (2 * self.coefs[2])))


def fit_power_law(flops_R: np.ndarray, values_R: np.ndarray) -> PowerLaw:
    """Least squares of log values over log FLOPs."""
    slope, level = np.polyfit(np.log(flops_R), np.log(values_R), 1)
    return PowerLaw(float(np.exp(level)), float(slope))


def find_valleys(runs: Runs) -> list[Valley]:
    """The budgets, in ascending order, each with its parabola or the reason for having none."""
    groups: list[list[int]] = []
    for index in np.argsort(runs.flops_R, kind="stable").tolist():
        if groups and runs.flops_R[index] <= SAME_BUDGET * runs.flops_R[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_fit_valley(runs, members, MIN_SIZES) for members in groups]


def _fit_valley(runs: Runs, members: Sequence[int], min_sizes: int) -> Valley:
    own = list(members)
    flops = float(np.exp(np.log(runs.flops_R[own]).mean()))
    n_R, loss_R = np.log(runs.params_R[own]), runs.loss_R[own]
    if len(np.unique(n_R.round(6))) < min_sizes:
        return Valley(flops, tuple(own), None, "too few sizes")
    if np.ptp(n_R) < np.log(MIN_SPAN):
        return Valley(flops, tuple(own), None, "sizes too close")
    centre = n_R.mean()
    c2, c1, c0 = np.polyfit(n_R - centre, loss_R, 2)
    coefs = (c0 - c1 * centre + c2 * centre**2, c1 - 2 * c2 * centre, c2)
    fault = "no minimum" if c2 <= 0 else ""
    if not fault and not n_R.min() <= centre - c1 / (2 * c2) <= n_R.max():
        fault = "minimum outside"
    return Valley(flops, tuple(own), tuple(map(float, coefs)), fault)


def fit_valleys(runs: Runs) -> PowerLaw | None:
    """Approach 2: parameters over budgets, N = k C^a; None with fewer than two vertices.

    It is biased even without noise where the exponents of N and D differ, the more so the wider
    the valleys are sampled (arXiv 2603.22339).
    """
    found = [valley for valley in find_valleys(runs) if not valley.fault]
    if len(found) < 2:
        return None
    return fit_power_law(np.array([valley.flops for valley in found]),
                         np.array([valley.best_params for valley in found]))


def sample_vertices(runs: Runs, num_samples: int, seed: int) -> np.ndarray:
    """Exponents [S] of `fit_valleys` where the runs of each budget are drawn with replacement.

    A budget whose draw has no minimum within its sizes is left out of that sample.
    """
    found = [valley for valley in find_valleys(runs) if not valley.fault]
    rng, exponents = np.random.default_rng(seed), []
    for _ in range(num_samples):
        drawn = [_fit_valley(runs, rng.choice(valley.members, len(valley.members)).tolist(),
                             MIN_DRAWN)
                 for valley in found]
        kept = [valley for valley in drawn if not valley.fault]
        if len(kept) > 1:
            exponents.append(fit_power_law(
                np.array([valley.flops for valley in kept]),
                np.array([valley.best_params for valley in kept])).exponent)
    return np.array(exponents)


def sample_envelope(curves: Sequence[Curve], num_samples: int, seed: int) -> np.ndarray:
    """Exponents [S] of `fit_envelope` where curves are drawn with replacement."""
    rng, exponents = np.random.default_rng(seed), []
    for _ in range(num_samples):
        law = fit_envelope([curves[index] for index in rng.integers(len(curves), size=len(curves))])
        if law is not None:
            exponents.append(law.exponent)
    return np.array(exponents)


def find_envelope(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Budgets [R] and the parameters [R] of the curve that is lowest there.

    Losses between evaluations are interpolated in logs. A budget counts only where a smaller and a
    larger model were trained so far too, as the best one may otherwise be beyond.
    """
    log_flops = [np.log(FLOPS_PER_PARAM * curve.params * curve.tokens_R) for curve in curves]
    grid_R = np.linspace(min(log_R[0] for log_R in log_flops),
                         max(log_R[-1] for log_R in log_flops), NUM_BUDGETS)
    loss_CR = np.stack([np.interp(grid_R, log_R, np.log(curve.loss_R), np.inf, np.inf)
                        for log_R, curve in zip(log_flops, curves)])
    params_C = np.array([curve.params for curve in curves])
    best_R = params_C[loss_CR.argmin(axis=0)]
    trained_CR = np.isfinite(loss_CR)
    smallest_R = np.where(trained_CR, params_C[:, None], np.inf).min(axis=0)
    largest_R = np.where(trained_CR, params_C[:, None], -np.inf).max(axis=0)
    inside_R = trained_CR.any(axis=0) & (smallest_R < best_R) & (best_R < largest_R)
    return np.exp(grid_R[inside_R]), best_R[inside_R]


def fit_envelope(curves: Sequence[Curve]) -> PowerLaw | None:
    """Approach 1: parameters over budgets; None where fewer than two models are ever the best."""
    if len(curves) < 3:
        return None
    flops_R, params_R = find_envelope(curves)
    if len(np.unique(params_R)) < 2:
        return None
    return fit_power_law(flops_R, params_R)


def frontier(runs: Runs) -> np.ndarray:
    """Whether each run [R] has a lower loss than all that took no more compute."""
    order = np.argsort(runs.flops_R, kind="stable")
    lowest_R = np.minimum.accumulate(runs.loss_R[order])
    chosen_R = np.ones(len(order), bool)
    chosen_R[order[1:]] = runs.loss_R[order[1:]] < lowest_R[:-1]
    return chosen_R
