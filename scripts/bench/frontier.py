"""Benchmark of alignment against the exact frontier of reward and divergence.

    python -m scripts.bench.frontier --seeds=3 --out=runs/frontier [--figure=frontier.png]

On a task whose answers can all be enumerated (`align.rl.exact`), a small decoder is fitted to a
random Markov source: the reference. DPO learns from preference pairs, PPO, GRPO and RLOO from the
rewards of answers that they sample, PPO also from a reward model that is fitted to the same pairs;
the best of n answers has an exact law. Of each policy the expected reward and the divergence from
the reference are sums over all answers, and its share is the reward over the largest one that any
policy has at that divergence; the reference's reward is 0. A policy above the frontier ends the
benchmark with an error.

Every seed draws a source, a reward, pairs and weights of its own; intervals are Student's over
seeds. A run that was stopped goes on with the policies that its folder lacks.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from align.rl.exact import (
    Pairs,
    Rankings,
    Task,
    answer_logps,
    answer_rewards,
    best_of_n,
    draw_answers,
    draw_pairs,
    draw_reward,
    draw_source,
    frontier,
    frontier_reward,
    measure,
    normalise,
    optimum,
)
from align.scalar import with_scalar_head
from core import entry
from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import Params, abstract_params, init
from scripts.bench.frontier_page import draw, format_table
from scripts.bench.frontier_policy import PolicyRecipe, Target, train_policy
from scripts.bench.frontier_results import Row, add_rows, open_results, summarise
from scripts.bench.frontier_train import (
    EXECUTION,
    Answers,
    Recipe,
    draw_batches,
    fit_reference,
    fit_reward,
    gather,
    list_answers,
    train_on_pairs,
)

TOLERANCE = 1e-6    # of rewards, whose standard deviation under the reference is 1
CURVE = np.geomspace(0.1, 20, 60)   # betas of the frontier in the figure


class Plan(NamedTuple):
    """What is trained, and how.

    Attributes:
        task: sizes of the task.
        num_pairs: preferences that DPO and the reward model learn from.
        reference, dpo, reward: how these models are trained.
        policies: how PPO, GRPO and RLOO are trained; the first also on the learned reward.
        dpo_betas, policy_betas: strengths of the KL penalty.
        nums: answers of which the best is taken.
    """

    task: Task = Task()
    num_pairs: int = 20_000
    reference: Recipe = Recipe(400, 256, 5e-3)
    dpo: Recipe = Recipe(400, 128, 2e-3)
    reward: Recipe = Recipe(600, 128, 5e-3)
    policies: tuple[PolicyRecipe, ...] = (PolicyRecipe("ppo"), PolicyRecipe("grpo"),
                                          PolicyRecipe("rloo"))
    dpo_betas: tuple[float, ...] = (1.0, 0.3, 0.1)
    policy_betas: tuple[float, ...] = (1.0, 0.3)
    nums: tuple[int, ...] = (2, 4, 16, 64)

    @property
    def config(self) -> ModelConfig:
        """The architecture of all models."""
        return ModelConfig(V=self.task.V, D=32, N=2, H=4, G=4, K=8, F=64)


class World(NamedTuple):
    """What one seed draws.

    Attributes:
        source_PA: log-probabilities of the text that the reference is fitted to.
        reference: the fitted model's parameters.
        ref_PA: its log-probabilities of all answers.
        reward_PA: the true rewards.
        pairs: preferences.
    """

    source_PA: np.ndarray
    reference: Params
    ref_PA: np.ndarray
    reward_PA: np.ndarray
    pairs: Pairs


class AboveFrontier(ArithmeticError):
    """A policy has more reward than any policy can have at its divergence: a sum is wrong."""


def make_world(plan: Plan, seed: int, path: Path) -> World:
    """Draws a source, fits the reference to its answers, draws a reward and pairs.

    Args:
        path: of the reference, which is read where an earlier run wrote it.
    """
    task, rng = plan.task, np.random.default_rng(seed)
    source_PA = draw_source(task, rng)
    structure = jax.tree.structure(abstract_params(plan.config))
    if not path.exists():
        leaves = jax.tree.leaves(_fit(plan, seed, source_PA))
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, *leaves)
        os.replace(temporary, path)
    with np.load(path) as file:
        reference = structure.unflatten([jnp.asarray(leaf) for leaf in file.values()])
    ref_PA = answer_logps(reference, task, config=plan.config, execution=EXECUTION)
    reward_PA = draw_reward(task, ref_PA, rng)
    return World(source_PA, reference, ref_PA, reward_PA,
                 draw_pairs(ref_PA, reward_PA, plan.num_pairs, rng))


def _fit(plan: Plan, seed: int, source_PA: np.ndarray) -> Params:
    shape = plan.reference.num_steps, plan.reference.batch_size
    prompt_B = np.arange(np.prod(shape)) % plan.task.P
    answer_B = draw_answers(source_PA, prompt_B, np.random.default_rng([seed, 1]))
    return fit_reference(jax.jit(partial(init, plan.config))(jax.random.key(seed)),
                         prompt_B.reshape(shape), answer_B.reshape(shape), task=plan.task,
                         config=plan.config, recipe=plan.reference)


def learn_reward(plan: Plan, world: World, seed: int) -> np.ndarray:
    """Rewards of all answers by a model fitted to the pairs, normalised as the true ones."""
    return fit_rankings(plan, world, Rankings.of_pairs(world.pairs), seed)


def fit_rankings(plan: Plan, world: World, rankings: Rankings, seed: int,
                 loss: str = "bradley_terry") -> np.ndarray:
    """Rewards of all answers by a model fitted to rankings, normalised as the true ones."""
    batches = draw_batches(len(rankings.prompt_B), plan.reward, np.random.default_rng([seed, 2]))
    params = fit_reward(world.reference, gather(rankings, batches), jax.random.key(seed),
                        task=plan.task, config=plan.config, recipe=plan.reward, loss=loss)
    learned_PA = answer_rewards(params, plan.task, config=with_scalar_head(plan.config),
                                execution=EXECUTION)
    return normalise(learned_PA, world.ref_PA)


def prefer(plan: Plan, world: World, answers: Answers, seed: int, *, loss: str = "dpo",
           strengths: Mapping[str, float]) -> np.ndarray:
    """logp_PA of a policy trained on the pairs of a world; see `train_on_pairs`."""
    batches = draw_batches(len(world.pairs.prompt_B), plan.dpo, np.random.default_rng([seed, 3]))
    return score(plan, train_on_pairs(world.reference, answers, gather(world.pairs, batches),
                                      dict(strengths), loss=loss, config=plan.config,
                                      recipe=plan.dpo))


def reinforce(plan: Plan, world: World, reward_PA: np.ndarray, beta: float, seed: int, *,
              recipe: PolicyRecipe) -> tuple[Params, dict[str, Any]]:
    """A policy trained on these rewards; see `train_policy`."""
    target = Target(world.reference, jnp.float32(reward_PA), jnp.float32(beta),
                    jnp.float32(world.source_PA) if recipe.ptx_coef else None)
    return train_policy(target, jax.random.key(seed), task=plan.task, config=plan.config,
                        recipe=recipe)


def score(plan: Plan, params: Params) -> np.ndarray:
    """logp_PA of all answers of the task under a model."""
    return answer_logps(params, plan.task, config=plan.config, execution=EXECUTION)


def list_policies(plan: Plan, world: World, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """All policies to measure by name: functions that train one, and give logp_PA."""
    def train(recipe: PolicyRecipe, beta: float, reward: Callable[[], np.ndarray]) -> np.ndarray:
        return score(plan, reinforce(plan, world, reward(), beta, seed, recipe=recipe)[0])

    def best(reward: Callable[[], np.ndarray], beta: float) -> np.ndarray:
        return optimum(world.ref_PA, reward(), beta)

    learned = cache(partial(learn_reward, plan, world, seed))
    answers = list_answers(plan.task, world.ref_PA)

    def true():
        return world.reward_PA

    made = {f"optimum, beta {beta:g}": partial(best, true, beta) for beta in plan.policy_betas}
    made |= {f"best of {num}": partial(best_of_n, world.ref_PA, world.reward_PA, num)
             for num in plan.nums}
    made |= {f"DPO, beta {beta:g}": partial(prefer, plan, world, answers, seed,
                                            strengths={"beta": beta}) for beta in plan.dpo_betas}
    for recipe, beta in itertools.product(plan.policies, plan.policy_betas):
        made[f"{recipe.method.upper()}, beta {beta:g}"] = partial(train, recipe, beta, true)
    for beta in plan.policy_betas:
        first = plan.policies[0]
        made[f"optimum of the learned reward, beta {beta:g}"] = partial(best, learned, beta)
        made[f"{first.method.upper()}, learned reward, beta {beta:g}"] = partial(
            train, first, beta, learned)
    return made


def place(name: str, logp_PA: np.ndarray, world: World) -> dict[str, float]:
    """A policy's exact reward and divergence, the frontier's reward there, and the share of it.

    Raises:
        AboveFrontier: the reward is the larger one.
    """
    point = measure(logp_PA, world.ref_PA, world.reward_PA)
    limit = frontier_reward(world.ref_PA, world.reward_PA, point.kl)
    if not point.reward <= limit + TOLERANCE:   # nan too
        raise AboveFrontier(f"{name} has the reward {point.reward:.9f} at the divergence "
                            f"{point.kl:.9f}, where none can exceed {limit:.9f}")
    return {"reward": point.reward, "kl": point.kl, "frontier": limit,
            "share": point.reward / limit}


def run_seed(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """All policies of a seed by name, and points of its frontier; what the folder holds of the same
    plan is not computed again.

    Raises:
        UserError: the folder holds results of another plan.
    """
    path = folder / f"seed_{seed}.json"
    result = open_results(path, plan)
    world = make_world(plan, seed, folder / f"reference_{seed}.npz")

    def measured(name: str, make: Callable[[], np.ndarray]) -> Row:
        return place(name, make(), world)

    add_rows(path, result, {name: partial(measured, name, make)
                            for name, make in list_policies(plan, world, seed).items()})
    return result | {"frontier": frontier(world.ref_PA, world.reward_PA, CURVE)}


def main() -> dict[str, Any]:
    """Reads the flags, runs all seeds, prints a table."""
    given = flags.FLAGS
    if not given.out:
        raise UserError("--out", "is missing", "try --out=runs/frontier")
    folder, plan = Path(given.out), Plan()
    folder.mkdir(parents=True, exist_ok=True)
    results = [run_seed(plan, seed, folder) for seed in range(given.seeds)]
    summary = summarise(results)
    table = format_table(summary)
    (folder / "frontier.md").write_text(table)
    print(table, end="", flush=True)
    if given.figure:
        draw(Path(given.figure), [result["frontier"] for result in results],
             [result["rows"] for result in results])
    return {"seeds": given.seeds, "task": dataclasses.asdict(plan.task), "policies": summary}


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_string("figure", "", "File of a figure of reward against divergence.")
    entry.run(main)
