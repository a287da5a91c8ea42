"""The figure of a sweep: a metric over the values of one field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from eval.statistics import Z_95


def draw(path: Path, groups: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draws each setting's mean, with its 95 % interval where there is one.

    Args:
        groups: of `scripts.sweep.table.average_seeds`.

    Raises:
        UserError: matplotlib is missing, or not just one field with numbers as values is swept.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"--figure={str(path)!r}", "needs matplotlib",
                        "run pip install -e '.[report]'") from None
    fields = {field for group in groups for field in group["settings"] if field[-5:] != ".seed"}
    try:
        [field] = fields
        points = sorted((float(group["settings"][field]), group["mean"], group["stderr"] or 0.0)
                        for group in groups)
    except ValueError:
        raise UserError(f"--figure={str(path)!r}", "needs one field with numbers as values, and "
                        f"the sweep has {', '.join(sorted(fields)) or 'none'}",
                        "sweep one field, or leave the figure out") from None
    values, means, stderrs = zip(*points)
    figure = Figure(figsize=(6, 4), layout="constrained")
    chart = figure.subplots()
    chart.errorbar(values, means, [Z_95 * stderr for stderr in stderrs], marker="o", capsize=3)
    if min(values) > 0 and max(values) >= 10 * min(values):
        chart.set_xscale("log")
    chart.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    chart.minorticks_off()
    chart.set_xlabel(field)
    chart.set_ylabel(metric)
    chart.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
