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
seeds. A seed that is finished in the folder is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.special import stdtrit

from align.rl.exact import (
    Pairs,
    Point,
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
from core.artifacts import read_json, write_json
from core.errors import UserError
from core.progress import format_secs, log
from eval.statistics import mean_and_stderr
from model.config import ModelConfig
from model.families.registry import Params, init
from scripts.bench.frontier_page import draw, format_table
from scripts.bench.frontier_policy import PolicyRecipe, train_policy
from scripts.bench.frontier_train import (
    EXECUTION,
    Recipe,
    draw_batches,
    fit_reference,
    fit_reward,
    gather,
    train_dpo,
)

TOLERANCE = 1e-6    # of rewards, whose standard deviation under the reference is 1
CURVE = np.geomspace(0.1, 20, 60)   # betas of the frontier in the figure


class Plan(NamedTuple):
    """What is trained, and how.

    Attributes:
        task: sizes of the task.
        num_pairs: preferences that DPO and the reward model learn from.
        reference, dpo, reward: how these models are trained.
        policies: how PPO, GRPO and RLOO are trained.
        dpo_betas, policy_betas: strengths of the KL penalty.
        nums: answers of which the best is taken.
    """

    task: Task = Task()
    num_pairs: int = 20_000
    reference: Recipe = Recipe(400, 256, 5e-3)
    dpo: Recipe = Recipe(400, 128, 2e-3)
    reward: Recipe = Recipe(400, 128, 2e-3)
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
        reference: the fitted model's parameters.
        ref_PA: its log-probabilities of all answers.
        reward_PA: the true rewards.
        pairs: preferences.
    """

    reference: Params
    ref_PA: np.ndarray
    reward_PA: np.ndarray
    pairs: Pairs


class AboveFrontier(ArithmeticError):
    """A policy has more reward than any policy can have at its divergence: a sum is wrong."""


def make_world(plan: Plan, seed: int, rng: np.random.Generator) -> World:
    """Draws a source, fits the reference to its answers, draws a reward and pairs."""
    task, recipe = plan.task, plan.reference
    shape = recipe.num_steps, recipe.batch_size
    prompt_B = np.arange(np.prod(shape)) % task.P
    answer_B = draw_answers(draw_source(task, rng), prompt_B, rng)
    params = jax.jit(partial(init, plan.config))(jax.random.key(seed))
    reference = fit_reference(params, prompt_B.reshape(shape), answer_B.reshape(shape), task=task,
                              config=plan.config, recipe=recipe)
    ref_PA = answer_logps(reference, task, config=plan.config, execution=EXECUTION)
    reward_PA = draw_reward(task, ref_PA, rng)
    return World(reference, ref_PA, reward_PA,
                 draw_pairs(ref_PA, reward_PA, plan.num_pairs, rng))


def learn_reward(plan: Plan, world: World, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Rewards of all answers by a model fitted to the pairs, normalised as the true ones."""
    batches = gather(world.pairs, draw_batches(plan.num_pairs, plan.reward, rng))
    params = fit_reward(world.reference, batches, jax.random.key(seed), task=plan.task,
                        config=plan.config, recipe=plan.reward)
    learned_PA = answer_rewards(params, plan.task, config=with_scalar_head(plan.config),
                                execution=EXECUTION)
    return normalise(learned_PA, world.ref_PA)


def make_policies(plan: Plan, world: World, seed: int,
                  rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Names and log-probabilities logp_PA of all policies to measure, one after the other."""
    same: dict[str, Any] = dict(task=plan.task, config=plan.config)
    score = partial(answer_logps, task=plan.task, config=plan.config, execution=EXECUTION)
    for num in plan.nums:
        yield f"best of {num}", best_of_n(world.ref_PA, world.reward_PA, num)
    for beta in plan.dpo_betas:
        batches = gather(world.pairs, draw_batches(plan.num_pairs, plan.dpo, rng))
        yield f"DPO, beta {beta:g}", score(train_dpo(
            world.reference, jnp.float32(world.ref_PA), batches, jnp.float32(beta), **same,
            recipe=plan.dpo))

    def train(recipe: PolicyRecipe, beta: float, reward_PA: np.ndarray) -> np.ndarray:
        params, _ = train_policy(world.reference, jnp.float32(reward_PA), jnp.float32(beta),
                                 jax.random.key(seed), **same, recipe=recipe)
        return score(params)

    for recipe in plan.policies:
        for beta in plan.policy_betas:
            yield f"{recipe.method.upper()}, beta {beta:g}", train(recipe, beta, world.reward_PA)
    learned_PA = learn_reward(plan, world, seed, rng)
    for beta in plan.policy_betas:
        yield (f"learned reward, optimum, beta {beta:g}", optimum(world.ref_PA, learned_PA, beta))
        yield (f"learned reward, PPO, beta {beta:g}", train(plan.policies[0], beta, learned_PA))


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


def run_seed(plan: Plan, seed: int) -> dict[str, Any]:
    """All policies of a seed by name, and points of its frontier."""
    rng, began = np.random.default_rng(seed), time.monotonic()
    world = make_world(plan, seed, rng)
    policies = {}
    for name, logp_PA in make_policies(plan, world, seed, rng):
        policies[name] = row = place(name, logp_PA, world)
        log(f"seed {seed}, {name}: reward {row['reward']:.3f}, KL {row['kl']:.3f}, "
            f"{100 * row['share']:.1f} % of the frontier, "
            f"{format_secs(time.monotonic() - began)}")
    curve = frontier(world.ref_PA, world.reward_PA, CURVE)
    return {"policies": policies, "frontier": curve}


def read_or_run(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """A seed's result, from its file where that is of the same plan."""
    path = folder / f"seed_{seed}.json"
    described = json.loads(json.dumps(plan._asdict(), default=dataclasses.asdict))
    if path.exists():
        found = read_json(path)
        if found["plan"] == described:
            log(f"seed {seed}: read from {path}")
            return found
    result = {"plan": described} | run_seed(plan, seed)
    write_json(path, result)
    return result


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each policy the mean of each number over seeds, with Student's 95 % interval; of one seed
    there is none."""
    def estimate(values: Sequence[float]) -> dict[str, float | None]:
        mean, stderr = mean_and_stderr(values)
        if len(values) == 1:
            return {"mean": mean, "low": None, "high": None}
        half = float(stdtrit(len(values) - 1, 0.975)) * stderr
        return {"mean": mean, "low": mean - half, "high": mean + half}

    first = results[0]["policies"]
    return {name: {number: estimate([result["policies"][name][number] for result in results])
                   for number in row} for name, row in first.items()}


def main() -> dict[str, Any]:
    """Reads the flags, runs all seeds, prints a table."""
    given = flags.FLAGS
    if not given.out:
        raise UserError("--out", "is missing", "try --out=runs/frontier")
    folder, plan = Path(given.out), Plan()
    folder.mkdir(parents=True, exist_ok=True)
    results = [read_or_run(plan, seed, folder) for seed in range(given.seeds)]
    summary = summarise(results)
    table = format_table(summary)
    (folder / "frontier.md").write_text(table)
    print(table, end="", flush=True)
    if given.figure:
        curves = [[Point(*point) for point in result["frontier"]] for result in results]
        draw(Path(given.figure), curves, [result["policies"] for result in results])
    return {"seeds": given.seeds, "task": dataclasses.asdict(plan.task), "policies": summary}


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_string("figure", "", "File of a figure of reward against divergence.")
    entry.run(main)
