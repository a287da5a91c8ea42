"""What reinforcement learning on some prompts costs on others, with and without pretraining text.

PPO is rewarded on the first half of the prompts. On the other half it sees no reward and no
penalty, as a chat model does of most of what it knows. The tax is what its cross-entropy of the
source's answers to these prompts rises by, an exact sum in nats per answer. Two remedies are
compared: a stronger KL penalty, and the loss of pretraining text in every update (PPO-ptx,
InstructGPT, arXiv 2203.02155).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scripts.bench.frontier import Plan, World, place, reinforce, score
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_policy import PolicyRecipe
from scripts.bench.frontier_results import Row, estimate
from scripts.lab.experiment import BASE, PPO, Experiment, finish_chart


class TaxPlan(NamedTuple):
    """The experiment's sizes.

    Attributes:
        base: the task and how models are trained.
        policy: how PPO is trained.
        betas: strengths of the penalty, without pretraining text.
        ptx_coefs: weights of pretraining text, at the first of the betas.
    """

    base: Plan = BASE
    policy: PolicyRecipe = PPO
    betas: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    ptx_coefs: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)

    @property
    def settings(self) -> dict[str, tuple[float, float]]:
        """Penalty and weight of pretraining text of each policy by its name."""
        first = self.betas[0]
        return ({f"beta {beta:g}": (beta, 0.0) for beta in self.betas}
                | {f"beta {first:g}, ptx {ptx:g}": (first, ptx) for ptx in self.ptx_coefs})


def tax(logp_PA: np.ndarray, world: World) -> float:
    """Rise of the cross-entropy of the source's answers, in nats per answer; a mean over prompts.

    Args:
        logp_PA: a policy's, of the prompts of `world`.
    """
    rise_PA = np.exp(world.source_PA) * (world.ref_PA - logp_PA)
    return float(np.sum(rise_PA, axis=1).mean())


def take_prompts(world: World, prompts: slice) -> World:
    """The world of some prompts."""
    return world._replace(**{name: getattr(world, name)[prompts]
                             for name in ("source_PA", "ref_PA", "reward_PA")})


def list_rows(plan: TaxPlan, world: World, seed: int) -> dict[str, Any]:
    """PPO for each penalty and each weight of pretraining text; see `Experiment`."""
    asked, others = slice(plan.base.task.P // 2), slice(plan.base.task.P // 2, None)

    def train(name: str, beta: float, ptx_coef: float) -> Row:
        params, _ = reinforce(plan.base, world, world.reward_PA[asked], beta, seed,
                              recipe=plan.policy._replace(ptx_coef=ptx_coef))
        logp_PA = score(plan.base, params)
        return place(name, logp_PA[asked], take_prompts(world, asked)) | {
            "tax": tax(logp_PA[others], take_prompts(world, others)),
            "tax_asked": tax(logp_PA[asked], take_prompts(world, asked))}

    return {name: partial(train, name, *setting) for name, setting in plan.settings.items()}


def draw(path: Path, plan: TaxPlan, rows: Sequence[Mapping[str, Row]]) -> None:
    """Draws the gold reward against the tax, for both remedies."""
    figure, charts = open_figure(path, 2)
    without = [name for name, (_, ptx) in plan.settings.items() if not ptx]
    with_text = [without[0], *(name for name, (_, ptx) in plan.settings.items() if ptx)]
    for chart, number, label in zip(charts, ("tax", "tax_asked"), (
            "prompts without reward", "rewarded prompts")):
        for names, series in ((without, "penalty"), (with_text, "pretraining text")):
            x, y = ([estimate([seed[name][each] for seed in rows])["mean"] for name in names]
                    for each in (number, "reward"))
            chart.plot(x, y, marker="o", label=series)
        finish_chart(chart, "rise of the cross-entropy, nats per answer", "gold reward", label)
    save_figure(figure, path)


EXPERIMENT = Experiment(TaxPlan(), list_rows, {
    "reward": "gold reward", "kl": "KL, nats", "share": "share of the frontier",
    "tax": "tax, prompts without reward", "tax_asked": "tax, rewarded prompts"}, draw)
