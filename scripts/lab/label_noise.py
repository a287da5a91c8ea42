"""Losses on pairs of which a share is swapped.

The labels come from the model of Bradley and Terry, and a share of them is then swapped. Losses:
DPO; cDPO and robust DPO, which are given that share (arXiv 2403.00409); IPO, whose loss is bounded
away from sure preferences (arXiv 2310.12036).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.rl.exact import Pairs
from scripts.bench.frontier import Plan, World, place, prefer
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import Row
from scripts.bench.frontier_train import list_answers
from scripts.lab.experiment import BASE, Experiment, draw_series, finish_chart

NAMES = {"dpo": "DPO", "cdpo": "cDPO", "robust": "robust DPO", "ipo_sum": "IPO"}
KNOWS_RATE = ("cdpo", "robust")


class NoisePlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained.
        rates: shares of labels that are swapped.
        losses: of `align.losses.preference`.
        beta: of all losses.
    """

    base: Plan = BASE
    rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)
    losses: tuple[str, ...] = tuple(NAMES)
    beta: float = 0.3


def swap(pairs: Pairs, rate: float, rng: np.random.Generator) -> Pairs:
    """The pairs with a share of their labels swapped; the same ones at a higher rate, and more."""
    is_swapped_B = rng.random(len(pairs.prompt_B)) < rate
    return Pairs(pairs.prompt_B, np.where(is_swapped_B, pairs.rejected_B, pairs.chosen_B),
                 np.where(is_swapped_B, pairs.chosen_B, pairs.rejected_B))


def row_name(loss: str, rate: float) -> str:
    """The name of a row."""
    return f"{NAMES[loss]}, {100 * rate:g} % swapped"


def list_rows(plan: NoisePlan, world: World, seed: int) -> dict[str, Any]:
    """A policy for each loss and share; see `Experiment`."""
    answers = list_answers(plan.base.task, world.ref_PA)

    def train(loss: str, rate: float) -> Row:
        swapped = swap(world.pairs, rate, np.random.default_rng([seed, 4]))
        strengths = {"beta": plan.beta, "label_smoothing": rate if loss in KNOWS_RATE else 0.0}
        logp_PA = prefer(plan.base, world._replace(pairs=swapped), answers, seed, loss=loss,
                         strengths=strengths)
        return place(row_name(loss, rate), logp_PA, world)

    # Without a swapped label these two are DPO.
    return {row_name(loss, rate): partial(train, loss, rate) for loss in plan.losses
            for rate in plan.rates if rate or loss not in KNOWS_RATE}


def draw(path: Path, plan: NoisePlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws the share of the frontier, and the divergence, against the share of swapped labels."""
    figure, charts = open_figure(path, 2)
    for chart, number, label in zip(charts, ("share", "kl"),
                                    ("share of the frontier", "KL from the reference, nats")):
        for loss in plan.losses:
            rates = [rate for rate in plan.rates if row_name(loss, rate) in rows[0]]
            series = [[seed[row_name(loss, rate)] for rate in rates] for seed in rows]
            draw_series(chart, rates, series, number, label=NAMES[loss], marker="o")
        finish_chart(chart, "share of labels that are swapped", label)
    save_figure(figure, path)


EXPERIMENT = Experiment(NoisePlan(), list_rows, {"reward": "gold reward", "kl": "KL, nats",
                                                 "share": "share of the frontier"}, draw)
