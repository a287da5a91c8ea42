"""Sampling of the next token: temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    Attributes:
        max_new_tokens: longest completion.
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


def sample(logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array) -> jax.Array:
    """Draws token_B; filters in the order temperature, top-k, top-p.

    Args:
        keys_B: a key for each row, so that a row's draw does not depend on the other rows.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        logits_BV = jnp.where(_kept(logits_BV, sampling), logits_BV, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def _kept(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Mask of the tokens that top-k and top-p keep; the most likely one is always kept."""
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
