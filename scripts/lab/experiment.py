"""What the experiments of `scripts.lab.alignment` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.rl.exact import Task, measure
from scripts.bench.frontier import Plan, World, place
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_results import Row, estimate
from scripts.bench.frontier_train import Recipe

PPO = PolicyRecipe("ppo", num_iterations=60, batch_size=128, learning_rate=2e-3)
BASE = Plan(task=Task(P=4, V=6, L=4), num_pairs=4000, reference=Recipe(200, 128, 5e-3),
            dpo=Recipe(150, 64, 2e-3), reward=Recipe(200, 64, 3e-3), policies=(PPO,))


class Experiment(NamedTuple):
    """An experiment.

    Attributes:
        plan: a named tuple of what decides its results; `base` is the `Plan` of the task and of
            how models are trained.
        list_rows: of a plan, a world and a seed: functions that make the rows, by name.
        columns: heading of each number in the table, by its name in a row.
        draw: draws the figure, of a path, the plan and the rows of each seed.
    """

    plan: Any
    list_rows: Callable[[Any, World, int], Mapping[str, Callable[[], Row]]]
    columns: Mapping[str, str]
    draw: Callable[[Path, Any, Sequence[Mapping[str, Row]]], None]


def format_table(columns: Mapping[str, str],
                 summary: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table of means over seeds, with half the width of their intervals."""
    lines = [f"| | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in summary.items():
        cells = [_format(row[number]) if number in row else "" for number in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(number: Mapping[str, Any]) -> str:
    mean, high = number["mean"], number["high"]
    return f"{mean:.3f}" if high is None else f"{mean:.3f} ± {high - mean:.3f}"


def measure_both(name: str, logp_PA: np.ndarray, world: World, proxy_PA: np.ndarray) -> Row:
    """As `place`, and the expected proxy reward."""
    return place(name, logp_PA, world) | {
        "proxy": measure(logp_PA, world.ref_PA, proxy_PA).reward}


def draw_series(chart: Any, x: Sequence[float], rows: Sequence[Sequence[Row]], number: str,
                **style: Any) -> None:
    """A line of means over seeds, with their intervals as bars.

    Args:
        rows: of each seed one for each x.
    """
    found = [estimate([row[number] for row in at_x]) for at_x in zip(*rows)]
    mean = [each["mean"] for each in found]
    half = [0.0 if each["high"] is None else each["high"] - each["mean"] for each in found]
    chart.errorbar(x, mean, half, capsize=3, markersize=4, **style)


def finish_chart(chart: Any, x_label: str, y_label: str, title: str = "") -> None:
    """Labels of a chart, its grid and its legend."""
    chart.set_xlabel(x_label)
    chart.set_ylabel(y_label)
    chart.set_title(title, fontsize="medium")
    chart.grid(alpha=0.3)
    chart.legend(fontsize="small")
