"""The table of a sweep: a line per setting, seeds averaged, the best one first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from scipy import stats

from core.errors import UserError
from core.points import point_name, short_names
from eval.statistics import Z_95

SIGNIFICANCE = 0.05


def fill_settings(rows: Sequence[Mapping[str, Any]], config: ConfigDict) -> list[dict[str, Any]]:
    """Gives all rows the fields that any of them sets, with the config's own values.

    Rows that are then equal in all settings are one run; the last one is kept.
    """
    fields = dict.fromkeys(field for row in rows for field in row["settings"])
    filled = {}
    for row in rows:
        settings = {field: row["settings"].get(field, _value(config, field)) for field in fields}
        filled.pop(tuple(settings.items()), None)
        filled[tuple(settings.items())] = dict(row) | {"settings": settings}
    return list(filled.values())


def _value(config: ConfigDict, field: str) -> str:
    """A field's value in the config, as text."""
    value: Any = config
    for name in field.split("."):
        value = value[name]
    return str(value)


def average_seeds(rows: Sequence[Mapping[str, Any]], metric: str, *,
                  lowest: bool) -> list[dict[str, Any]]:
    """Averages finished points that differ only in fields named `seed`.

    Args:
        rows: points with the same fields in their settings.
        metric: of the last stage's result; dots select nested values, e.g. ``mc_acc.sft``.
        lowest: whether the lowest mean comes first.

    Returns:
        Per group its settings, `mean`, `num` points, `std` of the sample (None for one point) and
        `stderr`: of the mean over seeds or, for one point, that of the evaluation, which a result
        ``x_stderr`` beside ``x_acc`` gives; None where nothing does.

    Raises:
        UserError: the points have no such metric.
    """
    groups: dict[tuple, list[tuple[float, float | None]]] = {}
    for row in rows:
        if row["status"] == "finished":
            key = tuple((field, value) for field, value in row["settings"].items()
                        if field.rpartition(".")[2] != "seed")
            groups.setdefault(key, []).append((_metric(row["metrics"], metric),
                                               _stderr(row["metrics"], metric)))
    averaged = []
    for key, measured in groups.items():
        values = [value for value, _ in measured]
        std = statistics.stdev(values) if len(values) > 1 else None
        stderr = measured[0][1] if std is None else std / math.sqrt(len(values))
        averaged.append({"settings": dict(key), "mean": statistics.fmean(values),
                         "num": len(values), "std": std, "stderr": stderr})
    sign = 1 if lowest else -1
    return sorted(averaged, key=lambda group: (math.isnan(group["mean"]), sign * group["mean"]))


def find_ties(averaged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The groups that cannot be told from the first one at a level of 5 %.

    Means over seeds are compared by Welch's test, others by the normal distribution with the errors
    of their evaluation. Where an error is not known, only equal means are a tie.
    """
    return [group for group in averaged[1:] if _is_tie(averaged[0], group)]


def _is_tie(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    difference, errors = abs(best["mean"] - other["mean"]), (best["stderr"], other["stderr"])
    if math.isnan(difference) or None in errors or not any(errors):
        return difference == 0
    if best["std"] is None or other["std"] is None:
        return difference < Z_95 * math.hypot(*errors)
    return bool(stats.ttest_ind_from_stats(
        *(group[name] for group in (best, other) for name in ("mean", "std", "num")),
        equal_var=False).pvalue > SIGNIFICANCE)


def show_table(rows: Sequence[Mapping[str, Any]], averaged: Sequence[Mapping[str, Any]],
               metric: str) -> str:
    """Formats the table, and below it the best setting and a line for each failed point."""
    fields = [field for field in averaged[0]["settings"]] if averaged else []
    names = short_names(fields)
    cells = [[names[field] for field in fields] + [metric, "points"]]
    cells += [[group["settings"][field] for field in fields]
              + [_format_mean(group), str(group["num"])] for group in averaged]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in cells]
    if len(averaged) > 1:
        lines += _describe_best(averaged)
    lines += [f"failed: {row['point']}: {row['error']}" for row in rows
              if row["status"] == "failed"]
    missing = sum(row["status"] == "missing" for row in rows)
    return "\n".join(lines + ([f"not run yet: {missing}"] if missing else []))


def _format_mean(group: Mapping[str, Any]) -> str:
    return f"{group['mean']:.4f}" + (
        "" if group["stderr"] is None else f" ± {group['stderr']:.4f}")


def _describe_best(averaged: Sequence[Mapping[str, Any]]) -> list[str]:
    best, ties = averaged[0], find_ties(averaged)
    if best["stderr"] is None:
        error = "one point, whose error is not known: add seeds"
    elif best["std"] is None:
        error = "± the standard error of the evaluation"
    else:
        error = f"± the standard error over {best['num']} seeds"
    lines = [f"best: {point_name(best['settings'])}: {_format_mean(best)} ({error})"]
    if ties:
        names = "; ".join(point_name(group["settings"]) for group in ties)
        lines.append(f"tied with it, as the difference is within the errors: {names}")
    return lines


def _metric(result: Any, path: str) -> float:
    for name in path.split("."):
        if not isinstance(result, Mapping) or name not in result:
            known = ", ".join(sorted(result)) if isinstance(result, Mapping) else "nothing"
            raise UserError(f"--metric={path}", f"is no result of the last stage ({known} are)",
                            "name one of these")
        result = result[name]
    if result is None:      # a number that was not finite
        return math.nan
    if not isinstance(result, int | float):
        raise UserError(f"--metric={path}", "is no number", "name a number within it")
    return float(result)


def _stderr(result: Mapping[str, Any], path: str) -> float | None:
    """The error of an evaluation: ``x_stderr`` beside ``x_acc`` or ``x``; None without one."""
    *outer, name = path.split(".")
    for part in outer:
        result = result[part]
    stems = (name, name.rpartition("_")[0])
    return next((result[f"{stem}_stderr"] for stem in stems if f"{stem}_stderr" in result), None)
