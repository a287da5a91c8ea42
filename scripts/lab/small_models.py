"""Small byte-level models on the text of a token folder, trained within one compiled program.

Axis of an array here: T bytes of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from core.errors import UserError, require_file
from data.batch import Batch
from data.tokenizers.load import load_tokenizer
from data.tokens.rows import open_tokens
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, init
from scripts.coordinate_check import make_section, scale
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer

EXECUTION = Execution(attention="xla")
HELDOUT_FRAC = 0.05
State = tuple[Params, Any]      # parameters, and moments of the optimizer
MIN_EXPONENT, MAX_EXPONENT = -20, 4


class Text(NamedTuple):
    """Bytes to train on, and others to measure the loss on."""

    train_T: jax.Array
    heldout_T: jax.Array


def read_text(tokens: str, domain: str, num_tokens: int) -> Text:
    """The first tokens of a domain as bytes; special tokens are their names.

    Args:
        tokens: folder of tokens, the flag `--tokens`.

    Raises:
        UserError: the flag is missing or no folder; or as `data.tokens.rows.open_tokens`.
    """
    if not tokens:
        raise UserError("--tokens", "is missing", "try --tokens=runs/quickstart-cpu/tokens")
    tokens = require_file("--tokens", tokens, "name a folder of tokens")
    ids, _ = open_tokens(tokens, domain)
    text = load_tokenizer(tokens / "tokenizer").decode(ids[:num_tokens].tolist())
    bytes_T = np.frombuffer(text.encode(), np.uint8)
    cut = round(len(bytes_T) * (1 - HELDOUT_FRAC))
    return Text(jnp.asarray(bytes_T[:cut]), jnp.asarray(bytes_T[cut:]))


def draw_rows(text_T: jax.Array, key: jax.Array, num_rows: int, row_length: int) -> Batch:
    """Rows that start anywhere in the text, each taken as one document."""
    starts_B1 = jax.random.randint(key, (num_rows, 1), 0, len(text_T) - row_length)
    rows = text_T[starts_B1 + jnp.arange(row_length + 1)[None]].astype(jnp.int32)
    ones_BL = jnp.ones((num_rows, row_length), jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(row_length, dtype=jnp.int32)[None], ones_BL.shape)
    return Batch(rows[:, :-1], rows[:, 1:], ones_BL.astype(jnp.float32), ones_BL, positions_BL)


def mean_loss(params: Params, batch: Batch, config: ModelConfig) -> jax.Array:
    """Cross-entropy in nats per byte."""
    loss_sum, metrics = next_token_loss(params, batch, config=config, execution=EXECUTION,
                                        key=None)
    return loss_sum / metrics["loss"][1]


class Trainer(NamedTuple):
    """A model and its optimizer, of which the learning rate is an argument.

    Attributes:
        config: the architecture.
        start: the state, parameters and moments, of a key.
        update: the next state, of a state, the gradient of `mean_loss` and the learning rate.
    """

    config: ModelConfig
    start: Callable[[jax.Array], State]
    update: Callable[[State, Params, jax.Array], State]

    def step(self, state: State, batch: Batch, learning_rate: jax.Array) -> State:
        """The next state, of a batch."""
        return self.update(state, jax.grad(mean_loss)(state[0], batch, self.config),
                           learning_rate)


def make_trainer(config: ModelConfig, schedule: ConfigDict, num_steps: int,
                 base: ModelConfig | None = None) -> Trainer:
    """AdamW at a schedule, scaled from a base by muP and CompleteP where one is given.

    Args:
        schedule: fields of the optimizer that differ from `coordinate_check.make_section`.
    """
    section = make_section(1.0)     # the updates are multiplied by the argument instead
    section.update(schedule)
    if base is not None:
        config, section = scale(config, section, base)
    optimizer = make_optimizer(section, num_steps)

    def start(key: jax.Array) -> State:
        params = init(config, key)
        return params, optimizer.init(params)

    def update(state: State, gradient: Params, learning_rate: jax.Array) -> State:
        params, moments = state
        updates, moments = optimizer.update(gradient, moments, params)
        updates = jax.tree.map(lambda update: learning_rate * update, updates)
        return optax.apply_updates(params, updates), moments

    return Trainer(config, start, update)


class Optimum(NamedTuple):
    """Where a parabola through three points is least: the exponent of 2, and its value there."""

    exponent: float
    value: float


def sweep(measure: Callable[[float], float], first: int, last: int) -> dict[int, float]:
    """Values at powers of 2, from 2**first to 2**last and as far beyond as it takes for the least
    one to have a neighbour on each side.

    Args:
        measure: what is to be small, of a learning rate; it may be nan or infinite.

    Raises:
        UserError: the least value lies at the limits, or none is finite.
    """
    values = {exponent: measure(2.0**exponent) for exponent in range(first, last + 1)}
    while True:
        finite = {exponent: value for exponent, value in values.items() if np.isfinite(value)}
        if not finite:
            raise UserError(f"learning rates from 2^{first} to 2^{last}", "all of them diverge",
                            "start from lower ones")
        best = min(finite, key=finite.get)
        missing = [each for each in (best - 1, best + 1) if each not in values]
        if not missing:
            return dict(sorted(values.items()))
        if not MIN_EXPONENT <= missing[0] <= MAX_EXPONENT:
            raise UserError(f"learning rate 2^{best}", "is the best, at the limits of the search",
                            "train for longer")
        values |= {each: measure(2.0**each) for each in missing}


def find_optimum(values: dict[int, float]) -> Optimum:
    """The vertex of the parabola through the least value and its neighbours, over the exponent.

    Where a neighbour is not finite there is no parabola, and the least value itself is taken.

    Args:
        values: as `sweep` gives them.
    """
    best = min((each for each in values if np.isfinite(values[each])), key=values.get)
    left, middle, right = (values[best + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    if not np.isfinite(bend) or not bend > 0:
        return Optimum(float(best), float(middle))
    shift = (left - right) / (2 * bend)
    return Optimum(best + shift, middle - bend * shift**2 / 2)
