"""Speculative decoding (arXiv 2211.17192, 2302.01318): tokens are drafted, then checked at once.

A step draws one token as plain decoding does, lets a draft continue it, and runs the model over all
of them in one pass. A drafted token x with probability q(x) in the draft is accepted with
probability min(1, p(x) / q(x)), p being the distribution after all settings of sampling; after the
first that is not, the next token is drawn from max(p - q, 0), normalised. Tokens are so distributed
as without a draft, and greedy ones are the same.

That next token is the one with which the following step begins: a slot keeps the model's logits of
its next token, as in plain decoding, and beside them the q that was refused there. Tokens are
accepted one after the other, each counted before the next is looked at, so that the repetition
penalty, stop tokens and limits hold inside a draft as they do outside.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, check_generates, extend, make_cache
from model.generation.cache import PIECE, put_rows
from model.generation.generate import (
    Drawn,
    Slots,
    count_token,
    draw_keys,
    log_probability,
    no_tokens,
    place,
    record,
    sampling_of,
    to_host,
)
from model.generation.sampling import GREEDY_BELOW, RowSampling, adjust, draw
from model.heads.language import logits

MAX_DRAFT_TOKENS = 64
# Keys of a token's draws beside the one of plain decoding.
ACCEPT, DRAFT = 1, 2


class Draft(NamedTuple):
    """What a step reads in each slot.

    Attributes:
        tokens_BL: a token that is drawn already, and the J = L - 1 drafted ones that follow it.
        count_B: how many of them are read; 0 where the answer does not go on after the first.
        q_JBV: distributions that the drafted ones were drawn from; None if each had probability 1.
        cache: that of the draft model, to which nothing is added yet.
    """

    tokens_BL: jax.Array
    count_B: jax.Array
    q_JBV: jax.Array | None
    cache: Any


@flax.struct.dataclass
class DraftState:
    """What slots hold for speculative decoding beside what they hold without.

    Attributes:
        refused_BV: the distribution of the drafted token that was refused as the next one; zeros
            where none was.
        tokens_BM: of prompt and answer, for prompt look-up; None with a draft model.
        cache: of a draft model, with the same tokens as the model's; None for prompt look-up.
        config: of a draft model; None for prompt look-up.
    """

    refused_BV: jax.Array
    tokens_BM: jax.Array | None = None
    cache: Any = None
    config: ModelConfig | None = flax.struct.field(pytree_node=False, default=None)

    def copy(self, source: jax.Array, target: jax.Array) -> DraftState:
        """Copies what slot `source` has read to slot `target`."""
        return self if self.cache is None else self.replace(
            cache=self.cache.copy(source, target))

    def resize(self, capacity: int, piece: int = PIECE) -> DraftState:
        """See `model.generation.cache.Cache.resize`."""
        if self.cache is not None:
            return self.replace(cache=self.cache.resize(self.config, capacity, piece))
        missing = max(capacity - self.tokens_BM.shape[1], 0)
        return self.replace(tokens_BM=jnp.pad(self.tokens_BM, [(0, 0), (0, missing)])[:, :capacity])

    def rewind(self, rows_B: jax.Array, length_B: jax.Array, last_B: jax.Array) -> DraftState:
        """See `model.generation.cache.Cache.rewind`."""
        return self if self.cache is None else self.replace(
            cache=self.cache.rewind(rows_B, length_B, last_B))


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Drafts what followed the newest tokens where they last occurred in prompt and answer.

    Attributes:
        num_tokens: that are drafted.
        ngram: newest tokens that must have occurred.

    Raises:
        UserError: a number breaks a rule.
    """

    num_tokens: int = 8
    ngram: int = 3

    def __post_init__(self):
        _check_num_tokens(self.num_tokens)
        if self.ngram < 1:
            raise UserError(f"ngram={self.ngram}", "must be at least 1", "choose another ngram")


@flax.struct.dataclass
class DraftModel:
    """Drafts with a smaller model.

    Attributes:
        params: see `model.generation.weights.unstack`.
        config: of the smaller model.
        num_tokens: that are drafted.

    Raises:
        UserError: `num_tokens` breaks a rule, or the model does not continue text.
    """

    params: Params
    config: ModelConfig = flax.struct.field(pytree_node=False)
    num_tokens: int = flax.struct.field(pytree_node=False, default=4)

    def __post_init__(self):
        _check_num_tokens(self.num_tokens)
        check_generates(self.config, "draft model")


def _check_num_tokens(num_tokens):
    if not 1 <= num_tokens <= MAX_DRAFT_TOKENS:
        raise UserError(f"num_tokens={num_tokens}", f"must be from 1 to {MAX_DRAFT_TOKENS}",
                        "choose another num_tokens")


jax.tree_util.register_static(PromptLookup)
Speculation = PromptLookup | DraftModel


def make_draft_state(speculation: Speculation, config: ModelConfig, execution: Execution,
                     num_slots: int, capacity: int,
                     piece: int = PIECE) -> DraftState:
    """Empty; see `model.generation.generate.make_slots`.

    Raises:
        UserError: the draft model has another vocabulary.
    """
    refused_BV = jnp.zeros((num_slots, config.V))
    if isinstance(speculation, PromptLookup):
        return DraftState(refused_BV, tokens_BM=jnp.zeros((num_slots, capacity), jnp.int32))
    if speculation.config.V != config.V:
        raise UserError(f"draft model: {speculation.config.V} tokens", f"the model has {config.V}",
                        "draft with a model of the same tokenizer")
    cache = make_cache(speculation.config, execution, num_slots, capacity, piece=piece)
    return DraftState(refused_BV, cache=cache, config=speculation.config)


@partial(jax.jit, static_argnames="execution", donate_argnames="slots")
def prefill_draft(speculation: DraftModel, slots: Slots, rows_P: jax.Array, tokens_PL: jax.Array,
                  count_P: jax.Array, *, execution: Execution) -> Slots:
    """Reads with the draft model what `model.generation.generate.prefill` reads with the model."""
    cache = _read(speculation, slots.draft.cache, tokens_PL, count_P, execution=execution,
                  rows_B=rows_P)[1]
    return place(slots.replace(draft=slots.draft.replace(cache=cache)))


@partial(jax.jit, donate_argnames="slots")
def start_draft(slots: Slots, rows_P: jax.Array, tokens_PM: jax.Array) -> Slots:
    """Begins to draft in slots whose prompts are read.

    Args:
        rows_P: the slots; a number beyond the last one is none.
        tokens_PM: their prompts, padded.
    """
    state = slots.draft
    refused_BV = state.refused_BV.at[rows_P].set(0, mode="drop")
    tokens_BM = None if state.tokens_BM is None else put_rows(state.tokens_BM, tokens_PM, rows_P)
    return place(slots.replace(draft=state.replace(refused_BV=refused_BV, tokens_BM=tokens_BM)))


@partial(jax.jit, static_argnames=("config", "execution", "num_steps"), donate_argnames="slots")
def decode_drafted(
        params: Params, speculation: Speculation, slots: Slots, num_idle: jax.Array, *,
        config: ModelConfig, execution: Execution,
        num_steps: int) -> tuple[Slots, Drawn, dict[str, jax.Array]]:
    """Does what `model.generation.generate.decode` does, with up to 1 + `speculation.num_tokens`
    tokens a step.

    Returns:
        Also how many tokens were `drafted` and `accepted`.
    """
    def is_running(carry):
        step, slots, *_ = carry
        return (step < num_steps) & (jnp.sum(slots.ask.left_B <= 0) < num_idle)

    def draw_and_check(carry):
        step, slots, drawn, counts = carry
        slots, drawn, token_B, goes_on_B = _draw_first(slots, drawn)
        draft = _draft(speculation, slots, token_B, goes_on_B, execution=execution)
        check = partial(_check, params, speculation, config=config, execution=execution)
        if isinstance(speculation, PromptLookup) and token_B.shape[0] == 1:
            # Often nothing is found, and the step is then one of plain decoding. Among several
            # slots the others would decide which of two programs, rounded apart, reads a token.
            slots, checked = jax.lax.cond(
                draft.count_B[0] > 1, check,
                lambda slots, drawn, draft: check(
                    slots, drawn, draft._replace(tokens_BL=draft.tokens_BL[:, :1])),
                slots, drawn, draft)
        else:
            slots, checked = check(slots, drawn, draft)
        counts = {"drafted": counts["drafted"] + jnp.sum(jnp.maximum(draft.count_B - 1, 0)),
                  "accepted": counts["accepted"] + jnp.sum(checked.count_B - drawn.count_B)}
        return step + 1, slots, checked, counts

    drawn = no_tokens(slots, num_steps * (1 + speculation.num_tokens))
    counts = dict.fromkeys(("drafted", "accepted"), jnp.int32(0))
    _, slots, drawn, counts = jax.lax.while_loop(is_running, draw_and_check,
                                                 (0, slots, drawn, counts))
    return place(slots), *to_host((drawn, counts))


def _draw_first(slots: Slots, drawn: Drawn) -> tuple[Slots, Drawn, jax.Array, jax.Array]:
    """Draws the token that needs no check; returns it, and which slots go on after it."""
    is_active_B = slots.ask.left_B > 0
    sampling, refused_BV = sampling_of(slots.ask, is_active_B), slots.draft.refused_BV
    adjusted_BV = adjust(slots.logits_BV, sampling, slots.seen_BV)
    adjusted_BV = jax.lax.cond(jnp.any(refused_BV > 0), _without, lambda logits_BV, _: logits_BV,
                               adjusted_BV, refused_BV)
    token_B = draw(adjusted_BV, sampling, draw_keys(slots.ask))
    logp_B = log_probability(slots.logits_BV, token_B)
    slots, goes_on_B = count_token(slots, token_B, is_active_B)
    draft = slots.draft.replace(refused_BV=jnp.where(is_active_B[:, None], 0, refused_BV))
    return (slots.replace(draft=draft), record(drawn, slots, token_B, logp_B, is_active_B),
            token_B, goes_on_B)


def _without(logits_BV: jax.Array, refused_BV: jax.Array) -> jax.Array:
    """Logits of max(p - q, 0); of p where that is nothing, as q is zero or p up to rounding."""
    rest_BV = jnp.maximum(jax.nn.softmax(logits_BV, axis=-1) - refused_BV, 0)
    is_refused_B = jnp.any(refused_BV > 0, axis=-1) & jnp.any(rest_BV > 0, axis=-1)
    return jnp.where(is_refused_B[:, None], jnp.log(rest_BV), logits_BV)


def _check(params: Params, speculation: Speculation, slots: Slots, drawn: Drawn, draft: Draft, *,
           config: ModelConfig, execution: Execution) -> tuple[Slots, Drawn]:
    """Reads a draft, and keeps the first token and what is accepted of the others."""
    x_BLD, cache = extend(params, draft.tokens_BL, draft.count_B, slots.cache, config=config,
                          execution=execution)
    logits_BLV = logits(params, x_BLD, config=config, execution=execution)
    slots, drawn, held_B = _accept(slots, drawn, draft, logits_BLV)
    last_B11 = jnp.maximum(held_B, 1)[:, None, None] - 1
    logits_BV = jnp.take_along_axis(logits_BLV, last_B11, axis=1)[:, 0]
    return slots.replace(
        cache=cache.advance(draft.tokens_BL, held_B),
        logits_BV=jnp.where(held_B[:, None] > 0, logits_BV, slots.logits_BV),
        draft=_advance(speculation, slots, draft, held_B, execution=execution)), drawn


def _accept(slots: Slots, drawn: Drawn, draft: Draft,
            logits_BLV: jax.Array) -> tuple[Slots, Drawn, jax.Array]:
    """Accepts or refuses drafted tokens, one after the other.

    Args:
        logits_BLV: after each token of the draft.

    Returns:
        Also held_B: how many tokens of the draft, from the first one on, the answers go on after.
    """
    def accept(j, carry):
        slots, drawn, held_B, goes_on_B = carry
        token_B, logits_BV = draft.tokens_BL[:, 1 + j], logits_BLV[:, j]
        is_tried_B = goes_on_B & (1 + j < draft.count_B)
        sampling = sampling_of(slots.ask, is_tried_B)
        p_BV = _probabilities(adjust(logits_BV, sampling, slots.seen_BV), sampling)
        q_BV = (jax.nn.one_hot(token_B, p_BV.shape[-1]) if draft.q_JBV is None
                else draft.q_JBV[j])
        p_B, q_B = (jnp.take_along_axis(leaf, token_B[:, None], axis=1)[:, 0]
                    for leaf in (p_BV, q_BV))
        chance_B = jax.vmap(jax.random.uniform)(draw_keys(slots.ask, ACCEPT))
        is_accepted_B = is_tried_B & (chance_B * q_B < p_B)
        # A greedy row's next token is the likeliest one whatever was refused.
        is_refused_B = is_tried_B & ~is_accepted_B & (sampling.temperature_B >= GREEDY_BELOW)
        slots, goes_on_B = count_token(slots, token_B, is_accepted_B)
        drawn = record(drawn, slots, token_B, log_probability(logits_BV, token_B), is_accepted_B)
        refused_BV = jnp.where(is_refused_B[:, None], q_BV, slots.draft.refused_BV)
        slots = slots.replace(draft=slots.draft.replace(refused_BV=refused_BV))
        return slots, drawn, held_B + goes_on_B, goes_on_B

    goes_on_B = draft.count_B > 0
    carry = (slots, drawn, goes_on_B.astype(jnp.int32), goes_on_B)
    num_drafted = draft.tokens_BL.shape[1] - 1
    if num_drafted:
        carry = jax.lax.fori_loop(0, num_drafted, accept, carry)
    return carry[:3]


def _probabilities(adjusted_BV: jax.Array, sampling: RowSampling) -> jax.Array:
    """The distribution that `draw` draws from."""
    certain_BV = jax.nn.one_hot(jnp.argmax(adjusted_BV, axis=-1), adjusted_BV.shape[-1])
    is_greedy_B = sampling.temperature_B < GREEDY_BELOW
    return jax.lax.cond(
        jnp.all(is_greedy_B), lambda: certain_BV,
        lambda: jnp.where(is_greedy_B[:, None], certain_BV, jax.nn.softmax(adjusted_BV, axis=-1)))


def _draft(speculation: Speculation, slots: Slots, token_B: jax.Array, goes_on_B: jax.Array, *,
           execution: Execution) -> Draft:
    """Continues token_B, which the caches do not hold yet, by no more tokens than may be drawn."""
    most_B = jnp.where(goes_on_B, jnp.minimum(slots.ask.left_B, speculation.num_tokens), 0)
    if isinstance(speculation, DraftModel):
        return _ask_model(speculation, slots, token_B, goes_on_B + most_B, execution=execution)
    length_B = slots.cache.length_B
    rows_B = jnp.where(goes_on_B, jnp.arange(token_B.shape[0]), token_B.shape[0])
    tokens_BM = slots.draft.tokens_BM.at[rows_B, length_B].set(token_B, mode="drop")
    tokens_BJ, is_found_B = jax.vmap(partial(
        look_up, num_tokens=speculation.num_tokens, ngram=speculation.ngram))(
            tokens_BM, length_B + 1)
    return Draft(jnp.concatenate([token_B[:, None], tokens_BJ], axis=1),
                 goes_on_B + jnp.where(is_found_B, most_B, 0), None, None)


def look_up(tokens_M: jax.Array, length: jax.Array, *, num_tokens: int,
            ngram: int) -> tuple[jax.Array, jax.Array]:
    """What followed the last `ngram` of the first `length` tokens where these occurred before.

    The newest occurrence counts. What follows may reach the end of the tokens and then goes on with
    itself: after the 1-gram of 1 2 1 come 2 1 2 1.

    Returns:
        Drafted tokens_J, and whether the n-gram occurred.
    """
    end_M = jnp.arange(tokens_M.shape[0])       # of an occurrence: the place of what follows it
    occurs_M = (end_M >= ngram) & (end_M < length)
    for back in range(1, ngram + 1):
        occurs_M &= jnp.roll(tokens_M, back) == tokens_M[length - back]
    start = jnp.max(jnp.where(occurs_M, end_M, 0))
    period = jnp.maximum(length - start, 1)
    return tokens_M[start + jnp.arange(num_tokens) % period], start > 0


def _ask_model(speculation: DraftModel, slots: Slots, token_B: jax.Array, count_B: jax.Array, *,
               execution: Execution) -> Draft:
    """Draws a continuation of token_B from the draft model, under the settings of the slots.

    Args:
        count_B: see `Draft`.
    """
    sampling = sampling_of(slots.ask, count_B > 0)
    rows_B = jnp.arange(token_B.shape[0])

    def draw_next(carry, j):
        cache, token_B, seen_BV = carry
        logits_BV, cache = _read(speculation, cache, token_B[:, None],
                                 (j < count_B - 1).astype(jnp.int32), execution=execution)
        adjusted_BV = adjust(logits_BV[:, 0], sampling, seen_BV)
        keys_B = draw_keys(slots.ask, DRAFT, j)
        token_B = draw(adjusted_BV, sampling, keys_B)
        carry = cache, token_B, seen_BV.at[rows_B, token_B].set(True)
        return carry, (token_B, _probabilities(adjusted_BV, sampling))

    before = slots.draft.cache
    (cache, *_), (tokens_JB, q_JBV) = jax.lax.scan(
        draw_next, (before, token_B, slots.seen_BV), jnp.arange(speculation.num_tokens))
    # A decoder forgets tokens as its length shrinks; recurrent states have no such memory.
    cache = before if speculation.config.family == "lstm" else cache.rewind(
        None, before.length_B, before.last_B)
    return Draft(jnp.concatenate([token_B[None], tokens_JB]).T, count_B, q_JBV, cache)


def _advance(speculation: Speculation, slots: Slots, draft: Draft, held_B: jax.Array, *,
             execution: Execution) -> DraftState:
    """Adds the tokens that a step keeps to what drafts are made from."""
    if isinstance(speculation, DraftModel):
        cache = _read(speculation, draft.cache, draft.tokens_BL, held_B, execution=execution)[1]
        return slots.draft.replace(cache=cache)
    tokens_BM, offset_1L = slots.draft.tokens_BM, jnp.arange(draft.tokens_BL.shape[1])[None]
    index_BL = jnp.where(offset_1L < held_B[:, None], slots.cache.length_B[:, None] + offset_1L,
                         tokens_BM.shape[1])
    rows_B1 = jnp.arange(held_B.shape[0])[:, None]
    return slots.draft.replace(
        tokens_BM=tokens_BM.at[rows_B1, index_BL].set(draft.tokens_BL, mode="drop"))


def _read(speculation: DraftModel, cache: Any, tokens_BL: jax.Array, count_B: jax.Array, *,
          execution: Execution, rows_B: jax.Array | None = None) -> tuple[jax.Array, Any]:
    """The draft model's logits_BLV after tokens, and its cache with them."""
    x_BLD, cache = extend(speculation.params, tokens_BL, count_B, cache, config=speculation.config,
                          execution=execution, rows_B=rows_B)
    return (logits(speculation.params, x_BLD, config=speculation.config, execution=execution),
            cache.advance(tokens_BL, count_B, rows_B))
