"""What the experiments of `scripts.lab` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.rl.exact import Task, measure
from scripts.bench.frontier import Plan, World, place
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_results import Row, add_rows, estimate, open_results
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
        cells = [format_estimate(row[number]) if number in row else "" for number in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def format_estimate(number: Mapping[str, Any], digits: int = 3) -> str:
    """A mean over seeds with half the width of its interval, of one seed without it."""
    mean, high = number["mean"], number["high"]
    half = "" if high is None else f" ± {high - mean:,.{digits}f}"
    return f"{mean:,.{digits}f}{half}"


def run_seeds(plan: Any, list_rows: Callable[[int], Mapping[str, Callable[[], Row]]], seeds: int,
              folder: Path) -> list[Mapping[str, Row]]:
    """The rows of each seed, from 0 on; what the folder holds of the same plan is not made again.

    Args:
        plan: a named tuple of what decides the results.
        list_rows: of a seed: functions that make its rows, by name.

    Raises:
        UserError: the folder holds results of another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(seeds):
        path = folder / f"seed_{seed}.json"
        result = open_results(path, plan)
        add_rows(path, result, list_rows(seed))
        found.append(result["rows"])
    return found


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
