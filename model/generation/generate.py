"""Generation: prefill and decode with a KV cache, in one compiled program."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, extend, make_cache
from model.generation.sampling import Sampling, sample
from model.heads.language import logits


@partial(jax.jit, static_argnames=("config", "execution"), donate_argnames="cache")
def prefill(params: Params, prompts_BL: jax.Array, lengths_B: jax.Array, cache: Any, *,
            config: ModelConfig, execution: Execution) -> tuple[jax.Array, Any]:
    """Runs right-padded prompts; returns logits_BV of each row's last real token, and the cache.

    Padding is written to the cache too, but after `length_B`, where it is overwritten before any
    token attends to it.
    """
    x_BLD, cache = extend(params, prompts_BL, cache, config=config, execution=execution)
    last_BLD = jnp.take_along_axis(x_BLD, (lengths_B - 1)[:, None, None], axis=1)
    logits_BLV = logits(params, last_BLD, config=config, execution=execution)
    return logits_BLV[:, 0], cache.advance(prompts_BL, lengths_B)


@partial(jax.jit, static_argnames=("config", "execution"), donate_argnames="cache")
def decode(params: Params, token_B: jax.Array, cache: Any, *, config: ModelConfig,
           execution: Execution) -> tuple[jax.Array, Any]:
    """Runs one token per row; returns logits_BV of the next one, and the cache."""
    token_BL = token_B[:, None]
    x_BLD, cache = extend(params, token_BL, cache, config=config, execution=execution)
    cache = cache.advance(token_BL, jnp.ones_like(token_B))
    return logits(params, x_BLD, config=config, execution=execution)[:, 0], cache


@partial(jax.jit, static_argnames=("config", "execution", "sampling", "stops"))
def generate(params: Params, prompts_BL: jax.Array, lengths_B: jax.Array, keys_B: jax.Array, *,
             config: ModelConfig, execution: Execution, sampling: Sampling,
             stops: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Samples completions of right-padded prompts.

    Args:
        lengths_B: tokens of each prompt without padding, at least 1.
        keys_B: PRNG key of each row.
        stops: tokens that end a completion; the one drawn is included in the result.

    Returns:
        new_BL: the new tokens, [B, max_new_tokens]; and count_B, how many of them are valid.
    """
    batch = prompts_BL.shape[0]
    cache = make_cache(config, execution, batch, prompts_BL.shape[1] + sampling.max_new_tokens)
    logits_BV, cache = prefill(params, prompts_BL, lengths_B, cache, config=config,
                               execution=execution)

    def is_running(carry):
        step, _, _, done_B, *_ = carry
        return (step < sampling.max_new_tokens) & ~jnp.all(done_B)

    def draw(carry):
        step, new_BL, count_B, done_B, logits_BV, cache = carry
        step_keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, step)
        token_B = sample(logits_BV, sampling, step_keys_B)
        token_B = jnp.where(done_B, stops[0], token_B)
        new_BL = new_BL.at[:, step].set(token_B)
        count_B = count_B + ~done_B
        logits_BV, cache = decode(params, token_B, cache, config=config, execution=execution)
        done_B |= jnp.isin(token_B, np.array(stops))
        return step + 1, new_BL, count_B, done_B, logits_BV, cache

    new_BL = jnp.zeros((batch, sampling.max_new_tokens), jnp.int32)
    carry = (0, new_BL, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool), logits_BV, cache)
    _, new_BL, count_B, *_ = jax.lax.while_loop(is_running, draw, carry)
    return new_BL, count_B
