"""Gold reward against divergence for a proxy reward fitted to few pairs.

With d the root of the divergence in nats, arXiv 2210.10760 (equations 1 and 2) describes the gold
reward of the best of n answers as d (alpha - beta d), and that of reinforcement learning as
d (alpha - beta log d). Both are fitted here by least squares: to the exact law of the best of n,
and to the policies that PPO passes through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from align.rl.exact import best_of_n
from scripts.bench.frontier import Plan, World, learn_reward, reinforce, score
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_results import Row
from scripts.bench.frontier_train import gather
from scripts.lab.experiment import BASE, PPO, Experiment, finish_chart, measure_both

MIN_KL = 1e-4       # policies nearer to the reference say nothing about the form


class OveroptimisationPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained.
        policy: how PPO is trained.
        sizes: numbers of pairs of which a reward model is fitted.
        betas: strengths of PPO's penalty.
        nums: answers of which the best is taken.
        iterations: of PPO, after which its policy is measured.
    """

    base: Plan = BASE
    policy: PolicyRecipe = PPO
    sizes: tuple[int, ...] = (100, 400, 1600)
    betas: tuple[float, ...] = (0.0, 0.1)
    nums: tuple[int, ...] = (2, 3, 5, 8, 16, 32, 64, 128, 256, 1024, 4096)
    iterations: tuple[int, ...] = (3, 6, 9, 12, 15, 20, 25, 30, 40, 50, 60)


def fit_form(d: np.ndarray, gold: np.ndarray, is_log: bool) -> tuple[float, float]:
    """alpha and beta of gold = d (alpha - beta d), or d (alpha - beta log d), by least squares."""
    terms = np.stack([d, -d * (np.log(d) if is_log else d)], axis=1)
    alpha, beta = np.linalg.lstsq(terms, gold, rcond=None)[0]
    return float(alpha), float(beta)


def describe(curve: Sequence[Row], is_log: bool) -> Row:
    """A row of policies along a method's way: the form that fits them, where gold is largest and
    where it ends, and their `curve` of divergence, gold and proxy reward."""
    kl, gold, proxy = (np.array([point[number] for point in curve])
                       for number in ("kl", "reward", "proxy"))
    is_far = kl > MIN_KL
    alpha, beta = fit_form(np.sqrt(kl[is_far]), gold[is_far], is_log)
    best = int(np.argmax(gold))
    return {"alpha": alpha, "beta": beta, "gold_best": float(gold[best]),
            "d_best": float(np.sqrt(kl[best])), "gold_last": float(gold[-1]),
            "proxy_last": float(proxy[-1]), "d_last": float(np.sqrt(kl[-1])),
            "curve": np.stack([kl, gold, proxy], axis=1).tolist()}


def row_names(plan: OveroptimisationPlan, size: int) -> dict[str, float | None]:
    """Names of the rows of a size, and PPO's strength of each."""
    return {f"best of n, {size} pairs": None} | {
        f"PPO, beta {beta:g}, {size} pairs": beta for beta in plan.betas}


def list_rows(plan: OveroptimisationPlan, world: World, seed: int) -> dict[str, Any]:
    """Best of n, and PPO at each strength, for each number of pairs; see `Experiment`."""
    @cache
    def learn(size: int) -> np.ndarray:
        return learn_reward(plan.base, world._replace(pairs=gather(world.pairs, slice(size))), seed)

    def measured(name: str, logp_PA: np.ndarray, size: int) -> Row:
        return measure_both(name, logp_PA, world, learn(size))

    def best(name: str, size: int) -> Row:
        return describe([measured(name, best_of_n(world.ref_PA, learn(size), num), size)
                         for num in plan.nums], is_log=False)

    def train(name: str, size: int, beta: float) -> Row:
        _, seen = reinforce(plan.base, world, learn(size), beta, seed, recipe=plan.policy)
        policies = [jax.tree.map(itemgetter(number - 1), seen["policy"])
                    for number in plan.iterations]
        return describe([measured(name, score(plan.base, params), size) for params in policies],
                        is_log=True)

    return {name: partial(best, name, size) if beta is None else partial(train, name, size, beta)
            for size in plan.sizes for name, beta in row_names(plan, size).items()}


def draw(path: Path, plan: OveroptimisationPlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws gold and proxy reward against d, a chart a method: means over seeds, and the seeds."""
    methods = list(row_names(plan, plan.sizes[0]))
    figure, charts = open_figure(path, len(methods))
    for number, chart in enumerate(charts):
        for place, size in enumerate(plan.sizes):
            name = list(row_names(plan, size))[number]
            for which, seed in enumerate(rows):
                kl, gold, proxy = np.array(seed[name]["curve"]).T
                style = {"color": f"C{place}", "linewidth": 1, "alpha": 0.8}
                label = None if which else f"{size} pairs"
                chart.plot(np.sqrt(kl), gold, label=label and f"gold, {label}", **style)
                chart.plot(np.sqrt(kl), proxy, ":", label=label and f"proxy, {label}", **style)
        finish_chart(chart, "root of the KL from the reference", "expected reward",
                     methods[number].rpartition(", ")[0])
    save_figure(figure, path)


EXPERIMENT = Experiment(OveroptimisationPlan(), list_rows, {
    "alpha": "alpha", "beta": "beta", "gold_best": "largest gold", "d_best": "d there",
    "gold_last": "last gold", "proxy_last": "last proxy", "d_last": "last d"}, draw)
