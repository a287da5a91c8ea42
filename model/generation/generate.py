"""Generation: prefill and decode with a KV cache, the whole loop in one compiled program."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from core.errors import UserError
from model.config import ModelConfig
from model.families.decoder import Params, extend
from model.generation.cache import Cache, make_cache
from model.heads.language import logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        max_new_tokens: tokens after which an answer ends even without a stop token.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the smallest set of tokens whose probability reaches p (arXiv 1904.09751);
            1 keeps all.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        rules = {"max_new_tokens": (self.max_new_tokens >= 1, "must be at least 1"),
                 "temperature": (self.temperature >= 0, "must not be negative"),
                 "top_k": (self.top_k >= 0, "must not be negative"),
                 "top_p": (0 < self.top_p <= 1, "must be in (0, 1]")}
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name}={getattr(self, name)}", rule, f"choose another {name}")


def sample(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Draws token_B; filters in the order temperature, top-k, top-p."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        logits_BV = jnp.where(_kept(logits_BV, sampling), logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def _kept(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Which tokens survive top-k and top-p; the most likely one always does."""
    order_BV = jnp.argsort(-logits_BV, axis=-1)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    rank_BV = jnp.arange(logits_BV.shape[-1])[None]
    if sampling.top_k:
        sorted_BV = jnp.where(rank_BV < sampling.top_k, sorted_BV, -jnp.inf)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV = (before_BV < sampling.top_p) & (probability_BV > 0)
    rows_B1 = jnp.arange(logits_BV.shape[0])[:, None]
    return jnp.zeros(logits_BV.shape, bool).at[rows_B1, order_BV].set(kept_BV)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def prefill(params: Params, prompts_BL: jax.Array, lengths_B: jax.Array, cache: Cache, *,
            config: ModelConfig) -> tuple[jax.Array, Cache]:
    """Runs right-padded prompts; returns logits_BV of each row's last real token, and the cache.

    Padding is written to the cache too, but lies behind `length_B`, where nothing looks before
    it is overwritten.
    """
    x_BLD, cache = extend(params, prompts_BL, cache, config=config)
    last_BLD = jnp.take_along_axis(x_BLD, (lengths_B - 1)[:, None, None], axis=1)
    return logits(params, last_BLD, config=config)[:, 0], cache.advance(prompts_BL, lengths_B)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def decode(params: Params, token_B: jax.Array, cache: Cache, *,
           config: ModelConfig) -> tuple[jax.Array, Cache]:
    """Runs one token per row; returns logits_BV of the next one, and the cache."""
    token_BL = token_B[:, None]
    x_BLD, cache = extend(params, token_BL, cache, config=config)
    cache = cache.advance(token_BL, jnp.ones_like(token_B))
    return logits(params, x_BLD, config=config)[:, 0], cache


@partial(jax.jit, static_argnames=("config", "sampling", "stop"))
def generate(params: Params, prompts_BL: jax.Array, lengths_B: jax.Array, key: jax.Array, *,
             config: ModelConfig, sampling: Sampling, stop: int) -> tuple[jax.Array, jax.Array]:
    """Answers right-padded prompts.

    Args:
        lengths_B: real tokens of each prompt, at least 1.
        stop: token that ends an answer; it is part of what is returned.

    Returns:
        new_BL: the new tokens, [B, max_new_tokens]; and count_B, how many of them are real.
    """
    batch = prompts_BL.shape[0]
    cache = make_cache(config, batch, prompts_BL.shape[1] + sampling.max_new_tokens)
    logits_BV, cache = prefill(params, prompts_BL, lengths_B, cache, config=config)

    def is_open(carry):
        step, _, _, done_B, *_ = carry
        return (step < sampling.max_new_tokens) & ~jnp.all(done_B)

    def draw(carry):
        step, new_BL, count_B, done_B, logits_BV, cache = carry
        token_B = sample(logits_BV, sampling, jax.random.fold_in(key, step))
        token_B = jnp.where(done_B, stop, token_B)
        new_BL = new_BL.at[:, step].set(token_B)
        count_B = count_B + ~done_B
        logits_BV, cache = decode(params, token_B, cache, config=config)
        return step + 1, new_BL, count_B, done_B | (token_B == stop), logits_BV, cache

    new_BL = jnp.zeros((batch, sampling.max_new_tokens), jnp.int32)
    carry = (0, new_BL, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool), logits_BV, cache)
    _, new_BL, count_B, *_ = jax.lax.while_loop(is_open, draw, carry)
    return new_BL, count_B
