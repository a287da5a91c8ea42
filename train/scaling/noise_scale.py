"""The gradient noise scale: up to which batch size a larger batch saves as many steps.

Axes of the arrays here: R large batches, C small ones in each; or R runs.

Source: McCandlish et al., arXiv 1812.06162; sections 2 and A.1.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """Estimates from mean squared norms of gradients at two batch sizes.

    Attributes:
        squared_norm: |G|^2 of the true gradient.
        trace: tr(Sigma), the variance of one example's gradient, summed over parameters.
        noise_scale: B_simple = tr(Sigma) / |G|^2, in the unit of the batch sizes.
    """

    squared_norm: float
    trace: float
    noise_scale: float


class GradientNorms(NamedTuple):
    """Gradients of disjoint batches, as far as their norms need them.

    Attributes:
        squared_RC: squared norm of each small batch's mean gradient.
        products_RR: scalar products of the large batches' mean gradients.
        batch_tokens: tokens of a small batch.
    """

    squared_RC: np.ndarray
    products_RR: np.ndarray
    batch_tokens: float

    @property
    def large_tokens(self) -> float:
        """Tokens of a large batch."""
        return self.batch_tokens * self.squared_RC.shape[1]

    def choose(self, chosen_R: np.ndarray) -> GradientNorms:
        """Those of some of the large batches, by their indices."""
        return self._replace(squared_RC=self.squared_RC[chosen_R],
                             products_RR=self.products_RR[np.ix_(chosen_R, chosen_R)])

    def squared_norms(self) -> dict[float, float]:
        """Mean squared norm of disjoint batches by their tokens: small ones, large ones, and as
        many large ones together as a power of two, up to half of them; and of all together."""
        num = len(self.products_RR)
        found = {self.batch_tokens: float(self.squared_RC.mean())}
        sizes = [2**power for power in range(num.bit_length()) if 2 * 2**power <= num]
        for size in [*sizes, num]:
            starts = range(0, num - size + 1, size)
            found[size * self.large_tokens] = float(np.mean([
                self.products_RR[start:start + size, start:start + size].mean()
                for start in starts]))
        return found


class Interval(NamedTuple):
    """A positive number with its 95 % interval."""

    value: float
    low: float
    high: float


def estimate_from_norms(norms: GradientNorms) -> NoiseScale:
    """The noise scale from the small batches and from all of them together.

    |G|^2 is then the mean product of the gradients of two different small batches, over all pairs.

    Raises:
        UserError: noise hides the gradient.
    """
    (small, squared_small), *_, (big, squared_big) = norms.squared_norms().items()
    return estimate_noise_scale(squared_small, squared_big, batch_small=small, batch_big=big)


def noise_intervals(norms: GradientNorms) -> dict[str, Interval]:
    """The fields of `NoiseScale` with intervals: Student's, by the jackknife of their logarithms
    over large batches (Miller, Biometrika 61, 1974), as they are positive and one is a ratio.

    Raises:
        UserError: there are fewer than three large batches, or noise hides the gradient, of all
            batches or where one is left out.
    """
    num = len(norms.products_RR)
    if num < 3:
        raise UserError(f"{num} large batches", "are too few for an interval",
                        "measure three or more")
    found = dataclasses.asdict(estimate_from_norms(norms))
    try:
        left = [dataclasses.asdict(estimate_from_norms(norms.choose(np.delete(np.arange(num), r))))
                for r in range(num)]
    except UserError:
        raise UserError("noise scale", "is not determined: without one of the large batches noise "
                        "hides the gradient", "measure more of them, or larger ones") from None
    quantile, intervals = float(stdtrit(num - 1, 0.975)), {}
    for name, value in found.items():
        with np.errstate(divide="ignore", invalid="ignore"):    # gradients may all be the same
            logs_R = np.log([each[name] for each in left])
            half = quantile * np.sqrt((num - 1) * np.var(logs_R))
        intervals[name] = Interval(value, *(value * np.exp((-half, half)) if value
                                            else (0.0, 0.0)))
    return intervals


def estimate_noise_scale(squared_norm_small: float, squared_norm_big: float, *,
                         batch_small: float, batch_big: float) -> NoiseScale:
    """The noise scale by appendix A.1: E |G_B|^2 = |G|^2 + tr(Sigma) / B, at two batch sizes.

    Args:
        squared_norm_small, squared_norm_big: squared norms of gradients, each the mean over
            several batches of its size: both estimates are unbiased, their ratio is not.
        batch_small, batch_big: the batch sizes, in examples or in tokens.

    Raises:
        UserError: the batch sizes are not in order, or noise hides the gradient.
    """
    if not 0 < batch_small < batch_big:
        raise UserError(f"batches of {batch_small} and {batch_big}", "are not two sizes in "
                        "ascending order", "give the smaller one first")
    squared_norm = ((batch_big * squared_norm_big - batch_small * squared_norm_small)
                    / (batch_big - batch_small))
    trace = (squared_norm_small - squared_norm_big) / (1 / batch_small - 1 / batch_big)
    if not (squared_norm > 0 and trace >= 0):
        raise UserError(f"squared norms {squared_norm_small:.4g} and {squared_norm_big:.4g}",
                        "give no noise scale: the estimate of the squared norm or of the variance "
                        "is negative", "average over more batches, or take sizes further apart")
    return NoiseScale(squared_norm, trace, trace / squared_norm)


def relative_steps(batch_size: np.ndarray | float, noise_scale: float) -> np.ndarray:
    """Steps to a loss over those of an endless batch: 1 + B_noise / B."""
    return 1 + noise_scale / np.asarray(batch_size, np.float64)


def relative_examples(batch_size: np.ndarray | float, noise_scale: float) -> np.ndarray:
    """Examples to a loss over those of the smallest batch: 1 + B / B_noise."""
    return 1 + np.asarray(batch_size, np.float64) / noise_scale


def fit_critical_batch(steps_R: np.ndarray, examples_R: np.ndarray) -> tuple[float, float, float]:
    """Fewest steps, fewest examples and B_crit of runs to one loss at several batch sizes.

    (S / S_min - 1) (E / E_min - 1) = 1 is fitted as 1 = S_min / S + E_min / E, which says the same
    and is linear. B_crit is E_min / S_min.

    Args:
        steps_R: steps to the loss, of each batch size.
        examples_R: examples to it, or tokens.

    Raises:
        UserError: there are fewer than two runs, or they have no such trade-off.
    """
    steps_R, examples_R = np.asarray(steps_R, np.float64), np.asarray(examples_R, np.float64)
    if len(np.unique(examples_R / steps_R)) < 2:
        raise UserError("runs to one loss", "have fewer than two batch sizes", "add another size")
    inverse_RX = np.stack([1 / steps_R, 1 / examples_R], axis=1)
    scale_X = inverse_RX.max(axis=0)
    found_X = np.linalg.lstsq(inverse_RX / scale_X, np.ones(len(steps_R)), rcond=None)[0] / scale_X
    min_steps, min_examples = map(float, found_X)
    if not (min_steps > 0 and min_examples > 0):
        raise UserError("runs to one loss", "do not trade steps for examples: larger batches must "
                        "take fewer steps and more examples", "tune the learning rate of each size")
    return min_steps, min_examples, min_examples / min_steps
