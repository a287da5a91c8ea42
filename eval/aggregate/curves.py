"""Learning curves: scores by checkpoint, from which step a task is learned, and how noisy it is."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from core.errors import UserError
from data.layouts.rows import Damaged, find_files, read_rows
from eval.aggregate.table import IS_HIGHER_BETTER, Score
from eval.statistics import Z_95, wilson_interval

NUM_ERRORS = 2      # standard errors above chance that count as learned
NUMBERS = ("value", "stderr", "items", "n", "chance", "tokens")
COLUMNS = ("step", "task", "metric", *NUMBERS, "low", "high", "series")


@dataclasses.dataclass(frozen=True)
class Point:
    """A score of one checkpoint; `tokens` it was trained on, None where that is not known."""

    step: int
    score: Score
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """One measure along training: `points` by step, at least one.

    Attributes:
        series: what tells it from other runs: "" or e.g. `pythia-1b, zero-shot`.
    """

    series: str
    task: str
    metric: str
    points: tuple[Point, ...]

    @property
    def chance(self) -> float | None:
        """The value of guessing, where the last point knows it."""
        return self.points[-1].score.chance

    @property
    def intervals(self) -> list[tuple[float, float] | None]:
        """The points' 95 % intervals: of accuracies Wilson's, else normal; None without an error.

        Wilson's is that of the number of independent answers with the score's standard error.
        """
        is_share = IS_HIGHER_BETTER.get(self.metric, False)
        return [_interval(point.score, is_share) for point in self.points]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a curve says.

    Attributes:
        emerges_at: first step from which every score stays more than two standard errors above
            chance; None where there is none.
        emergence: that in words: `at the last checkpoint only`, `not above chance`, what is
            missing, or "".
        monotonicity: Spearman's correlation of score and step, signed so that 1 is steady
            improvement; None of fewer than three points, of a constant or of an unknown direction.
        noise: standard deviation of a score about its neighbours; None of fewer than three points.
        signal: the last score less the first.
        signal_to_noise: |signal| over noise; None where noise is 0 or unknown.
    """

    emerges_at: int | None
    emergence: str
    monotonicity: float | None
    noise: float | None
    signal: float
    signal_to_noise: float | None


def make_curves(rows: Iterable[tuple[str, str, str, Point]]) -> tuple[list[Curve], int]:
    """Curves of (series, task, metric, point), and the number of rows that repeat another.

    Raises:
        UserError: two rows of one checkpoint differ.
    """
    found: dict[tuple[str, str, str], dict[int, Point]] = {}
    num_repeated = 0
    for series, task, metric, point in rows:
        points = found.setdefault((series, task, metric), {})
        if point.step in points:
            if points[point.step] != point:
                raise UserError(f"step {point.step}, {task} {metric} of {series or 'the run'}",
                                f"comes twice, as {points[point.step].score.value} and "
                                f"{point.score.value}", "leave one out, or choose rows with --only")
            num_repeated += 1
        points[point.step] = point
    return [Curve(*names, tuple(points[step] for step in sorted(points)))
            for names, points in found.items()], num_repeated


def read_curves(path: Path, *, only: Mapping[str, str], items: Mapping[str, int],
                chance: Mapping[str, float],
                tokens_per_step: int = 0) -> tuple[list[Curve], dict[str, int]]:
    """Reads a table of scores: CSV, JSON lines or Parquet, plain or compressed.

    Columns `step`, `task`, `metric` and `value` are needed; `stderr`, `items` (or `n`), `chance`
    and `tokens` are used where they are. Every other column tells series apart.

    Args:
        only: the rows whose columns have these values are read, and no others.
        items, chance: by task, where the table has no such column.
        tokens_per_step: gives `tokens` where the table has no such column; 0 gives none.

    Returns:
        The curves; and how many rows were left out, by reason.

    Raises:
        UserError: a row is damaged, lacks a column, or has no number in one; no row is left.
    """
    left_out: Counter[str] = Counter()

    def points() -> Iterator[tuple[str, str, str, Point]]:
        for file in find_files(path):
            for place, row in read_rows(file):
                if isinstance(row, Damaged):
                    raise UserError(place, row.what, "correct this row, or remove it")
                if any(str(row.get(column)) != value for column, value in only.items()):
                    left_out["not_chosen"] += 1
                    continue
                series, task, metric, point = _read_point(place, row, tokens_per_step)
                score = point.score
                score = dataclasses.replace(
                    score, items=items.get(task) if score.items is None else score.items,
                    chance=chance.get(task) if score.chance is None else score.chance)
                score = dataclasses.replace(score, stderr=_stderr(metric, score))
                yield series, task, metric, dataclasses.replace(point, score=score)

    curves, num_repeated = make_curves(points())
    if num_repeated:
        left_out["repeated"] = num_repeated
    if not curves:
        raise UserError(str(path), "holds no row" + (" with " + ", ".join(
            f"{name}={value}" for name, value in only.items()) if only else ""),
            "correct --only, or name another table")
    return curves, dict(left_out)


def summarise(curve: Curve) -> Summary:
    """Emergence, monotonicity and noise of a curve.

    Noise is the root mean square of a score's distance from the line between its two neighbours,
    scaled so that independent errors give their standard deviation, whatever the trend and the
    spacing: r^2 / (1 + w^2 + (1 - w)^2) with weights w of the former neighbour, 1 - w of the next.
    """
    steps = np.array([point.step for point in curve.points], np.float64)
    values = np.array([point.score.value for point in curve.points])
    signal, noise, monotonicity = float(values[-1] - values[0]), None, None
    if len(values) > 2:
        weights = (steps[2:] - steps[1:-1]) / (steps[2:] - steps[:-2])
        residuals = values[1:-1] - weights * values[:-2] - (1 - weights) * values[2:]
        noise = float(np.sqrt(np.mean(residuals**2 / (1 + weights**2 + (1 - weights)**2))))
        if curve.metric in IS_HIGHER_BETTER and np.ptp(values) > 0:
            sign = 1 if IS_HIGHER_BETTER[curve.metric] else -1
            monotonicity = sign * float(stats.spearmanr(steps, values).statistic)
    emerges_at, emergence = _find_emergence(curve)
    return Summary(emerges_at, emergence, monotonicity, noise, signal,
                   abs(signal) / noise if noise else None)


def find_missing(curves: Sequence[Curve]) -> dict[tuple[str, str, str], list[int]]:
    """Of each curve the steps that other curves of its series have and it lacks, where any."""
    steps: dict[str, set[int]] = {}
    for curve in curves:
        steps.setdefault(curve.series, set()).update(point.step for point in curve.points)
    found = {(curve.series, curve.task, curve.metric):
             sorted(steps[curve.series] - {point.step for point in curve.points})
             for curve in curves}
    return {names: lacking for names, lacking in found.items() if lacking}


def _find_emergence(curve: Curve) -> tuple[int | None, str]:
    if not IS_HIGHER_BETTER.get(curve.metric, False):
        return None, "no accuracy"
    if curve.chance is None:
        return None, "chance is not known"
    if any(point.score.stderr is None for point in curve.points):
        return None, "no standard errors"
    is_above = [point.score.value - NUM_ERRORS * point.score.stderr > curve.chance
                for point in curve.points]
    num_last = len(list(itertools.takewhile(bool, reversed(is_above))))
    if not num_last:
        return None, "not above chance" if not any(is_above) else "not above chance at the end"
    words = "at the last checkpoint only" if num_last == 1 < len(is_above) else ""
    return curve.points[-num_last].step, words


def _read_point(place: str, row: Mapping[str, Any],
                tokens_per_step: int) -> tuple[str, str, str, Point]:
    """A row of a table."""
    for name in ("step", "task", "metric", "value"):
        if row.get(name) in (None, ""):
            raise UserError(place, f"has no {name}", "name a table with the columns step, task, "
                            "metric and value")
    numbers: dict[str, float | None] = {}
    for name in ("step", *NUMBERS):
        given = row.get(name)
        try:
            numbers[name] = None if given in (None, "") else float(given)
        except (TypeError, ValueError):
            numbers[name] = math.nan
        if numbers[name] is not None and not math.isfinite(numbers[name]):
            raise UserError(place, f"{name} is {given!r}, which is no finite number",
                            "correct this row, or remove it")
    step, count = int(numbers["step"]), numbers["items"] or numbers["n"]
    tokens = numbers["tokens"] if numbers["tokens"] is not None or not tokens_per_step else (
        step * tokens_per_step)
    series = [str(row["series"])] if row.get("series") else []
    series += [str(value) for name, value in row.items()
               if name not in COLUMNS and value not in (None, "")]
    return ", ".join(series), str(row["task"]), str(row["metric"]), Point(
        step, Score(numbers["value"], numbers["stderr"], None if count is None else int(count),
                    numbers["chance"]), None if tokens is None else int(tokens))


def _stderr(metric: str, score: Score) -> float | None:
    """The score's standard error, or that of a share of right answers."""
    if score.stderr is not None or not score.items or score.items < 2:
        return score.stderr
    if not IS_HIGHER_BETTER.get(metric, False) or not 0 <= score.value <= 1:
        return None
    return math.sqrt(score.value * (1 - score.value) / (score.items - 1))


def _interval(score: Score, is_share: bool) -> tuple[float, float] | None:
    value, stderr = score.value, score.stderr
    if is_share and 0 <= value <= 1:
        if stderr:
            return wilson_interval(value, max(value * (1 - value) / stderr**2, 1.0))
        return wilson_interval(value, score.items) if score.items else None
    return None if stderr is None else (value - Z_95 * stderr, value + Z_95 * stderr)
