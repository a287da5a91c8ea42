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
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.special import stdtrit

from align.rl.exact import (
    Pairs,
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
from model.families.registry import Params, abstract_params, init
from scripts.bench.frontier_page import draw, format_table
from scripts.bench.frontier_policy import PolicyRecipe, Target, train_policy
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
    return World(reference, ref_PA, reward_PA,
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
    batches = draw_batches(plan.num_pairs, plan.reward, np.random.default_rng([seed, 2]))
    params = fit_reward(world.reference, gather(world.pairs, batches), jax.random.key(seed),
                        task=plan.task, config=plan.config, recipe=plan.reward)
    learned_PA = answer_rewards(params, plan.task, config=with_scalar_head(plan.config),
                                execution=EXECUTION)
    return normalise(learned_PA, world.ref_PA)


def list_policies(plan: Plan, world: World, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """All policies to measure by name: functions that train one, and give logp_PA."""
    def train_pairs(beta: float) -> np.ndarray:
        batches = draw_batches(plan.num_pairs, plan.dpo, np.random.default_rng([seed, 3]))
        return score(train_dpo(
            world.reference, jnp.float32(world.ref_PA), gather(world.pairs, batches),
            jnp.float32(beta), task=plan.task, config=plan.config, recipe=plan.dpo))

    def train(recipe: PolicyRecipe, beta: float, reward: Callable[[], np.ndarray]) -> np.ndarray:
        target = Target(world.reference, jnp.float32(reward()), jnp.float32(beta))
        return score(train_policy(target, jax.random.key(seed), task=plan.task,
                                  config=plan.config, recipe=recipe)[0])

    def best(reward: Callable[[], np.ndarray], beta: float) -> np.ndarray:
        return optimum(world.ref_PA, reward(), beta)

    score = partial(answer_logps, task=plan.task, config=plan.config, execution=EXECUTION)
    learned = cache(partial(learn_reward, plan, world, seed))

    def true():
        return world.reward_PA

    made = {f"optimum, beta {beta:g}": partial(best, true, beta) for beta in plan.policy_betas}
    made |= {f"best of {num}": partial(best_of_n, world.ref_PA, world.reward_PA, num)
             for num in plan.nums}
    made |= {f"DPO, beta {beta:g}": partial(train_pairs, beta) for beta in plan.dpo_betas}
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
    described = json.loads(json.dumps(plan._asdict(), default=dataclasses.asdict))
    result: dict[str, Any] = {"plan": described, "policies": {}}
    if path.exists():
        result = read_json(path)
        if result["plan"] != described:
            raise UserError(str(path), "is a result of other settings",
                            "name another folder with --out")
    else:
        write_json(path, result)
    world = make_world(plan, seed, folder / f"reference_{seed}.npz")
    for name, make in list_policies(plan, world, seed).items():
        if name in result["policies"]:
            continue
        began = time.monotonic()
        result["policies"][name] = row = place(name, make(), world)
        write_json(path, result)
        log(f"seed {seed}, {name}: reward {row['reward']:.3f}, KL {row['kl']:.3f}, "
            f"{100 * row['share']:.1f} % of the frontier, "
            f"{format_secs(time.monotonic() - began)}")
    return result | {"frontier": frontier(world.ref_PA, world.reward_PA, CURVE)}


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
    results = [run_seed(plan, seed, folder) for seed in range(given.seeds)]
    summary = summarise(results)
    table = format_table(summary)
    (folder / "frontier.md").write_text(table)
    print(table, end="", flush=True)
    if given.figure:
        draw(Path(given.figure), [result["frontier"] for result in results],
             [result["policies"] for result in results])
    return {"seeds": given.seeds, "task": dataclasses.asdict(plan.task), "policies": summary}


if __name__ == "__main__":
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_string("figure", "", "File of a figure of reward against divergence.")
    entry.run(main)
