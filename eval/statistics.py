"""Means, shares, differences and win rates with their standard errors and 95 % intervals.

A value that is not finite is refused, never averaged. Of one value, or of one group where groups
are what is independent, there is no standard error: it is None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from scipy import stats

from core.errors import UserError

Z_95 = 1.959963984540054  # two-sided 95 % of the normal distribution
SUM_ERROR = 1e-12       # of a difference of sums that should be 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean, how sure it is, and how that was computed.

    Attributes:
        value: the mean.
        stderr: its standard error; None where one value, or one group, leaves it undefined.
        low, high: the ends of the 95 % interval; None where it is undefined.
        interval: its kind: `wilson`, `normal`, `adjusted` (of paired differences) or `bootstrap`.
        items: number of values.
        groups: number of groups by which the error is clustered; None where it is not.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    interval: str
    items: int
    groups: int | None = None


def mean_and_stderr(values: Sequence[float], name: str = "values") -> tuple[float, float]:
    """Mean and its standard error (sample standard deviation over sqrt n; nan for one value).

    Args:
        name: of the values, for the message.

    Raises:
        UserError: there is none, or one is not finite.
    """
    array = check_finite(values, name)
    stderr = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), float(stderr)


def mean_interval(values: Sequence[float],
                  name: str = "values") -> tuple[float, tuple[float, float]]:
    """Mean and its 95 % interval, the normal one for independent values; errors as the former."""
    mean, stderr = mean_and_stderr(values, name)
    return mean, (mean - Z_95 * stderr, mean + Z_95 * stderr)


def check_finite(values: Sequence[float], name: str) -> np.ndarray:
    """The values as float64; raises `UserError`, naming the first, where one is not finite."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise UserError(name, "there is no value to average", "evaluate at least one item")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise UserError(name, f"{len(wrong)} of {len(array)} values are not finite: the first is "
                        f"{array[wrong[0]]}, at index {wrong[0]}",
                        "find out why, or leave these items out and count them")
    return array


def wilson_interval(share: float, items: float) -> tuple[float, float]:
    """The 95 % interval of a share of `items` independent right answers; never of width zero.

    Wilson's (JASA 22, 1927): the shares from which the one found is less than 1.96 standard errors
    away. `items` may be an effective number, from 0 on without 0.
    """
    scale = 1 + Z_95**2 / items
    centre = (share + Z_95**2 / (2 * items)) / scale
    half = Z_95 / scale * math.sqrt(share * (1 - share) / items + (Z_95 / (2 * items))**2)
    # Rounding aside, the share lies within.
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def clustered_stderr(values: Sequence[float], groups: Sequence[Hashable],
                     name: str = "values") -> float | None:
    """Standard error of the mean where values of one group are not independent of each other.

    Equation 4 of arXiv 2411.00640: the variance of independent values, plus the products of
    deviations of every two values of a group over n^2. With a group per value it is the standard
    error of `mean_and_stderr`; of one group alone it is undefined, and None.

    Args:
        groups: of each value, e.g. its passage or subject.
        name: of the values, for the message.

    Raises:
        UserError: a value is not finite, or there are not as many groups as values.
    """
    array = check_finite(values, name)
    if len(groups) != len(array):
        raise UserError(name, f"{len(array)} values have {len(groups)} groups",
                        "give one group for each value")
    sums: dict[Hashable, float] = {}
    deviations = array - array.mean()
    for group, deviation in zip(groups, deviations):
        sums[group] = sums.get(group, 0.0) + float(deviation)
    if len(sums) < 2:
        return None
    n = len(array)
    squares = float(deviations @ deviations)
    products = math.fsum(total**2 for total in sums.values()) - squares     # i, j apart
    return math.sqrt(max(squares / (n * (n - 1)) + products / n**2, 0.0))


def estimate_mean(values: Sequence[float], groups: Sequence[Hashable] | None = None,
                  name: str = "values") -> Estimate:
    """Mean with a normal interval; errors as `clustered_stderr`.

    Args:
        groups: None takes the values as independent.
    """
    mean, stderr, num_groups = _mean_and_error(values, groups, name)
    low, high = ((None, None) if stderr is None
                 else (mean - Z_95 * stderr, mean + Z_95 * stderr))
    return Estimate(mean, stderr, low, high, "normal", len(values), num_groups)


def estimate_share(scores: Sequence[float], groups: Sequence[Hashable] | None = None,
                   name: str = "scores") -> Estimate:
    """Mean of scores from 0 to 1 with Wilson's interval, which is never of width zero.

    For scores between 0 and 1, and for clustered ones, the interval is that of the number of
    independent right or wrong answers with the same standard error (Korn and Graubard 1998). Where
    that error is zero, all values being equal, it is that of the number of items or groups.

    Raises:
        UserError: a score is not finite, or not from 0 to 1.
    """
    mean, stderr, num_groups = _mean_and_error(scores, groups, name)
    _check_shares(scores, name)
    units = num_groups or len(scores)
    variance = np.var(scores) / len(scores) if groups is None else (stderr or 0.0)**2
    effective = mean * (1 - mean) / variance if variance > SUM_ERROR**2 else units
    low, high = wilson_interval(mean, max(effective, 1.0))
    return Estimate(mean, stderr, low, high, "wilson", len(scores), num_groups)


def paired_difference(ours: Sequence[float], theirs: Sequence[float],
                      groups: Sequence[Hashable] | None = None,
                      name: str = "scores") -> Estimate:
    """Mean difference of two models' scores, from 0 to 1, on the same items, ours less theirs.

    `stderr` is that of the differences (arXiv 2411.00640, section 4.2). The interval adds one pair
    that differs by 1 to each side, each a group of its own: it is that of Bonett and Price (2012)
    for right and wrong answers, and not of width zero where two models agree on every item.

    Raises:
        UserError: the models have not the same number of scores, or one is not finite, or not from
            0 to 1.
    """
    if len(ours) != len(theirs):
        raise UserError(name, f"one model has {len(ours)} and the other {len(theirs)}",
                        "compare them on the same items")
    for scores in (ours, theirs):
        check_finite(scores, name)
        _check_shares(scores, name)
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    mean, stderr, num_groups = _mean_and_error(differences, groups, name)
    low, high = _adjusted_interval(differences, groups)
    return Estimate(mean, stderr, low, high, "adjusted", len(differences), num_groups)


def sign_test(ours: Sequence[float], theirs: Sequence[float], name: str = "scores") -> float:
    """Two-sided p-value that two models are equally often better, ties left out.

    For right and wrong answers it is McNemar's exact test (Psychometrika 12, 1947). Without any
    difference it is 1.

    Raises:
        UserError: the models have not the same number of scores, or one is not finite.
    """
    if len(ours) != len(theirs):
        raise UserError(name, f"one model has {len(ours)} and the other {len(theirs)}",
                        "compare them on the same items")
    signs = np.sign(check_finite(ours, name) - check_finite(theirs, name))
    num = int(np.count_nonzero(signs))
    return float(stats.binomtest(int(np.sum(signs > 0)), num).pvalue) if num else 1.0


def win_rate(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Win rate over paired scores, ties counting half, and its 95 % interval.

    The interval is that of `paired_difference` for wins less losses.
    """
    signs = np.sign(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    mean = check_finite(signs, "differences of scores").mean()
    low, high = _adjusted_interval(signs, None)
    return float((mean + 1) / 2), ((low + 1) / 2, (high + 1) / 2)


def micro_mean(by_group: Mapping[str, Sequence[float]], name: str = "scores") -> Estimate:
    """Mean over all items of all groups, of equal weight; errors and interval as `estimate_share`.
    """
    return estimate_share([score for scores in by_group.values() for score in scores], name=name)


def macro_mean(by_group: Mapping[str, Sequence[float]], name: str = "scores") -> Estimate:
    """Mean of the groups' means, groups of equal weight, for the groups that there are.

    The standard error is the root of the sum of the groups' squared errors over their number; it is
    undefined where a group has one item. The interval is Wilson's, of the number of independent
    answers with that error.

    Raises:
        UserError: there is no group, or of a group's scores as `estimate_share`; it is named.
    """
    if not by_group:
        raise UserError(name, "there is no group to average", "evaluate at least one")
    parts = [estimate_share(scores, name=f"{name} of {group}")
             for group, scores in by_group.items()]
    mean = math.fsum(part.value for part in parts) / len(parts)
    errors = [part.stderr for part in parts]
    items = sum(part.items for part in parts)
    if None in errors:
        return Estimate(mean, None, None, None, "wilson", items, len(parts))
    stderr = math.sqrt(math.fsum(error**2 for error in errors)) / len(parts)
    effective = mean * (1 - mean) / stderr**2 if stderr > SUM_ERROR else items
    return Estimate(mean, stderr, *wilson_interval(mean, max(effective, 1.0)), "wilson", items,
                    len(parts))


def bootstrap_interval(statistic: Callable[[np.ndarray], float], items: int, *, seed: int,
                       groups: Sequence[Hashable] | None = None,
                       num_samples: int = 1000) -> Estimate:
    """A statistic of items, with the percentile interval of the bootstrap (Efron 1979).

    For what has no closed form, such as a calibration error or an aggregate of tasks.

    Args:
        statistic: of indices of items, int64 [n], which may repeat.
        items: how many there are.
        groups: of each item; whole groups are drawn.

    Raises:
        UserError: the statistic is not finite for some sample, or there is no item.
    """
    if items < 1:
        raise UserError("items", "there is none to draw from", "evaluate at least one item")
    units, num_units = None, items
    if groups is not None:
        members: dict[Hashable, list[int]] = {}
        for index, group in enumerate(groups):
            members.setdefault(group, []).append(index)
        units = [np.array(indices) for indices in members.values()]
        num_units = len(units)
    rng = np.random.default_rng(seed)
    picked = rng.integers(num_units, size=(num_samples, num_units))
    drawn = [statistic(row if units is None else np.concatenate([units[k] for k in row]))
             for row in picked]
    samples = check_finite(drawn, "statistic of a bootstrap sample")
    value = float(statistic(np.arange(items)))
    if num_units == 1:
        return Estimate(value, None, None, None, "bootstrap", items, groups and 1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Estimate(value, float(samples.std(ddof=1)), float(low), float(high), "bootstrap", items,
                    None if groups is None else num_units)


def _mean_and_error(values: Sequence[float], groups: Sequence[Hashable] | None,
                    name: str) -> tuple[float, float | None, int | None]:
    """Mean, its standard error and the number of groups."""
    mean, stderr = mean_and_stderr(values, name)
    if groups is not None:
        return mean, clustered_stderr(values, groups, name), len(set(groups))
    return mean, stderr if len(values) > 1 else None, None


def _adjusted_interval(differences: np.ndarray,
                       groups: Sequence[Hashable] | None) -> tuple[float, float]:
    """The interval of `paired_difference`."""
    padded = np.concatenate([differences, [1.0, -1.0]])
    if groups is None:
        stderr = padded.std() / math.sqrt(len(padded))
    else:
        marked = [*((group,) for group in groups), "ours", "theirs"]    # no tuple is a text
        stderr = clustered_stderr(padded, marked)
    mean = padded.mean()
    return max(float(mean - Z_95 * stderr), -1.0), min(float(mean + Z_95 * stderr), 1.0)


def _check_shares(scores: Sequence[float], name: str) -> None:
    wrong = [float(score) for score in scores if not 0 <= score <= 1]
    if wrong:
        raise UserError(name, f"{len(wrong)} of {len(scores)} scores are not from 0 to 1: the "
                        f"first is {wrong[0]}", "use `estimate_mean` for values on another scale")
