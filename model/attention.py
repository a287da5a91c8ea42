"""Attention: rotary positions, the document mask, grouped-query attention, the KV cache."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

from model.config import ModelConfig

MASKED = -1e30  # finite, so that a fully masked row stays a number


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, for all layers.

    Attributes:
        k_NBMGK: keys, already rotated.
        v_NBMGK: values.
        length_B: tokens held per row; the next token is written at this index.
        last_B: the newest token of each row; -1 in an empty cache.
    """

    k_NBMGK: jax.Array
    v_NBMGK: jax.Array
    length_B: jax.Array
    last_B: jax.Array

    def advance(self, tokens_BL: jax.Array, count_B: jax.Array) -> Cache:
        """Takes the first `count_B` (at least 1) of each row's written tokens as real."""
        last_BL = jnp.take_along_axis(tokens_BL, count_B[:, None] - 1, axis=1)
        return self.replace(length_B=self.length_B + count_B, last_B=last_BL[:, 0])


def make_cache(config: ModelConfig, batch_size: int, capacity: int) -> Cache:
    """An empty cache for `batch_size` rows of up to `capacity` tokens, in the compute dtype."""
    shape = (config.N, batch_size, capacity, config.G, config.K)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype),
                 jnp.zeros(batch_size, jnp.int32), jnp.full(batch_size, -1, jnp.int32))


def rotate(x_BLHK: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding: turns the pairs (i, i + K/2) (arXiv 2104.09864, equation 34)."""
    half = x_BLHK.shape[-1] // 2
    frequency_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BLHK = positions_BL.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None]
    cos_BLHK, sin_BLHK = jnp.cos(angle_BLHK), jnp.sin(angle_BLHK)
    first_BLHK, second_BLHK = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned_BLHK = jnp.concatenate([first_BLHK * cos_BLHK - second_BLHK * sin_BLHK,
                                   second_BLHK * cos_BLHK + first_BLHK * sin_BLHK], axis=-1)
    return turned_BLHK.astype(x_BLHK.dtype)


def document_mask(segment_ids_BL: jax.Array) -> jax.Array:
    """Who may look at whom in packed rows: mask_BLM is causal and inside one document."""
    length = segment_ids_BL.shape[1]
    causal_LM = jnp.tril(jnp.ones((length, length), bool))
    return causal_LM[None] & (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])


def cache_mask(length_B: jax.Array, num_new: int, capacity: int) -> jax.Array:
    """Who may look at whom when `num_new` tokens follow `length_B` cached ones: mask_BLM."""
    position_BL = length_B[:, None] + jnp.arange(num_new)[None]
    return jnp.arange(capacity)[None, None] <= position_BL[:, :, None]


def attend(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array,
           mask_BLM: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax in float32; returns out_BLHK in the dtype of `q_BLHK`."""
    batch, length, num_heads, head_size = q_BLHK.shape
    num_groups = k_BMGK.shape[2]
    q_BLGRK = q_BLHK.reshape(batch, length, num_groups, num_heads // num_groups, head_size)
    scores_BGRLM = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK,
                              preferred_element_type=jnp.float32) * head_size**-0.5
    scores_BGRLM = jnp.where(mask_BLM[:, None, None], scores_BGRLM, MASKED)
    weights_BGRLM = jax.nn.softmax(scores_BGRLM, axis=-1).astype(q_BLHK.dtype)
    out_BLGRK = jnp.einsum("BGRLM,BMGK->BLGRK", weights_BGRLM, v_BMGK)
    return out_BLGRK.reshape(q_BLHK.shape)
