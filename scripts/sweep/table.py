"""The table of a sweep: a line per setting, seeds averaged, the best one first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from scripts.sweep.points import short_names


def average_seeds(rows: Sequence[Mapping[str, Any]], metric: str, *,
                  lowest: bool) -> list[dict[str, Any]]:
    """Averages finished points that differ only in fields named `seed`.

    Args:
        metric: of the last stage's result; dots select nested values, e.g. ``mc_acc.sft``.
        lowest: whether the lowest mean comes first.

    Returns:
        Per group its settings, `mean`, `std` (of the sample; 0 for one point) and `num` points.

    Raises:
        UserError: the points have no such metric.
    """
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["status"] == "finished":
            key = tuple((field, value) for field, value in row["settings"].items()
                        if field.rpartition(".")[2] != "seed")
            groups.setdefault(key, []).append(_metric(row["metrics"], metric))
    averaged = [{"settings": dict(key), "mean": statistics.fmean(values), "num": len(values),
                 "std": statistics.stdev(values) if len(values) > 1 else 0.0}
                for key, values in groups.items()]
    sign = 1 if lowest else -1
    return sorted(averaged, key=lambda group: (math.isnan(group["mean"]), sign * group["mean"]))


def show_table(rows: Sequence[Mapping[str, Any]], averaged: Sequence[Mapping[str, Any]],
               metric: str) -> str:
    """Formats the table, and below it a line for each failed point."""
    fields = [field for field in averaged[0]["settings"]] if averaged else []
    names = short_names(fields)
    cells = [[names[field] for field in fields] + [metric, "points"]]
    for group in averaged:
        spread = f" ± {group['std']:.4f}" if group["num"] > 1 else ""
        cells.append([group["settings"][field] for field in fields]
                     + [f"{group['mean']:.4f}{spread}", str(group["num"])])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in cells]
    lines += [f"failed: {row['point']}: {row['error']}" for row in rows
              if row["status"] == "failed"]
    missing = sum(row["status"] == "missing" for row in rows)
    return "\n".join(lines + ([f"not run yet: {missing}"] if missing else []))


def _metric(result: Any, path: str) -> float:
    for name in path.split("."):
        if not isinstance(result, Mapping) or name not in result:
            known = ", ".join(sorted(result)) if isinstance(result, Mapping) else "nothing"
            raise UserError(f"--metric={path}", f"is no result of the last stage ({known} are)",
                            "name one of these")
        result = result[name]
    if not isinstance(result, int | float):
        raise UserError(f"--metric={path}", "is no number", "name a number within it")
    return float(result)
