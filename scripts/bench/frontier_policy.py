"""On-policy training of `scripts.bench.frontier`: PPO, GRPO and RLOO on an enumerable task.

One compiled program: each iteration samples answers with the parameters that it trains, takes their
rewards from the table of all answers, and makes clipped updates. The divergence is subtracted from
the rewards, token by token.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from align.rl.exact import Task, make_rows
from align.scalar import with_scalar_head
from data.batch import Batch
from eval.measures.likelihood import batch_logps
from model.config import ModelConfig
from model.families.registry import Params, extend, forward, make_cache
from model.heads.language import logits
from scripts.bench.frontier_train import EXECUTION, add_scalar_head, make_adamw

Trained = dict[str, Params]     # "policy", and PPO's "critic"

# Formulas -----------------------------------------------------------------------------------------

def _token_rewards(reward_B: jax.Array, logp_BL: jax.Array, ref_BL: jax.Array,
                   beta: jax.Array) -> jax.Array:
    """-beta (logp - ref) of each token, and the answer's reward at the last one."""
    return (-beta * (logp_BL - ref_BL)).at[:, -1].add(reward_B)


def _gae(reward_BL: jax.Array, value_BL: jax.Array, lam: float) -> jax.Array:
    """Generalised advantages without discount, of whole answers (arXiv 1506.02438, eq. 16)."""
    next_BL = jnp.pad(value_BL[:, 1:], [(0, 0), (0, 1)])
    delta_BL = reward_BL + next_BL - value_BL

    def add(advantage_B, delta_B):
        advantage_B = delta_B + lam * advantage_B
        return advantage_B, advantage_B

    return jax.lax.scan(add, jnp.zeros(len(delta_BL)), delta_BL.T, reverse=True)[1].T


def _whiten(x: jax.Array) -> jax.Array:
    return (x - jnp.mean(x)) * jax.lax.rsqrt(jnp.var(x) + 1e-8)


def _group_advantages(reward_BJ: jax.Array, method: str) -> jax.Array:
    """GRPO (arXiv 2402.03300, section 4.1.2): (r - mean) / std of a prompt's answers; RLOO
    (arXiv 2402.14740, equation 8): r less the mean of the others."""
    centred_BJ = reward_BJ - jnp.mean(reward_BJ, axis=1, keepdims=True)
    size = reward_BJ.shape[1]
    if method == "rloo":
        return centred_BJ * size / (size - 1)
    return centred_BJ / (jnp.std(reward_BJ, axis=1, keepdims=True, ddof=1) + 1e-4)


def _clipped_policy_loss(logp_BL: jax.Array, old_BL: jax.Array, advantage_BL: jax.Array,
                         clip: float) -> jax.Array:
    """The mean over tokens of PPO's loss (arXiv 1707.06347, equation 7)."""
    ratio_BL = jnp.exp(logp_BL - old_BL)
    clipped_BL = jnp.clip(ratio_BL, 1 - clip, 1 + clip)
    return -jnp.mean(jnp.minimum(ratio_BL * advantage_BL, clipped_BL * advantage_BL))


def _clipped_value_loss(value_BL: jax.Array, old_BL: jax.Array, return_BL: jax.Array,
                        clip: float) -> jax.Array:
    """Half the mean of the larger of two squared errors, as in lm-human-preferences."""
    clipped_BL = old_BL + jnp.clip(value_BL - old_BL, -clip, clip)
    return 0.5 * jnp.mean(jnp.maximum((value_BL - return_BL)**2, (clipped_BL - return_BL)**2))


# The loop -----------------------------------------------------------------------------------------

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
        clip: of the ratio of probabilities.
        value_clip: of the change of values.
        lam: of generalised advantages.
    """

    method: str
    num_iterations: int = 100
    batch_size: int = 512
    num_epochs: int = 2
    num_minibatches: int = 2
    learning_rate: float = 1e-3
    group_size: int = 8
    clip: float = 0.2
    value_clip: float = 0.2
    lam: float = 0.95


class Target(NamedTuple):
    """What a policy is trained to maximise: E[r] - beta KL(pi || ref).

    Attributes:
        reference: its parameters, with which the policy begins.
        reward_PA: rewards of all answers, float32.
        beta: strength of the divergence, a float32 scalar.
    """

    reference: Params
    reward_PA: jax.Array
    beta: jax.Array


class Rollouts(NamedTuple):
    """Sampled answers, and what their updates need.

    Attributes:
        rows: prompts and answers.
        old_BL: log-probabilities under the policy that sampled them.
        advantage_BL: advantages.
        value_BL: the critic's values before each token; zeros without a critic.
        return_BL: what they are to become.
    """

    rows: Batch
    old_BL: jax.Array
    advantage_BL: jax.Array
    value_BL: jax.Array
    return_BL: jax.Array


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
    prompt_B = jnp.arange(recipe.batch_size, dtype=jnp.int32) // recipe.group_size % task.P
    answer_BL, sampled_BL = sample_answers(trained["policy"], prompt_B, key, task=task,
                                           config=config)
    rows = make_rows(prompt_B, answer_BL)
    old_BL, ref_BL = (batch_logps(params, rows, config=config, execution=EXECUTION)
                      for params in (trained["policy"], target.reference))
    place_L = task.V ** jnp.arange(task.L - 1, -1, -1)
    reward_B = target.reward_PA[prompt_B, jnp.sum(answer_BL * place_L[None], axis=1)]
    reward_BL = _token_rewards(reward_B, old_BL, ref_BL, target.beta)
    if recipe.method == "ppo":
        value_BL = values(trained["critic"], rows, config=config)
        raw_BL = _gae(reward_BL, value_BL, recipe.lam)
        advantage_BL, return_BL = _whiten(raw_BL), raw_BL + value_BL
    else:
        grouped_BJ = jnp.sum(reward_BL, axis=1).reshape(-1, recipe.group_size)
        advantage_B1 = _group_advantages(grouped_BJ, recipe.method).reshape(-1, 1)
        advantage_BL = jnp.broadcast_to(advantage_B1, old_BL.shape)
        value_BL = return_BL = jnp.zeros_like(old_BL)
    seen = {"reward": jnp.mean(reward_B), "kl": jnp.mean(jnp.sum(old_BL - ref_BL, axis=1)),
            "sampler_gap": jnp.max(jnp.abs(sampled_BL - old_BL))}
    return Rollouts(rows, old_BL, advantage_BL, value_BL, return_BL), seen


def policy_loss(trained: Trained, rollouts: Rollouts, *, config: ModelConfig,
                recipe: PolicyRecipe) -> jax.Array:
    """The loss of an update: the policy's, and PPO's critic's."""
    logp_BL = batch_logps(trained["policy"], rollouts.rows, config=config, execution=EXECUTION)
    loss = _clipped_policy_loss(logp_BL, rollouts.old_BL, rollouts.advantage_BL, recipe.clip)
    if recipe.method != "ppo":
        return loss
    value_BL = values(trained["critic"], rollouts.rows, config=config)
    return loss + _clipped_value_loss(value_BL, rollouts.value_BL, rollouts.return_BL,
                                      recipe.value_clip)


@partial(jax.jit, static_argnames=("task", "config", "recipe"))
def train_policy(target: Target, key: jax.Array, *, task: Task, config: ModelConfig,
                 recipe: PolicyRecipe) -> tuple[Params, dict[str, jax.Array]]:
    """Trains the reference to maximise E[r] - beta KL(pi || ref).

    Returns:
        The policy, and by name one value an iteration: `reward`, `kl` (of the samples),
        `sampler_gap` (the largest difference of a token's log-probability between the sampler,
        which reads the cache, and the forward pass that is trained).
    """
    num_updates = recipe.num_epochs * recipe.num_minibatches
    optimizer = make_adamw(recipe.learning_rate, recipe.num_iterations * num_updates)
    trained = {"policy": target.reference}
    if recipe.method == "ppo":
        critic = add_scalar_head(target.reference, config, jax.random.key(0))
        trained["critic"] = critic | {"score_DY": jnp.zeros_like(critic["score_DY"])}

    def update(carry, minibatch):
        trained, state = carry
        gradient = jax.grad(policy_loss)(trained, minibatch, config=config, recipe=recipe)
        change, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, change), state), None

    def iterate(carry, key):
        of_sampling, *of_epochs = jax.random.split(key, 1 + recipe.num_epochs)
        rollouts, seen = roll_out(carry[0], target, of_sampling, task=task, config=config,
                                  recipe=recipe)
        order = jnp.concatenate([jax.random.permutation(each, recipe.batch_size)
                                 for each in of_epochs]).reshape(num_updates, -1)
        minibatches = jax.tree.map(lambda leaf: leaf[order], rollouts)
        return jax.lax.scan(update, carry, minibatches)[0], seen

    keys = jax.random.split(key, recipe.num_iterations)
    (trained, _), seen = jax.lax.scan(iterate, (trained, optimizer.init(trained)), keys)
    return trained["policy"], seen
