"""The table and the figure of `scripts.bench.frontier`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.rl.exact import Point
from core.errors import UserError

MARKERS = "osD^vP*X<>"


def format_table(summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table: a line for each policy, means over seeds and the interval of the share."""
    lines = ["| policy | reward | KL, nats | frontier | share of it, % | 95 % interval |",
             "|---|---|---|---|---|---|"]
    for name, row in summary.items():
        numbers = " | ".join(f"{row[number]['mean']:.3f}" for number in ("reward", "kl",
                                                                         "frontier"))
        share = row["share"]
        interval = ("" if share["low"] is None
                    else f"{100 * share['low']:.1f} to {100 * share['high']:.1f}")
        lines.append(f"| {name} | {numbers} | {100 * share['mean']:.1f} | {interval} |")
    return "\n".join(lines) + "\n"


def open_figure(path: Path, num_charts: int = 1) -> tuple[Any, Any]:
    """A figure of matplotlib, and its chart, or its charts side by side.

    Args:
        path: of its file, for the message.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"figure {str(path)!r}", "needs matplotlib",
                        "run pip install -e '.[report]'") from None
    figure = Figure(figsize=(3 + 4 * num_charts, 5 if num_charts == 1 else 4),
                    layout="constrained")
    return figure, figure.subplots(1, num_charts)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure's file, and its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw(path: Path, curves: Sequence[Sequence[Point]],
         policies: Sequence[Mapping[str, Mapping[str, float]]]) -> None:
    """Draws reward against divergence: the frontier of each seed, and its policies.

    Args:
        curves: points of each seed's frontier.
        policies: of each seed by name; those that differ in beta, or n, share a marker.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, chart = open_figure(path)
    for number, curve in enumerate(curves):
        chart.plot([point.kl for point in curve], [point.reward for point in curve], color="0.6",
                   linewidth=1, label=None if number else "frontier")
    methods = dict.fromkeys(_method(name) for name in policies[0])
    for method, marker in zip(methods, itertools.cycle(MARKERS)):
        points = [row for seed in policies for name, row in seed.items() if _method(name) == method]
        chart.plot([row["kl"] for row in points], [row["reward"] for row in points], marker,
                   markersize=5, alpha=0.8, label=method)
    chart.set_xlim(0, 1.1 * max(row["kl"] for seed in policies for row in seed.values()))
    chart.set_ylim(bottom=0)
    chart.set_xlabel("KL from the reference, nats")
    chart.set_ylabel("expected reward")
    chart.grid(alpha=0.3)
    chart.legend()
    save_figure(figure, path)


def _method(name: str) -> str:
    """The name without its number."""
    return name.rpartition(", beta ")[0] or name.rpartition(" ")[0] + " n"
