"""The two programs of generation: prefill reads prompts into slots, decode draws their answers.

A slot is a row of the cache with all that its answer depends on. Both programs leave every other
slot as it is, so that slots are filled and freed while others go on.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, extend, make_cache
from model.generation.cache import put_rows
from model.generation.sampling import RowSampling, sample
from model.heads.language import logits


@flax.struct.dataclass
class Ask:
    """What is drawn in each slot, beside the prompt.

    Attributes:
        sampling: the settings.
        seed_B3: uint32 seed of the request, hash of its prompt, and number of the sample: the
            key of a slot's draws follows from these alone.
        stops_BS: tokens that end the answer; -1 is none.
        left_B: tokens that may still be drawn; 0 in a slot that is idle.
        drawn_B: tokens drawn so far.
    """

    sampling: RowSampling
    seed_B3: jax.Array
    stops_BS: jax.Array
    left_B: jax.Array
    drawn_B: jax.Array


@flax.struct.dataclass
class Slots:
    """The state of generation; B is the number of slots.

    Attributes:
        cache: of prompts and answers.
        logits_BV: float32, of the next token.
        seen_BV: tokens of prompt and answer, for the repetition penalty.
        ask: what is drawn.
    """

    cache: Any
    logits_BV: jax.Array
    seen_BV: jax.Array
    ask: Ask


class Drawn(NamedTuple):
    """Tokens of a call of `decode`.

    Attributes:
        tokens_BT: the new tokens.
        logps_BT: their log-probabilities in nats: those of the model, before any setting of
            sampling.
        count_B: how many of them are valid.
        left_B: tokens that may still be drawn.
    """

    tokens_BT: jax.Array
    logps_BT: jax.Array
    count_B: jax.Array
    left_B: jax.Array


def make_slots(config: ModelConfig, execution: Execution, num_slots: int, capacity: int, *,
               num_stops: int) -> Slots:
    """Idle, empty slots; see `model.families.decoder.make_cache`.

    Args:
        num_stops: S, stop tokens that a request may have.
    """
    def zeros(*shape, dtype=jnp.int32):
        return jnp.zeros((num_slots, *shape), dtype)

    ask = Ask(RowSampling(zeros(dtype=float), zeros(), zeros(dtype=float), zeros(dtype=float),
                          zeros(dtype=float)),
              zeros(3, dtype=jnp.uint32), zeros(num_stops), zeros(), zeros())
    cache = make_cache(config, execution, num_slots, capacity)
    return Slots(cache, zeros(config.V, dtype=jnp.float32), zeros(config.V, dtype=bool), ask)


@partial(jax.jit, static_argnames=("config", "execution"), donate_argnames="slots")
def prefill(params: Params, slots: Slots, rows_P: jax.Array, tokens_PL: jax.Array,
            count_P: jax.Array, *, config: ModelConfig, execution: Execution) -> Slots:
    """Reads tokens into slots, after those that these hold.

    Args:
        params: see `model.generation.weights.unstack`.
        rows_P: the slots; a number beyond the last one is none.
        count_P: tokens of each that are real; with 0 a slot stays as it is.
    """
    x_PLD, cache = extend(params, tokens_PL, count_P, slots.cache, config=config,
                          execution=execution, rows_B=rows_P)
    last_P11 = jnp.maximum(count_P, 1)[:, None, None] - 1
    x_PLD = jnp.take_along_axis(x_PLD, last_P11, axis=1)
    logits_PV = logits(params, x_PLD, config=config, execution=execution)[:, 0]
    written_P = jnp.where(count_P > 0, rows_P, slots.logits_BV.shape[0])
    return slots.replace(cache=cache.advance(tokens_PL, count_P, rows_P),
                         logits_BV=put_rows(slots.logits_BV, logits_PV, written_P))


@partial(jax.jit, static_argnames=("config", "capacity"))
def resize(slots: Slots, *, config: ModelConfig, capacity: int) -> Slots:
    """Slots of another capacity; see `model.generation.cache.Cache.resize`."""
    return slots.replace(cache=slots.cache.resize(config, capacity))


@partial(jax.jit, donate_argnames="slots")
def rewind(slots: Slots, rows_P: jax.Array, length_P: jax.Array, last_P: jax.Array) -> Slots:
    """Makes slots end after their first `length_P` tokens, of which `last_P` is the newest."""
    return slots.replace(cache=slots.cache.rewind(rows_P, length_P, last_P))


@partial(jax.jit, donate_argnames="slots")
def copy(slots: Slots, source: jax.Array, target: jax.Array) -> Slots:
    """Copies what slot `source` has read to slot `target`."""
    return slots.replace(cache=slots.cache.copy(source, target),
                         logits_BV=slots.logits_BV.at[target].set(slots.logits_BV[source]))


@partial(jax.jit, donate_argnames="slots")
def start(slots: Slots, rows_P: jax.Array, ask: Ask) -> Slots:
    """Begins answers in slots whose prompts are read."""
    return slots.replace(ask=jax.tree.map(
        lambda old, new: put_rows(old, new, rows_P), slots.ask, ask))


@partial(jax.jit, donate_argnames="slots")
def mark_seen(slots: Slots, row: jax.Array, seen_V: jax.Array) -> Slots:
    """Sets the tokens that a prompt holds, for the repetition penalty."""
    return slots.replace(seen_BV=slots.seen_BV.at[row].set(seen_V))


@partial(jax.jit, donate_argnames="slots")
def stop(slots: Slots, rows_P: jax.Array) -> Slots:
    """Ends answers."""
    left_B = slots.ask.left_B.at[rows_P].set(0, mode="drop")
    return slots.replace(ask=slots.ask.replace(left_B=left_B))


@partial(jax.jit, static_argnames=("config", "execution", "num_steps"), donate_argnames="slots")
def decode(params: Params, slots: Slots, num_idle: jax.Array, *, config: ModelConfig,
           execution: Execution, num_steps: int) -> tuple[Slots, Drawn]:
    """Draws up to `num_steps` tokens in every slot that is not idle.

    Args:
        params: see `model.generation.weights.unstack`.
        num_idle: it ends earlier once so many slots are idle, which others may fill.
    """
    def is_running(carry):
        step, slots, _ = carry
        return (step < num_steps) & (jnp.sum(slots.ask.left_B <= 0) < num_idle)

    def draw(carry):
        step, slots, drawn = carry
        is_active_B = slots.ask.left_B > 0
        token_B, logp_B = draw_token(slots)
        slots, goes_on_B = count_token(slots, token_B)
        x_BLD, cache = extend(params, token_B[:, None], goes_on_B.astype(jnp.int32), slots.cache,
                              config=config, execution=execution)
        logits_BV = logits(params, x_BLD, config=config, execution=execution)[:, 0]
        slots = slots.replace(
            cache=cache.advance(token_B[:, None], goes_on_B.astype(jnp.int32)),
            logits_BV=jnp.where(goes_on_B[:, None], logits_BV, slots.logits_BV))
        drawn = Drawn(drawn.tokens_BT.at[:, step].set(token_B),
                      drawn.logps_BT.at[:, step].set(logp_B),
                      drawn.count_B + is_active_B, slots.ask.left_B)
        return step + 1, slots, drawn

    num_slots = slots.logits_BV.shape[0]
    drawn = Drawn(jnp.zeros((num_slots, num_steps), jnp.int32), jnp.zeros((num_slots, num_steps)),
                  jnp.zeros(num_slots, jnp.int32), slots.ask.left_B)
    _, slots, drawn = jax.lax.while_loop(is_running, draw, (0, slots, drawn))
    return slots, drawn


def draw_token(slots: Slots) -> tuple[jax.Array, jax.Array]:
    """The next token of each slot, and its log-probability; meaningless in an idle one."""
    def key(seed_3, number):
        key = jax.random.key(seed_3[0])
        for word in (seed_3[1], seed_3[2], number):
            key = jax.random.fold_in(key, word)
        return key

    ask, logits_BV = slots.ask, slots.logits_BV
    # An idle slot is greedy: what was asked of it before must not make the others' steps slower.
    is_active_B = ask.left_B > 0
    sampling = ask.sampling.replace(
        temperature_B=jnp.where(is_active_B, ask.sampling.temperature_B, 0),
        repetition_penalty_B=jnp.where(is_active_B, ask.sampling.repetition_penalty_B, 1))
    keys_B = jax.vmap(key)(ask.seed_B3, ask.drawn_B)
    token_B = sample(logits_BV, sampling, keys_B, slots.seen_BV)
    chosen_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
    return token_B, chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=-1)


def count_token(slots: Slots, token_B: jax.Array) -> tuple[Slots, jax.Array]:
    """Counts a drawn token of each slot; returns which slots go on after it."""
    ask = slots.ask
    is_active_B = ask.left_B > 0
    ends_B = jnp.any(token_B[:, None] == ask.stops_BS, axis=-1)
    left_B = jnp.where(is_active_B & ~ends_B, ask.left_B - 1, 0)
    rows_B = jnp.where(is_active_B, jnp.arange(token_B.shape[0]), token_B.shape[0])
    return slots.replace(
        ask=ask.replace(left_B=left_B, drawn_B=ask.drawn_B + is_active_B),
        seen_BV=slots.seen_BV.at[rows_B, token_B].set(True, mode="drop")), left_B > 0
