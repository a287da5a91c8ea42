"""Means with standard errors, and win rates with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample standard deviation over sqrt n; nan for one value)."""
    array = np.asarray(values, np.float64)
    stderr = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), float(stderr)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and its 95 % interval, the normal one for independent values."""
    mean, stderr = mean_and_stderr(values)
    return mean, (mean - Z_95 * stderr, mean + Z_95 * stderr)


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Win rate over paired scores, ties counting half, and its 95 % interval.

    The interval is the normal one of a mean, for independent pairs.
    """
    outcomes = (np.sign(np.asarray(ours) - np.asarray(theirs)) + 1) / 2
    mean, (low, high) = mean_interval(outcomes)
    return mean, (max(low, 0.0), min(high, 1.0))
