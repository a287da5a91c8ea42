"""The table, the sentences and the figure of `scripts.lab.overfitting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.progress import format_count
from scripts.bench.frontier_page import save_figure
from scripts.bench.frontier_results import Row, estimate
from scripts.lab.experiment import finish_chart
from train.scaling.figures import load_matplotlib

COLUMNS = {"epochs": "epochs", "best_epoch": "epoch of the smallest held-out loss",
           "best": "smallest held-out", "heldout": "last held-out", "rise": "rise",
           "train": "last train", "gap": "gap at the end"}
RISE_NATS = 0.02    # of the held-out loss, from which on a run is said to overfit


def values_of(rows: Sequence[Mapping[str, Row]], name: str) -> list[int]:
    """The different values of a number of the rows, in ascending order."""
    return sorted({row[name] for row in rows[0].values()})


def choose(rows: Sequence[Mapping[str, Row]], width: int, unique: int) -> list[Row]:
    """The row of each seed of one model and one amount of data."""
    return [row for seed in rows for row in seed.values()
            if row["width"] == width and row["unique"] == unique]


def describe_turns(rows: Sequence[Mapping[str, Row]]) -> list[str]:
    """A sentence for each amount of data: where the held-out loss of each model turns."""
    lines = []
    for unique in values_of(rows, "unique"):
        turns = []
        for width in values_of(rows, "width"):
            own = choose(rows, width, unique)
            epoch, rise, gap = (estimate([row[name] for row in own])["mean"]
                                for name in ("best_epoch", "rise", "gap"))
            turns.append(f"width {width} " + (
                f"turns after {epoch:.3g} and rises by {rise:.2f} nats" if rise > RISE_NATS
                else "does not turn") + f" (gap at the end {gap:.2f})")
        epochs = own[0]["epochs"]
        lines.append(f"{format_count(unique)} unique tokens, read {epochs:g} times: "
                     + "; ".join(turns))
    return lines


def draw(path: Path, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws losses over epochs, a chart an amount of data, and over tokens, a chart a model.

    Raises:
        UserError: matplotlib is missing.
    """
    widths, amounts = values_of(rows, "width"), values_of(rows, "unique")
    num_charts = max(len(widths), len(amounts))
    figure = load_matplotlib()(figsize=(3.4 * num_charts, 6.4), layout="constrained")
    charts = figure.subplots(2, num_charts, sharey=True, squeeze=False)
    for chart, unique in zip(charts[0], amounts):
        for place, width in enumerate(widths):
            _draw_losses(chart, choose(rows, width, unique), f"C{place}", f"width {width}", unique)
        _finish(chart, "epochs", f"{format_count(unique)} unique tokens")
    for chart, width in zip(charts[1], widths):
        for place, unique in enumerate(amounts):
            _draw_losses(chart, choose(rows, width, unique), f"C{place + 4}",
                         f"{format_count(unique)} unique", 1)
        _finish(chart, "tokens trained on", f"width {width}")
    for row, used in zip(charts, (amounts, widths)):
        for chart in row[len(used):]:
            chart.set_axis_off()
    save_figure(figure, path)


def _draw_losses(chart: Any, rows: Sequence[Row], colour: str, label: str, unit: float) -> None:
    """Means over seeds: the held-out loss as a line with its smallest value, the train loss dotted.

    Args:
        unit: tokens of one step of the axis.
    """
    tokens_R, train_R, heldout_R = np.mean([row["curve"] for row in rows], axis=0).T
    chart.plot(tokens_R / unit, heldout_R, color=colour, label=label)
    chart.plot(tokens_R / unit, train_R, ":", color=colour)
    best = int(np.argmin(heldout_R))
    chart.plot(tokens_R[best] / unit, heldout_R[best], "D", color=colour, markersize=5)


def _finish(chart: Any, x_label: str, title: str) -> None:
    chart.set_xscale("log")
    finish_chart(chart, x_label, "loss, nats per token", title)
