"""The law of repeated data (arXiv 2305.16264) fitted to the curves of `scripts.lab.overfitting`.

Hoffmann's law with one exponent, as that paper fits it, is fitted to the points whose tokens were
all fresh; what repeated tokens and excess parameters are worth, R_D* and R_N*, then to all points.
The law only falls with tokens, so points after the smallest held-out loss of a run are left out:
it says what a repetition is worth as long as it helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.bench.frontier_results import Row
from train.scaling.data_limited import DataLimited, fit_repeats
from train.scaling.forms import FLOPS_PER_PARAM, OVERTRAINING
from train.scaling.report import describe_constants, spread
from train.scaling.runs import Runs
from train.scaling.surface import Fit, fit_law

MIN_TOKENS = 32_768     # of a point: before, the loss is that of the warmup
NUM_SAMPLES = 100       # of the bootstrap


def list_points(row: Row) -> np.ndarray:
    """Points [R, 4] of a run up to its smallest held-out loss: parameters, tokens, unique tokens
    and held-out loss."""
    tokens_R, _, loss_R = np.array(row["curve"], np.float64).T
    kept_R = (tokens_R >= MIN_TOKENS) & (np.arange(len(loss_R)) <= np.argmin(loss_R))
    return np.stack([np.full(kept_R.sum(), row["params"], np.float64), tokens_R[kept_R],
                     np.full(kept_R.sum(), row["unique"], np.float64), loss_R[kept_R]], axis=1)


def measure_fresh(curves: Sequence[Row]) -> Fit:
    """The law of the points whose tokens were all fresh."""
    params_R, tokens_R, unique_R, loss_R = np.concatenate(
        [list_points(row) for row in curves]).T
    runs = Runs(tuple(map(str, range(len(loss_R)))), params_R, tokens_R,
                FLOPS_PER_PARAM * params_R * tokens_R, loss_R, np.full(len(loss_R), np.nan),
                "products")
    return fit_law(OVERTRAINING, runs.choose(tokens_R <= unique_R), num_samples=NUM_SAMPLES)


def estimate_repeats(curves: Sequence[Row], fresh: Fit) -> dict[str, Any]:
    """R_D* and R_N* of the curves, with intervals.

    Each bootstrap sample draws the curves with replacement, whole, as points of a curve depend on
    each other, and takes a sample of the law of fresh tokens.

    Returns:
        `repeats` and `excess` with their 95 % intervals, the `published` ones, the `constants` of
        the law of fresh tokens, `error`, the root mean square of the log residuals, and a
        `sentence` of it.
    """
    points = [list_points(row) for row in curves]
    law = _fit(fresh.theta_P, points)
    rng, found = np.random.default_rng(0), []
    for theta_P in fresh.samples_SP:
        drawn = [points[number] for number in rng.integers(len(points), size=len(points))]
        if any((own[:, 1] > own[:, 2]).any() for own in drawn):
            sample = _fit(theta_P, drawn)
            found.append([sample.repeats, sample.excess])
    repeats_S, excess_S = np.array(found).T
    params_R, tokens_R, unique_R, loss_R = np.concatenate(points).T
    residual_R = np.log(law.predict(params_R, tokens_R, unique_R) / loss_R)
    published = DataLimited()
    result = {"repeats": {"value": law.repeats} | spread(repeats_S),
              "excess": {"value": law.excess} | spread(excess_S),
              "published": {"repeats": published.repeats, "excess": published.excess},
              "constants": describe_constants(fresh), "points": len(loss_R),
              "fresh_points": int((tokens_R <= unique_R).sum()),
              "most_epochs": float((tokens_R / unique_R).max()),
              "error": float(np.sqrt(np.mean(residual_R**2)))}
    return result | {"sentence": _sentence(result)}


def _fit(theta_P: np.ndarray, points: Sequence[np.ndarray]) -> DataLimited:
    """Fits both to points, with the law of fresh tokens given."""
    params_R, tokens_R, unique_R, loss_R = np.concatenate(points).T
    return fit_repeats(np.append(theta_P, theta_P[3]), params_R, tokens_R, unique_R, loss_R)


def _sentence(found: dict[str, Any]) -> str:
    repeats, published = found["repeats"], found["published"]["repeats"]
    where = "inside" if repeats["low"] <= published <= repeats["high"] else "outside"
    return (f"R_D* is {repeats['value']:.3g} ({repeats['low']:.3g} to {repeats['high']:.3g}) "
            f"repetitions, and the published {published:.4g} is {where} that interval; "
            f"{found['points']} points before the held-out losses turn, of up to "
            f"{found['most_epochs']:.3g} epochs, lie within {100 * found['error']:.2g} % of the "
            "law (root mean square)")
