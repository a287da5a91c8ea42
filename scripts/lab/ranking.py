"""Reward models fitted to rankings of K answers, at equal numbers of ranked answers.

The rankings come from the model of Plackett and Luce, which for two answers is that of Bradley and
Terry. A model learns from them as all K (K - 1) / 2 pairs, a prompt being one element of a batch
(InstructGPT, arXiv 2203.02155, equation 1), or as successive choices (Plackett and Luce). Whatever
K is, the same number of answers is ranked, and a batch has the same number of answers, so that
training costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.rl.exact import draw_rankings, optimum
from scripts.bench.frontier import Plan, World, fit_rankings, place
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import Row
from scripts.lab.experiment import BASE, Experiment, draw_series, finish_chart

NAMES = {"bradley_terry": "all pairs", "plackett_luce": "Plackett-Luce"}


class RankingPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained; a batch has the answers of as many pairs.
        budgets: numbers of ranked answers.
        sizes: K, answers of a ranking.
        beta: of the optimum under the learned reward.
    """

    base: Plan = BASE
    budgets: tuple[int, ...] = (720, 3600)
    sizes: tuple[int, ...] = (2, 4, 9)
    beta: float = 0.3


def row_name(loss: str, size: int, budget: int) -> str:
    """The name of a row."""
    return f"K = {size}, {NAMES[loss]}, {budget:,} answers"


def pair_accuracy(ref_PA: np.ndarray, reward_PA: np.ndarray, learned_PA: np.ndarray) -> float:
    """Share of pairs of the reference's answers that two rewards order alike, a tie of the learned
    one being wrong; among pairs that the true reward orders, and a mean over prompts."""
    shares = []
    for p_A, reward_A, learned_A in zip(np.exp(ref_PA), reward_PA, learned_PA):
        is_better_AA = reward_A[:, None] > reward_A[None]
        is_right_AA = is_better_AA & (learned_A[:, None] > learned_A[None])
        shares.append(p_A @ (is_right_AA @ p_A) / (p_A @ (is_better_AA @ p_A)))
    return float(np.mean(shares))


def list_rows(plan: RankingPlan, world: World, seed: int) -> dict[str, Any]:
    """A reward model for each budget, K and loss; see `Experiment`."""
    def fit(loss: str, size: int, budget: int) -> Row:
        rankings = draw_rankings(world.ref_PA, world.reward_PA, budget // size, size,
                                 np.random.default_rng([seed, 5]))
        reward = plan.base.reward
        recipe = reward._replace(batch_size=2 * reward.batch_size // size)
        learned_PA = fit_rankings(plan.base._replace(reward=recipe), world, rankings, seed, loss)
        best_PA = optimum(world.ref_PA, learned_PA, plan.beta)
        # Both rewards have mean 0 and variance 1 under the reference.
        products_PA = np.exp(world.ref_PA) * world.reward_PA * learned_PA
        return {"accuracy": pair_accuracy(world.ref_PA, world.reward_PA, learned_PA),
                "correlation": float(np.sum(products_PA, axis=1).mean()),
                **place(row_name(loss, size, budget), best_PA, world)}

    return {row_name(loss, size, budget): partial(fit, loss, size, budget)
            for budget in plan.budgets for size in plan.sizes for loss in losses(size)}


def losses(size: int) -> list[str]:
    """The losses that differ on rankings of this size."""
    return list(NAMES) if size > 2 else ["bradley_terry"]


def draw(path: Path, plan: RankingPlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws the accuracy, and the gold reward of the optimum, against K."""
    figure, charts = open_figure(path, 2)
    for chart, number, label in zip(charts, ("accuracy", "reward"), (
            "accuracy on pairs", f"gold reward of the optimum, beta {plan.beta:g}")):
        for color, budget in enumerate(plan.budgets):
            for loss, line in zip(NAMES, ("-", "--")):
                series = [[seed[row_name(losses(size)[0] if size == 2 else loss, size, budget)]
                           for size in plan.sizes] for seed in rows]
                draw_series(chart, plan.sizes, series, number, marker="o", linestyle=line,
                            color=f"C{color}", label=f"{NAMES[loss]}, {budget:,} answers")
        chart.set_xticks(plan.sizes)
        finish_chart(chart, "K, answers of a ranking", label)
    save_figure(figure, path)


EXPERIMENT = Experiment(RankingPlan(), list_rows, {
    "accuracy": "accuracy", "correlation": "correlation", "reward": "gold reward", "kl": "KL, nats",
    "share": "share of the frontier"}, draw)
