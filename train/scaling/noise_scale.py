"""The gradient noise scale: up to which batch size a larger batch saves as many steps.

Source: McCandlish et al., arXiv 1812.06162; sections 2 and A.1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

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
