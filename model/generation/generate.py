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
from model.generation.cache import PIECE, pick, put_rows
from model.generation.requests import NUM_TOP
from model.generation.sampling import FILTERED, RowSampling, sample
from model.generation.weights import choose_adapters
from model.heads.language import logits
from model.parallel.sharding import ACTIVATION_RULES, Rules, constrain, letters_of


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
        adapter_B: with which tokens are read; see `model.generation.weights.choose_adapters`.
        draft: see `model.generation.speculative.DraftState`; None in plain decoding.
    """

    cache: Any
    logits_BV: jax.Array
    seen_BV: jax.Array
    ask: Ask
    adapter_B: jax.Array
    draft: Any = None


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


class Top(NamedTuple):
    """The likeliest next tokens of each slot, the first first.

    Attributes:
        tokens_BN: the tokens.
        logps_BN: their log-probabilities in nats, as in `Drawn`.
    """

    tokens_BN: jax.Array
    logps_BN: jax.Array


# Of the state: rows and heads as activations are sharded. Each draw needs a whole row of logits.
SLOT_RULES: Rules = {**dict.fromkeys("MKVNDS3"),
                     **{letter: ACTIVATION_RULES[letter] for letter in "BGF"}}


def place(slots: Slots) -> Slots:
    """Shards the state over the current mesh; returns it unchanged without a mesh.

    All programs do, so that one's result has the sharding that another was compiled for.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: constrain(leaf, letters_of(path, leaf.ndim), SLOT_RULES), slots)


def to_host(drawn: Any) -> Any:
    """Makes what is drawn whole on every device of the current mesh, so that any host reads it."""
    return jax.tree.map(lambda leaf: constrain(leaf, "BT"[:leaf.ndim], dict.fromkeys("BT")), drawn)


@partial(jax.jit, static_argnames=("config", "execution", "num_slots", "capacity", "num_stops",
                                   "piece"))
def make_slots(config: ModelConfig, execution: Execution, num_slots: int, capacity: int, *,
               num_stops: int, piece: int = PIECE) -> Slots:
    """Idle, empty slots; see `model.families.decoder.make_cache`.

    Args:
        num_stops: S, stop tokens that a request may have.
    """
    def zeros(*shape, dtype=jnp.int32):
        return jnp.zeros((num_slots, *shape), dtype)

    ask = Ask(RowSampling(zeros(dtype=float), zeros(), zeros(dtype=float), zeros(dtype=float),
                          zeros(dtype=float)),
              zeros(3, dtype=jnp.uint32), zeros(num_stops), zeros(), zeros())
    cache = make_cache(config, execution, num_slots, capacity, piece=piece)
    return place(Slots(cache, zeros(config.V, dtype=jnp.float32), zeros(config.V, dtype=bool),
                       ask, zeros()))


@partial(jax.jit, static_argnames=("config", "execution"), donate_argnames="slots")
def prefill(params: Params, slots: Slots, rows_P: jax.Array, tokens_PL: jax.Array,
            count_P: jax.Array, *, config: ModelConfig, execution: Execution) -> Slots:
    """Reads tokens into slots, after those that these hold.

    Args:
        params: see `model.generation.weights.unstack`.
        rows_P: the slots; a number beyond the last one is none.
        count_P: tokens of each that are real; with 0 a slot stays as it is.
    """
    params = choose_adapters(params, pick(slots.adapter_B, rows_P))
    x_PLD, cache = extend(params, tokens_PL, count_P, slots.cache, config=config,
                          execution=execution, rows_B=rows_P)
    last_P11 = jnp.maximum(count_P, 1)[:, None, None] - 1
    x_PLD = jnp.take_along_axis(x_PLD, last_P11, axis=1)
    logits_PV = logits(params, x_PLD, config=config, execution=execution)[:, 0]
    written_P = jnp.where(count_P > 0, rows_P, slots.logits_BV.shape[0])
    return place(slots.replace(cache=cache.advance(tokens_PL, count_P, rows_P),
                               logits_BV=put_rows(slots.logits_BV, logits_PV, written_P)))


@partial(jax.jit, static_argnames=("config", "capacity", "piece"))
def resize(slots: Slots, *, config: ModelConfig, capacity: int, piece: int = PIECE) -> Slots:
    """Slots of another capacity; see `model.generation.cache.Cache.resize`."""
    return place(slots.replace(cache=slots.cache.resize(config, capacity, piece),
                               draft=slots.draft and slots.draft.resize(capacity, piece)))


@partial(jax.jit, donate_argnames="slots")
def rewind(slots: Slots, rows_P: jax.Array, length_P: jax.Array, last_P: jax.Array,
           adapter_P: jax.Array) -> Slots:
    """Makes slots end after their first `length_P` tokens, of which `last_P` is the newest.

    Args:
        adapter_P: with which these were read, and what follows is.
    """
    draft = slots.draft and slots.draft.rewind(rows_P, length_P, last_P)
    return place(slots.replace(cache=slots.cache.rewind(rows_P, length_P, last_P), draft=draft,
                               adapter_B=put_rows(slots.adapter_B, adapter_P, rows_P)))


@partial(jax.jit, donate_argnames="slots")
def copy(slots: Slots, source_B: jax.Array, target_B: jax.Array, count: jax.Array) -> Slots:
    """Copies what slots have read to others, one after another.

    Args:
        source_B, target_B: their numbers, of which the first `count` are read.
    """
    def copy_one(number, slots):
        source, target = source_B[number], target_B[number]
        return slots.replace(
            cache=slots.cache.copy(source, target),
            logits_BV=slots.logits_BV.at[target].set(slots.logits_BV[source]),
            draft=slots.draft and slots.draft.copy(source, target))

    return place(jax.lax.fori_loop(0, count, copy_one, slots))


@partial(jax.jit, donate_argnames="slots")
def start(slots: Slots, rows_P: jax.Array, ask: Ask) -> Slots:
    """Begins answers in slots whose prompts are read."""
    return place(slots.replace(ask=jax.tree.map(
        lambda old, new: put_rows(old, new, rows_P), slots.ask, ask)))


@partial(jax.jit, donate_argnames="slots")
def mark_seen(slots: Slots, row: jax.Array, seen_V: jax.Array) -> Slots:
    """Sets the tokens that a prompt holds, for the repetition penalty."""
    return place(slots.replace(seen_BV=slots.seen_BV.at[row].set(seen_V)))


@partial(jax.jit, donate_argnames="slots")
def stop(slots: Slots, rows_P: jax.Array) -> Slots:
    """Ends answers."""
    left_B = slots.ask.left_B.at[rows_P].set(0, mode="drop")
    return place(slots.replace(ask=slots.ask.replace(left_B=left_B)))


@jax.jit
def rank(logits_BV: jax.Array) -> Top:
    """The `NUM_TOP` likeliest tokens of each row; all where there are fewer."""
    logits_BN, tokens_BN = jax.lax.top_k(logits_BV, min(NUM_TOP, logits_BV.shape[1]))
    return to_host(Top(tokens_BN, logits_BN - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)))


@partial(jax.jit, static_argnames=("config", "execution", "most"), donate_argnames="slots")
def decode(params: Params, slots: Slots, num_idle: jax.Array, num_steps: jax.Array,
           is_allowed_BV: jax.Array, *, config: ModelConfig, execution: Execution,
           most: int) -> tuple[Slots, Drawn]:
    """Draws tokens in every slot that is not idle.

    Args:
        params: see `model.generation.weights.unstack`.
        num_idle: it ends earlier once so many slots are idle, which others may fill.
        num_steps: tokens that are drawn in each; at most `most`, the length T of the result.
        is_allowed_BV: the tokens that may be drawn, at least one of each row.
    """
    params = choose_adapters(params, slots.adapter_B)

    def is_running(carry):
        step, slots, _ = carry
        return (step < num_steps) & (jnp.sum(slots.ask.left_B <= 0) < num_idle)

    def draw(carry):
        step, slots, drawn = carry
        is_active_B = slots.ask.left_B > 0
        allowed_BV = jnp.where(is_allowed_BV, slots.logits_BV, FILTERED)
        token_B = sample(allowed_BV, sampling_of(slots.ask, is_active_B), draw_keys(slots.ask),
                         slots.seen_BV)
        logp_B = log_probability(slots.logits_BV, token_B)
        slots, goes_on_B = count_token(slots, token_B, is_active_B)
        x_BLD, cache = extend(params, token_B[:, None], goes_on_B.astype(jnp.int32), slots.cache,
                              config=config, execution=execution)
        logits_BV = logits(params, x_BLD, config=config, execution=execution)[:, 0]
        slots = slots.replace(
            cache=cache.advance(token_B[:, None], goes_on_B.astype(jnp.int32)),
            logits_BV=jnp.where(goes_on_B[:, None], logits_BV, slots.logits_BV))
        drawn = record(drawn, slots, token_B, logp_B, is_active_B)
        return step + 1, slots, drawn

    _, slots, drawn = jax.lax.while_loop(is_running, draw,
                                         (0, slots, no_tokens(slots, most)))
    return place(slots), to_host(drawn)


def sampling_of(ask: Ask, is_drawn_B: jax.Array) -> RowSampling:
    """The settings of slots that are drawn in; others are greedy, so that what was asked of them
    before does not make the step slower."""
    return ask.sampling.replace(
        temperature_B=jnp.where(is_drawn_B, ask.sampling.temperature_B, 0),
        repetition_penalty_B=jnp.where(is_drawn_B, ask.sampling.repetition_penalty_B, 1))


def draw_keys(ask: Ask, *words: int | jax.Array) -> jax.Array:
    """keys_B of each slot's next draw; those with other `words` are independent of them."""
    def key(seed_3, number):
        key = jax.random.key(seed_3[0])
        for word in (seed_3[1], seed_3[2], number, *words):
            key = jax.random.fold_in(key, word)
        return key

    return jax.vmap(key)(ask.seed_B3, ask.drawn_B)


def log_probability(logits_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """logp_B of tokens, in nats."""
    chosen_B1 = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)
    return chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=-1)


def count_token(slots: Slots, token_B: jax.Array,
                is_drawn_B: jax.Array) -> tuple[Slots, jax.Array]:
    """Counts a token of each slot that one is drawn in; returns which of these go on after it."""
    ask = slots.ask
    ends_B = jnp.any(token_B[:, None] == ask.stops_BS, axis=-1)
    left_B = jnp.where(is_drawn_B, jnp.where(ends_B, 0, ask.left_B - 1), ask.left_B)
    rows_B = jnp.where(is_drawn_B, jnp.arange(token_B.shape[0]), token_B.shape[0])
    return slots.replace(
        ask=ask.replace(left_B=left_B, drawn_B=ask.drawn_B + is_drawn_B),
        seen_BV=slots.seen_BV.at[rows_B, token_B].set(True, mode="drop")), is_drawn_B & (left_B > 0)


def no_tokens(slots: Slots, most: int) -> Drawn:
    """The result before anything is drawn; `most` is the length T."""
    num_slots = slots.logits_BV.shape[0]
    return Drawn(jnp.zeros((num_slots, most), jnp.int32), jnp.zeros((num_slots, most)),
                 jnp.zeros(num_slots, jnp.int32), slots.ask.left_B)


def record(drawn: Drawn, slots: Slots, token_B: jax.Array, logp_B: jax.Array,
           is_drawn_B: jax.Array) -> Drawn:
    """Adds a token of each slot that one is drawn in, once it is counted."""
    rows_B = jnp.where(is_drawn_B, jnp.arange(token_B.shape[0]), token_B.shape[0])
    return Drawn(drawn.tokens_BT.at[rows_B, drawn.count_B].set(token_B, mode="drop"),
                 drawn.logps_BT.at[rows_B, drawn.count_B].set(logp_B, mode="drop"),
                 drawn.count_B + is_drawn_B, slots.ask.left_B)
