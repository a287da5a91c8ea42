"""Training of `scripts.bench.frontier` on data: the reference, DPO and a reward model.

Each is one compiled program: a scan over steps of the project's losses and optimizers, whose rows
are looked up on the device by the numbers of their answers. The experiments of
`scripts.lab.alignment` use them as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from align.losses.preference import PreferenceBatch, Settings, preference_loss
from align.losses.reward import RankingBatch, ranking_loss
from align.rl.exact import Pairs, Rankings, Task, make_rows, make_texts
from align.scalar import with_scalar_head
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params
from model.heads.scalar import init_scalar_head
from train.loss import Metrics, next_token_loss
from train.optimizer.optimizers import make_optimizer

EXECUTION = Execution(scan_unroll=2)      # all layers of the model
KEY = jax.random.key(0)     # of losses that use none
Labels = TypeVar("Labels", Pairs, Rankings)


class Recipe(NamedTuple):
    """How a model is trained; static.

    Attributes:
        num_steps: updates of the optimizer.
        batch_size: answers, or pairs, of a step.
        learning_rate: at its height.
    """

    num_steps: int
    batch_size: int
    learning_rate: float


def make_adamw(learning_rate: float, num_steps: int) -> optax.GradientTransformation:
    """AdamW without weight decay, its learning rate falling linearly to 0."""
    return make_optimizer(ConfigDict(dict(
        name="adamw", learning_rate=learning_rate, lr_multipliers={}, decay_multipliers={},
        weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8, mu_dtype="float32", clip_norm=1.0,
        schedule="linear", warmup_steps=min(10, num_steps - 1), final_frac=0.0)), num_steps)


def descend(loss_fn: Callable[[Params, Any], tuple[jax.Array, Metrics]], params: Params,
            batches: Any, recipe: Recipe) -> Params:
    """Trains on one batch after another.

    Args:
        loss_fn: of parameters and an element of `batches`.
        batches: arrays with a leading axis of steps.
    """
    optimizer = make_adamw(recipe.learning_rate, recipe.num_steps)

    def step(carry, batch):
        params, state = carry
        gradient, sums = jax.grad(loss_fn, has_aux=True)(params, batch)
        gradient = jax.tree.map(lambda leaf: leaf / sums["loss"][1], gradient)
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]


def draw_batches(num: int, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the examples of each step, in passes over all of them in random order."""
    needed = recipe.num_steps * recipe.batch_size
    order = np.concatenate([rng.permutation(num) for _ in range(-(-needed // num))])
    return order[:needed].reshape(recipe.num_steps, recipe.batch_size)


def gather(labels: Labels, numbers: np.ndarray | slice) -> Labels:
    """The pairs or rankings with these numbers."""
    return type(labels)(*(leaf[numbers] for leaf in labels))


@partial(jax.jit, static_argnames=("task", "config", "recipe"))
def fit_reference(params: Params, prompt_SB: jax.Array, answer_SB: jax.Array, *, task: Task,
                  config: ModelConfig, recipe: Recipe) -> Params:
    """Fits a model to answers, given by their numbers, with S steps of cross-entropy."""
    answers_AL = jnp.asarray(task.answers_AL)

    def loss_fn(params, numbers):
        prompt_B, answer_B = numbers
        return next_token_loss(params, make_rows(prompt_B, answers_AL[answer_B]), config=config,
                               execution=EXECUTION, key=KEY)

    return descend(loss_fn, params, (prompt_SB, answer_SB), recipe)


class Answers(NamedTuple):
    """The answers that preferences are between.

    Attributes:
        tokens_AL: their tokens.
        weights_AL: 1 at the tokens that belong to an answer, else 0; float32.
        ref_PA: the reference's log-probabilities of them, float32.
    """

    tokens_AL: jax.Array
    weights_AL: jax.Array
    ref_PA: jax.Array


def list_answers(task: Task, ref_PA: np.ndarray) -> Answers:
    """All answers of a task, each of L tokens."""
    tokens_AL = jnp.asarray(task.answers_AL)
    return Answers(tokens_AL, jnp.ones(tokens_AL.shape), jnp.float32(ref_PA))


@partial(jax.jit, static_argnames=("loss", "config", "recipe"))
def train_on_pairs(reference: Params, answers: Answers, pairs_SB: Pairs,
                   strengths: dict[str, float], *, loss: str, config: ModelConfig,
                   recipe: Recipe) -> Params:
    """Trains the reference on S batches of pairs with a loss of `align.losses.preference`.

    Args:
        strengths: numbers of its settings by name, such as `beta`.
    """
    def rows(prompt_B, answer_B):
        return make_rows(prompt_B, answers.tokens_AL[answer_B]).replace(
            loss_weights_BL=answers.weights_AL[answer_B])

    def loss_fn(params, pairs):
        chosen_B, rejected_B = (answers.ref_PA[pairs.prompt_B, answer_B]
                                for answer_B in (pairs.chosen_B, pairs.rejected_B))
        ones_B = jnp.ones_like(chosen_B)
        batch = PreferenceBatch(
            chosen=rows(pairs.prompt_B, pairs.chosen_B),
            rejected=rows(pairs.prompt_B, pairs.rejected_B),
            reference_chosen_B=chosen_B, reference_rejected_B=rejected_B,
            common_chosen_B=chosen_B, common_rejected_B=rejected_B,     # read by ld_dpo alone
            weights_B=ones_B, token_share_B=ones_B)
        return preference_loss(params, batch, config=config, execution=EXECUTION, key=KEY,
                               settings=Settings(loss, **strengths))

    return descend(loss_fn, reference, pairs_SB, recipe)


def add_scalar_head(params: Params, config: ModelConfig, key: jax.Array) -> Params:
    """The body of a model with a fresh scalar head."""
    body = {name: leaf for name, leaf in params.items() if name != "head_DV"}
    return body | init_scalar_head(config, key)


@partial(jax.jit, static_argnames=("task", "config", "recipe", "loss"))
def fit_reward(reference: Params, rankings_SB: Rankings, key: jax.Array, *, task: Task,
               config: ModelConfig, recipe: Recipe, loss: str = "bradley_terry") -> Params:
    """Fits a reward model, which begins as the reference's body, to S batches of rankings.

    Args:
        loss: of `align.losses.reward`.
    """
    answers_AL = jnp.asarray(task.answers_AL)

    def loss_fn(params, rankings):
        answer_BJL = answers_AL[rankings.answer_BJ]
        prompt_BJ = jnp.broadcast_to(rankings.prompt_B[:, None], answer_BJL.shape[:2])
        tokens_BJL = jnp.concatenate([prompt_BJ[..., None], answer_BJL], axis=2)
        shape = tokens_BJL.shape
        rows = (leaf.reshape(shape) for leaf in make_texts(tokens_BJL.reshape(-1, shape[-1])))
        value_BJ = jnp.broadcast_to(jnp.arange(shape[1], 0, -1, dtype=jnp.float32)[None],
                                    shape[:2])
        batch = RankingBatch(*rows, value_BJ, jnp.ones(shape[:2], bool))
        return ranking_loss(params, batch, config=with_scalar_head(config), execution=EXECUTION,
                            key=KEY, loss=loss)

    return descend(loss_fn, add_scalar_head(reference, config, key), rankings_SB, recipe)
