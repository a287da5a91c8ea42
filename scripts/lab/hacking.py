"""PPO on a proxy reward with a flaw, at several strengths of the KL penalty.

The flaw concerns the token that the reference writes least: the gold reward punishes each, and the
proxy rewards it. Among the reference's answers the two rewards agree well, as the token is rare;
a policy far away may write nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.rl.exact import Task, measure, normalise, optimum
from scripts.bench.frontier import Plan, World, reinforce, score
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_results import Row
from scripts.lab.experiment import (
    BASE,
    PPO,
    Experiment,
    draw_series,
    finish_chart,
    measure_both,
)


class HackingPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained.
        policy: how PPO is trained.
        flaw: what each rare token takes from the gold reward, and adds to the proxy.
        betas: strengths of the penalty; of 0 no optimum is listed: it is the best answers alone.
    """

    base: Plan = BASE
    policy: PolicyRecipe = PPO
    flaw: float = 1.25
    betas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)


def count_rarest(task: Task, ref_PA: np.ndarray) -> np.ndarray:
    """How often each answer has the token that the reference writes least: count_A."""
    count_AV = np.stack([np.sum(task.answers_AL == token, axis=1) for token in range(task.V)],
                        axis=1)
    return count_AV[:, np.argmin(np.einsum("PA,AV->V", np.exp(ref_PA), count_AV))].astype(float)


def list_rows(plan: HackingPlan, world: World, seed: int) -> dict[str, Any]:
    """PPO and the exact optimum on the proxy for each strength; see `Experiment`."""
    count_A = count_rarest(plan.base.task, world.ref_PA)
    gold_PA, proxy_PA = (normalise(world.reward_PA + sign * plan.flaw * count_A[None], world.ref_PA)
                         for sign in (-1, 1))
    world = world._replace(reward_PA=gold_PA)

    def measured(name: str, logp_PA: np.ndarray) -> Row:
        flaws_PA = np.broadcast_to(count_A, logp_PA.shape)
        return measure_both(name, logp_PA, world, proxy_PA) | {
            "flaws": measure(logp_PA, world.ref_PA, flaws_PA).reward}

    def train(beta: float) -> Row:
        params, _ = reinforce(plan.base, world, proxy_PA, beta, seed, recipe=plan.policy)
        return measured(f"PPO, beta {beta:g}", score(plan.base, params))

    def best(beta: float) -> Row:
        return measured(f"optimum, beta {beta:g}", optimum(world.ref_PA, proxy_PA, beta))

    return ({f"PPO, beta {beta:g}": partial(train, beta) for beta in plan.betas}
            | {f"optimum, beta {beta:g}": partial(best, beta) for beta in plan.betas if beta})


def draw(path: Path, plan: HackingPlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws both rewards, and the number of rare tokens, against the coefficient of the penalty."""
    figure, charts = open_figure(path, 2)
    for method, marker, line in (("PPO", "o", "-"), ("optimum", "", "--")):
        betas = [beta for beta in plan.betas if f"{method}, beta {beta:g}" in rows[0]]
        series = [[seed[f"{method}, beta {beta:g}"] for beta in betas] for seed in rows]
        for chart, number, label, color in ((charts[0], "reward", "gold", "tab:orange"),
                                            (charts[0], "proxy", "proxy", "tab:blue"),
                                            (charts[1], "flaws", "rare tokens", "tab:red")):
            draw_series(chart, betas, series, number, label=f"{label}, {method}", marker=marker,
                        linestyle=line, color=color)
    for chart, label in zip(charts, ("expected reward", "rare tokens of an answer")):
        positive = min(beta for beta in plan.betas if beta)
        chart.set_xscale("symlog", linthresh=positive)
        chart.set_xticks(plan.betas, [f"{beta:g}" for beta in plan.betas])
        finish_chart(chart, "coefficient of the KL penalty", label)
    save_figure(figure, path)


EXPERIMENT = Experiment(HackingPlan(), list_rows, {
    "proxy": "proxy reward", "reward": "gold reward", "kl": "KL, nats",
    "share": "share of the frontier", "flaws": "rare tokens of an answer"}, draw)
