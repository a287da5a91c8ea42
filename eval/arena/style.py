"""Style of answers: its measures, and ratings with their effect taken out.

To the log odds of each comparison is added, for each measure, its coefficient times (a - b) / (a +
b + 1) of the two answers' values, divided by the root mean square of these differences over all
comparisons. They are not centred, so that which answer was shown first changes nothing.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import expit

from core.errors import UserError
from eval.arena.bradley_terry import CENTRE, MAX_STEPS, SCALE, TOLERANCE, damp, design
from eval.statistics import Z_95

MEASURES = ("words", "headers", "lists", "bold")
REDUCTIONS = ("sum", "mean")
# As `lm-sys/FastChat` at 0e6d3e4 counts Markdown, outside of fenced code.
_FENCE = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:\d+\.|[-*+])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


class Penalty(NamedTuple):
    """What is added to the loss: a quadratic penalty on the coefficients, and how losses reduce.

    FastChat's style control sums, with 0.5 on coefficients and 0.5 / (ln 10)^2 on strengths, as
    its strengths are in units of 400 points; arena-rank takes the mean, with 1 on coefficients.

    Attributes:
        coefficients: half of it times their squared norm is added; of log odds.
        reduction: `sum` or `mean` of the losses of the comparisons.
        strengths: as `coefficients`, on the strengths.
    """

    coefficients: float = 0.5
    reduction: str = "sum"
    strengths: float = 0.0


@dataclasses.dataclass(frozen=True)
class StyleFit:
    """Ratings at equal style.

    Attributes:
        ratings: with mean 1000, [models].
        bounds: ends of their 95 % intervals, [models, 2].
        coefficients: log odds per root mean square of each measure's difference, [measures]; 0 for
            a measure that never differs.
        coefficient_bounds: [measures, 2].
    """

    ratings: np.ndarray
    bounds: np.ndarray
    coefficients: np.ndarray
    coefficient_bounds: np.ndarray


def measure_style(text: str) -> tuple[int, int, int, int]:
    """Words, headers, list items and bold passages of an answer in Markdown."""
    prose = _FENCE.sub("", text)
    return (len(text.split()),
            *(len(pattern.findall(prose)) for pattern in (_HEADER, _LIST, _BOLD)))


def style_differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The measures' scaled differences, [comparisons, measures].

    Args:
        first, second: the measures of the two answers, [comparisons, measures].
    """
    differences = (first - second) / (first + second + 1)
    norms = np.sqrt(np.mean(differences**2, axis=0))
    return differences / np.where(norms > 0, norms, 1.0)


def fit_style(first: np.ndarray, second: np.ndarray, scores: np.ndarray, styles: np.ndarray,
              num_models: int, penalty: Penalty) -> StyleFit:
    """Strengths and coefficients of least penalised loss, by Newton's method.

    Intervals are of the sandwich, with each comparison as a unit and the penalty in the Hessian;
    where strengths are penalised, of the inverse Hessian, as those of a prior in `fit`.

    Args:
        first, second: numbers of the models, which comparisons connect, [comparisons].
        scores: of the first, [comparisons].
        styles: see `style_differences`, [comparisons, measures].

    Raises:
        UserError: there is no such reduction, or the loss has no minimum.
    """
    if penalty.reduction not in REDUCTIONS:
        raise UserError(f"--style_reduction={penalty.reduction}",
                        f"is none of {', '.join(REDUCTIONS)}", "choose one of them")
    num_measures = styles.shape[1]
    loss_scale = 1.0 if penalty.reduction == "sum" else len(scores)
    ridge = loss_scale * np.repeat([penalty.strengths, penalty.coefficients],
                                   [num_models, num_measures])
    ridge[num_models:][~styles.any(axis=0)] += 1.0    # of no effect: the coefficient stays 0
    sides = design(first, second, num_models)
    values = np.zeros(num_models + num_measures)
    for _ in range(MAX_STEPS):
        residuals, hessian = _derive(sides, scores, styles, values)
        slope = np.concatenate([sides.T @ residuals, styles.T @ residuals]) - ridge * values
        hessian += np.diag(ridge)
        hessian[:num_models, :num_models] += len(scores) / num_models**2   # keeps their sum
        try:
            step = np.linalg.solve(hessian, slope)
        except np.linalg.LinAlgError:       # far out, where the loss is flat
            break
        width = np.abs(sides @ step[:num_models] + styles @ step[num_models:]).max()
        if width < TOLERANCE:
            inverse = np.linalg.inv(hessian)
            covariance = inverse if penalty.strengths else (
                inverse @ _square(sides, styles, residuals) @ inverse)
            return _describe(values, covariance, num_models)
        values = values + step * damp(width)
    raise UserError(f"--style_penalty={penalty.coefficients:g}", "the loss has no minimum: style "
                    "or models decide every vote", "raise it")


def _derive(sides: sparse.csr_array, scores: np.ndarray, styles: np.ndarray,
            values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals, [comparisons], and the Hessian of the summed loss."""
    num_models = sides.shape[1]
    p = expit(sides @ values[:num_models] + styles @ values[num_models:])
    curvature = p * (1 - p)
    weighted = styles * curvature[:, None]
    cross = sides.T @ weighted
    among = (sides.T @ sides.multiply(curvature[:, None])).toarray()
    return scores - p, np.block([[among, cross], [cross.T, styles.T @ weighted]])


def _square(sides: sparse.csr_array, styles: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """Sum over comparisons of the outer products of their gradients."""
    scored = sides.multiply(residuals[:, None]).tocsr()
    styled = styles * residuals[:, None]
    cross = scored.T @ styled
    return np.block([[(scored.T @ scored).toarray(), cross], [cross.T, styled.T @ styled]])


def _describe(values: np.ndarray, covariance: np.ndarray, num_models: int) -> StyleFit:
    """The fit of strengths, then coefficients, and their covariance."""
    centring = np.eye(num_models) - 1 / num_models
    ratings = CENTRE + SCALE * centring @ values[:num_models]
    among = centring @ covariance[:num_models, :num_models] @ centring
    half, half_of_measures = (Z_95 * np.sqrt(np.maximum(variances, 0.0))[:, None] for variances in (
        np.diag(among), np.diag(covariance)[num_models:]))
    signs = np.array([-1.0, 1.0])
    return StyleFit(ratings, ratings[:, None] + SCALE * half * signs, values[num_models:],
                    values[num_models:, None] + half_of_measures * signs)
