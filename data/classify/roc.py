"""Area under the ROC curve, its interval, and the paired difference of two classifiers' areas."""

from __future__ import annotations

import math

import numpy as np

Z_95 = 1.959963984540054    # two-sided 95 % of the normal distribution


def area_under_curve(scores: np.ndarray, actual: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None without both."""
    if actual.all() or not actual.any():
        return None
    return float(_placements(scores, actual)[0].mean())


def area_interval(scores: np.ndarray, actual: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of `area_under_curve` for independent documents; None with fewer than two
    positives or two negatives.

    Source: DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), section 3: the normal interval,
    cut to [0, 1]. It has width 0 where every positive scores above every negative.
    """
    if min(actual.sum(), (~actual).sum()) < 2:
        return None
    placements = _placements(scores, actual)
    half = Z_95 * math.sqrt(sum(part.var(ddof=1) / len(part) for part in placements))
    area = placements[0].mean()
    return max(float(area - half), 0.0), min(float(area + half), 1.0)


def area_difference(ours: np.ndarray, theirs: np.ndarray,
                    actual: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Area of `ours` minus that of `theirs` on the same documents, and its 95 % interval.

    Source: as `area_interval`, equation 6 for two curves: the variance of the difference is that
    of the differences of the placements.

    Args:
        ours, theirs: [num_documents] scores.
        actual: [num_documents] truth values, two of each at least.
    """
    parts = [first - second for first, second in zip(_placements(ours, actual),
                                                     _placements(theirs, actual))]
    half = Z_95 * math.sqrt(sum(part.var(ddof=1) / len(part) for part in parts))
    difference = float(parts[0].mean())
    return difference, (difference - half, difference + half)


def _placements(scores: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each positive the share of the negatives below it, and for each negative the share of the
    positives above it, ties counted half; the mean of either is the area."""
    positive, negative = np.sort(scores[actual]), np.sort(scores[~actual])

    def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
        return (np.searchsorted(others, values, "left")
                + np.searchsorted(others, values, "right")) / (2 * len(others))

    return below(scores[actual], negative), 1 - below(scores[~actual], positive)
