"""Whether a model's probabilities mean what they say: Brier score, calibration error, coverage."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from core.errors import UserError
from eval.statistics import check_finite

NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Bin:
    """The answers whose confidence is in (low, high]; in the first bin from `low` on.

    Attributes:
        items: how many.
        confidence, accuracy: their means; None of no answer.
    """

    low: float
    high: float
    items: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """An expected calibration error.

    Attributes:
        error: mean over answers of |confidence - accuracy| of their bin.
        binning: `width` or `mass`.
        bins: the bins, in order; there are fewer than asked for where confidences are tied.
    """

    error: float
    binning: str
    bins: tuple[Bin, ...]


def option_probabilities(logps_nats: Sequence[float], name: str = "logps_nats") -> np.ndarray:
    """Softmax of the options' log-probabilities, [options]; raises `UserError` if not finite."""
    array = check_finite(logps_nats, name)
    shifted = np.exp(array - array.max())
    return shifted / shifted.sum()


def brier_scores(logps_nats: Sequence[Sequence[float]], answers: Sequence[int]) -> np.ndarray:
    """Each question's Brier score, [questions], from 0 to 2; their mean is that of the model.

    The sum over options of (p_k - 1[k is right])^2, with p softmaxed: Brier (1950), and `brier` of
    lm-evaluation-harness at 4e7e0d4, which averages it over questions.

    Args:
        logps_nats: of each question's options, which may differ in number.
        answers: index of each question's right option.

    Raises:
        UserError: a log-probability is not finite, or an answer is none of the options.
    """
    if len(logps_nats) != len(answers):
        raise UserError("answers", f"{len(logps_nats)} questions have {len(answers)}",
                        "give one for each question")
    scores = []
    for index, (options, answer) in enumerate(zip(logps_nats, answers)):
        probabilities = option_probabilities(options, f"logps_nats of question {index}")
        if not 0 <= answer < len(probabilities):
            raise UserError(f"answer of question {index}", f"{answer} is none of its "
                            f"{len(probabilities)} options", "correct the task file")
        probabilities[answer] -= 1
        scores.append(float(probabilities @ probabilities))
    return check_finite(scores, "Brier scores")


def expected_calibration_error(confidences: Sequence[float], is_right: Sequence[float], *,
                               binning: str, num_bins: int = NUM_BINS) -> Calibration:
    """Expected calibration error (arXiv 1706.04599, equation 3).

    Args:
        confidences: the probability of each answer, from 0 to 1.
        is_right: 1 or 0 for each.
        binning: `width`, bins of equal width from 0 to 1; or `mass`, bins of as equal
            numbers of answers as equal confidences, which stay together, allow: ends lie halfway
            between neighbours (as in `get_ece_em` of HELM at 63754d0).

    Raises:
        UserError: a number is not finite or not from 0 to 1, or the binning is unknown.
    """
    p, right = _check_pairs(confidences, is_right)
    if binning == "width":
        edges = np.linspace(0, 1, num_bins + 1)
    elif binning == "mass":
        parts = np.array_split(np.sort(p), min(num_bins, len(p)))
        inner = [(a[-1] + b[0]) / 2 for a, b in itertools.pairwise(parts)]
        edges = np.unique([0.0, *inner, 1.0])
    else:
        raise UserError(f"binning={binning!r}", "is unknown",
                        "choose width or mass")
    places = np.maximum(np.searchsorted(edges, p, side="left") - 1, 0)
    bins, gaps = [], []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = places == place
        num = int(inside.sum())
        means = (float(p[inside].mean()), float(right[inside].mean())) if num else (None, None)
        bins.append(Bin(float(low), float(high), num, *means))
        gaps.append(abs(float(p[inside].sum() - right[inside].sum())))
    return Calibration(sum(gaps) / len(p), binning, tuple(bins))


def risk_by_coverage(confidences: Sequence[float], is_right: Sequence[float]) -> np.ndarray:
    """Share of wrong answers among the k most confident ones, [n] for k = 1 to n.

    Its mean is the area under the risk-coverage curve (AURC, arXiv 1805.08206), and 1 less the
    value at k the selective accuracy. Of equal confidences each has their mean error, so the order
    of the answers does not matter.

    Raises:
        UserError: a number is not finite or not from 0 to 1.
    """
    p, right = _check_pairs(confidences, is_right)
    _, places, counts = np.unique(-p, return_inverse=True, return_counts=True)
    errors = np.bincount(places, weights=1 - right) / counts
    return np.cumsum(np.repeat(errors, counts)) / np.arange(1, len(p) + 1)


def _check_pairs(confidences: Sequence[float],
                 is_right: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    p, right = check_finite(confidences, "confidences"), check_finite(is_right, "is_right")
    if len(p) != len(right):
        raise UserError("confidences", f"there are {len(p)} for {len(right)} answers",
                        "give one for each answer")
    for name, values in (("confidences", p), ("is_right", right)):
        if np.any((values < 0) | (values > 1)):
            raise UserError(name, "not all are from 0 to 1", "give probabilities")
    return p, right
