"""Agreement between annotators who rated the same items, and how noisy their labels are.

An annotator rates an item at most once. Counts are how many annotators gave an item each of the
values, [items, values]; an item with fewer than two ratings has nobody to agree with and does not
count. A coefficient is NaN where all ratings are equal, so that nobody can disagree, or no item has
two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from core.errors import UserError

LEVELS = ("nominal", "ordinal", "interval")


def count_values(items: np.ndarray, codes: np.ndarray, num_values: int) -> np.ndarray:
    """Number of annotators who gave each item each value, int64 [items, values].

    Args:
        items: of each rating, its item's number, [ratings].
        codes: of each rating, its value's number, [ratings].
    """
    counts = np.zeros((items.max(initial=-1) + 1, num_values), np.int64)
    np.add.at(counts, (items, codes), 1)
    return counts


def raw_agreement(counts: np.ndarray) -> float:
    """Share of pairs of annotators who agree on an item, as the mean over items.

    P-bar of Fleiss (1971); items weigh the same, however many rated them.
    """
    counts = _rated_twice(counts)
    nums = counts.sum(axis=1)
    agreeing = (counts * (counts - 1)).sum(axis=1) / (nums * (nums - 1))
    return float(agreeing.mean()) if len(agreeing) else math.nan


def cohen_kappa(first: Sequence[float], second: Sequence[float]) -> float:
    """Cohen's kappa (1960), unweighted, of two annotators' ratings of the same items.

    (p_o - p_e) / (1 - p_e): p_o is the share of equal ratings, and p_e the sum over values of the
    product of the shares in which the two give it.

    Raises:
        UserError: they have not the same number of ratings.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise UserError("ratings", f"one annotator has {len(first)} and the other {len(second)}",
                        "give the items that both rated")
    if not len(first):
        return math.nan
    _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    shares = [np.bincount(part, minlength=codes.max() + 1) / len(first)
              for part in np.split(codes, 2)]
    expected = float(shares[0] @ shares[1])
    return _beyond_chance(float((first == second).mean()), expected)


def fleiss_kappa(counts: np.ndarray) -> float:
    """Fleiss' kappa (1971): `raw_agreement` beyond the chance that all annotators share.

    (P - P_e) / (1 - P_e), where P_e is the sum of the squared shares of the values among all
    ratings. Fleiss has the same number of ratings for every item; with different numbers, P is the
    mean over items and the shares are those of all ratings.
    """
    counts = _rated_twice(counts)
    if not len(counts):
        return math.nan
    shares = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(raw_agreement(counts), float(shares @ shares))


def krippendorff_alpha(counts: np.ndarray, values: np.ndarray, level: str) -> float:
    """Krippendorff's alpha, for any number of annotators and missing ratings.

    1 - D_o / D_e by the coincidences of values within items ("Computing Krippendorff's
    Alpha-Reliability", 2011, section E).

    Args:
        values: of the columns of `counts`, ascending.
        level: `nominal`: two values differ or do not; `ordinal`: by the number of ratings between
            them; `interval`: by the square of their difference.

    Raises:
        UserError: there is no such level.
    """
    if level not in LEVELS:
        raise UserError(f"level={level!r}", f"is none of {', '.join(LEVELS)}",
                        "choose one of them")
    counts = _rated_twice(counts).astype(np.float64)
    if not len(counts):
        return math.nan
    weighted = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = counts.T @ weighted - np.diag(weighted.sum(axis=0))
    totals = counts.sum(axis=0)
    distances = _distances(totals, np.asarray(values, np.float64), level)
    expected = float(totals @ distances @ totals) / (totals.sum() - 1)
    return 1 - float((coincidences * distances).sum()) / expected if expected else math.nan


def flip_rate(agreement: float) -> float:
    """The rate e at which labels of two values are flipped, from how often two of them agree.

    If every annotator reports the true one of two values, but the other one with probability e,
    independently of the others and of the value, two agree with probability (1 - e)^2 + e^2. So
    e = (1 - sqrt(2 a - 1)) / 2 for an agreement a from 1/2 on; below there is none, and it is NaN.
    Annotators who share a mistake make it too low.
    """
    return (1 - math.sqrt(2 * agreement - 1)) / 2 if agreement >= 0.5 else math.nan


def agreement_with_others(counts: np.ndarray, items: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Share of the others that gave its item the same value, of each rating, [ratings].

    NaN where nobody else rated the item.

    Args:
        items, codes: see `count_values`.
    """
    nums = counts.sum(axis=1)[items] - 1
    return np.divide(counts[items, codes] - 1, nums, out=np.full(len(items), math.nan),
                     where=nums > 0)


def _rated_twice(counts: np.ndarray) -> np.ndarray:
    return counts[counts.sum(axis=1) > 1]


def _beyond_chance(observed: float, expected: float) -> float:
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def _distances(totals: np.ndarray, values: np.ndarray, level: str) -> np.ndarray:
    """Squared differences of all pairs of values, [values, values]."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    places = np.cumsum(totals) - totals / 2 if level == "ordinal" else values
    return (places[:, None] - places)**2
