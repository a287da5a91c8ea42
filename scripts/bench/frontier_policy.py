"""On-policy training of `scripts.bench.frontier`: PPO, GRPO and RLOO on an enumerable task.

One compiled program: each iteration samples answers with the parameters that it trains, takes their
rewards from the table of all answers, and makes clipped updates. The divergence is subtracted from
the rewards, token by token.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from align.losses.policy import PolicyBatch, Settings, policy_loss
from align.rl.advantages import (
    gae,
    group_advantages,
    group_ids,
    spread,
    token_rewards,
    whiten,
)
from align.rl.exact import Task, make_rows
from align.scalar import with_scalar_head
from data.batch import Batch
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.families.registry import Params, extend, forward, make_cache
from model.heads.language import logits
from scripts.bench.frontier_train import EXECUTION, add_scalar_head, make_adamw

Trained = dict[str, Params]     # "policy", and PPO's "critic"

# A policy and its critic share no parameters: the coefficient of the value loss is a rate alone.
SETTINGS = {"ppo": Settings(vf_coef=1.0), "grpo": Settings(aggregation="grpo"),
            "rloo": Settings(ratio="answer", aggregation="grpo")}


class PolicyRecipe(NamedTuple):
    """How a policy is trained; static.

    Attributes:
        method: ppo, grpo or rloo.
        num_iterations: times that answers are sampled.
        batch_size: answers of an iteration.
        num_epochs: passes over them.
        num_minibatches: updates of a pass.
        learning_rate: at its height; it falls linearly to 0.
        group_size: answers to a prompt that GRPO and RLOO compare.
        lam: of generalised advantages.
        ptx_coef: weight of the loss of pretraining text in every update, as many rows as answers
            (arXiv 2203.02155, equation 2).
    """

    method: str
    num_iterations: int = 100
    batch_size: int = 512
    num_epochs: int = 2
    num_minibatches: int = 2
    learning_rate: float = 1e-3
    group_size: int = 8
    lam: float = 0.95
    ptx_coef: float = 0.0


class Target(NamedTuple):
    """What a policy is trained to maximise: E[r] - beta KL(pi || ref).

    Attributes:
        reference: its parameters, with which the policy begins.
        reward_PA: rewards of all answers, float32; prompts beyond its rows are not asked.
        beta: strength of the divergence, a float32 scalar.
        source_PA: log-probabilities of pretraining text, for all prompts; for `ptx_coef`.
    """

    reference: Params
    reward_PA: jax.Array
    beta: jax.Array
    source_PA: jax.Array | None = None


class Rollouts(NamedTuple):
    """Sampled answers.

    Attributes:
        rows: prompts and answers.
        known: what their updates need.
        text: rows of pretraining text; None without them.
    """

    rows: Batch
    known: PolicyBatch
    text: Batch | None


def sample_answers(params: Params, prompt_B: jax.Array, key: jax.Array, *, task: Task,
                   config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Answers drawn token by token, and the log-probability of each token: answer_BL, logp_BL."""
    one_B = jnp.ones_like(prompt_B)

    def draw(carry, key):
        token_B, cache = carry
        x_BLD, cache = extend(params, token_B[:, None], one_B, cache, config=config,
                              execution=EXECUTION)
        cache = cache.advance(token_B[:, None], one_B)
        all_BV = jax.nn.log_softmax(logits(params, x_BLD, config=config,
                                           execution=EXECUTION)[:, 0])
        token_B = jax.random.categorical(key, all_BV).astype(jnp.int32)
        logp_B = jnp.take_along_axis(all_BV, token_B[:, None], axis=1)[:, 0]
        return (token_B, cache), (token_B, logp_B)

    cache = make_cache(config, EXECUTION, len(prompt_B), task.L, piece=1)
    keys = jax.random.split(key, task.L)
    _, (answer_LB, logp_LB) = jax.lax.scan(draw, (prompt_B, cache), keys)
    return answer_LB.T, logp_LB.T


def values(critic: Params, rows: Batch, *, config: ModelConfig) -> jax.Array:
    """The critic's value before each token: value_BL."""
    x_BLD = forward(critic, *rows.inputs, config=with_scalar_head(config), execution=EXECUTION)
    value_BLY = jnp.einsum("BLD,DY->BLY", x_BLD, critic["score_DY"])
    return (value_BLY + critic["score_bias_Y"][None, None])[..., 0]


def roll_out(trained: Trained, target: Target, key: jax.Array, *, task: Task, config: ModelConfig,
             recipe: PolicyRecipe) -> tuple[Rollouts, dict[str, jax.Array]]:
    """Samples answers and computes their advantages; see `train_policy` for the statistics."""
    # The answers of a group stand next to each other.
    groups_B = jnp.arange(recipe.batch_size, dtype=jnp.int32) // recipe.group_size
    prompt_B = groups_B % len(target.reward_PA)
    answer_BL, sampled_BL = sample_answers(trained["policy"], prompt_B, key, task=task,
                                           config=config)
    rows = make_rows(prompt_B, answer_BL)
    old_BL, ref_BL = (batch_logps(params, rows, config=config, execution=EXECUTION)
                      for params in (trained["policy"], target.reference))
    place_L = task.V ** jnp.arange(task.L - 1, -1, -1)
    reward_B = target.reward_PA[prompt_B, jnp.sum(answer_BL * place_L[None], axis=1)]
    mask_BL = jnp.ones_like(old_BL)
    reward_BL = token_rewards(reward_B, old_BL, ref_BL, mask_BL, target.beta)
    if recipe.method == "ppo":
        value_BL = values(trained["critic"], rows, config=config)
        raw_BL, return_BL = gae(reward_BL, value_BL, mask_BL, gamma=1.0, lam=recipe.lam)
        known = PolicyBatch(mask_BL, old_BL, whiten(raw_BL, mask_BL), None, return_BL, value_BL)
    else:
        num_groups = recipe.batch_size // recipe.group_size
        found = group_advantages(jnp.sum(reward_BL, axis=1),
                                 group_ids(num_groups, recipe.group_size), mask_BL[:, 0],
                                 num_groups=num_groups, baseline=recipe.method)
        known = PolicyBatch(mask_BL, old_BL, spread(found.advantages_B, mask_BL))
    seen = {"reward": jnp.mean(reward_B), "kl": jnp.mean(jnp.sum(old_BL - ref_BL, axis=1)),
            "sampler_gap": jnp.max(jnp.abs(sampled_BL - old_BL))}
    text = draw_text(target.source_PA, key, task=task, recipe=recipe) if recipe.ptx_coef else None
    return Rollouts(rows, known, text), seen


def draw_text(source_PA: jax.Array, key: jax.Array, *, task: Task, recipe: PolicyRecipe) -> Batch:
    """Rows of pretraining text: a prompt, each being as likely, and an answer of the source."""
    prompt_B = jnp.arange(recipe.batch_size, dtype=jnp.int32) % task.P
    answer_B = jax.random.categorical(jax.random.fold_in(key, 1), source_PA[prompt_B])
    return make_rows(prompt_B, jnp.asarray(task.answers_AL)[answer_B])


def update_loss(trained: Trained, rollouts: Rollouts, *, config: ModelConfig,
                recipe: PolicyRecipe) -> jax.Array:
    """The loss of an update: the policy's, PPO's critic's, and that of pretraining text."""
    logp_BL = batch_logps(trained["policy"], rollouts.rows, config=config, execution=EXECUTION)
    value_BL = (values(trained["critic"], rollouts.rows, config=config)
                if recipe.method == "ppo" else None)
    loss_sum, metrics = policy_loss(logp_BL, rollouts.known, settings=SETTINGS[recipe.method],
                                    values_BL=value_BL)
    loss = loss_sum / metrics["loss"][1]
    if rollouts.text is not None:
        text_BL = batch_logps(trained["policy"], rollouts.text, config=config, execution=EXECUTION)
        loss -= recipe.ptx_coef * jnp.mean(text_BL)
    return loss


@partial(jax.jit, static_argnames=("task", "config", "recipe"))
def train_policy(target: Target, key: jax.Array, *, task: Task, config: ModelConfig,
                 recipe: PolicyRecipe) -> tuple[Params, dict[str, Any]]:
    """Trains the reference to maximise E[r] - beta KL(pi || ref).

    Returns:
        The policy, and by name one value an iteration: `reward`, `kl` (of the samples),
        `sampler_gap` (the largest difference of a token's log-probability between the sampler,
        which reads the cache, and the forward pass that is trained), and `policy` (its parameters
        after the iteration).
    """
    num_updates = recipe.num_epochs * recipe.num_minibatches
    optimizer = make_adamw(recipe.learning_rate, recipe.num_iterations * num_updates)
    trained = {"policy": target.reference}
    if recipe.method == "ppo":
        critic = add_scalar_head(target.reference, config, jax.random.key(0))
        trained["critic"] = critic | {"score_DY": jnp.zeros_like(critic["score_DY"])}

    def update(carry, minibatch):
        trained, state = carry
        gradient = jax.grad(update_loss)(trained, minibatch, config=config, recipe=recipe)
        change, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, change), state), None

    def iterate(carry, key):
        of_sampling, *of_epochs = jax.random.split(key, 1 + recipe.num_epochs)
        rollouts, seen = roll_out(carry[0], target, of_sampling, task=task, config=config,
                                  recipe=recipe)
        order = jnp.concatenate([jax.random.permutation(each, recipe.batch_size)
                                 for each in of_epochs]).reshape(num_updates, -1)
        minibatches = jax.tree.map(lambda leaf: leaf[order], rollouts)
        carry, _ = jax.lax.scan(update, carry, minibatches)
        return carry, seen | {"policy": carry[0]["policy"]}

    keys = jax.random.split(key, recipe.num_iterations)
    (trained, _), seen = jax.lax.scan(iterate, (trained, optimizer.init(trained)), keys)
    return trained["policy"], seen
