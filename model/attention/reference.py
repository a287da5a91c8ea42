"""Reference attention in plain einsums, which every other backend must match."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a fully masked row gives no NaN


def document_mask(segment_ids_BL: jax.Array) -> jax.Array:
    """Causal mask within each document of packed rows: mask_BLM."""
    length = segment_ids_BL.shape[1]
    causal_LM = jnp.tril(jnp.ones((length, length), bool))
    return causal_LM[None] & (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])


def cache_mask(length_B: jax.Array, num_new: int, capacity: int) -> jax.Array:
    """Causal mask of `num_new` tokens that follow `length_B` cached ones: mask_BLM."""
    position_BL = length_B[:, None] + jnp.arange(num_new)[None]
    return jnp.arange(capacity)[None, None] <= position_BL[:, :, None]


@jax.custom_jvp
def softmax(scores: jax.Array) -> jax.Array:
    """Softmax over the last axis, whose gradient saves only the weights.

    `jax.nn.softmax` saves the exponentials as well, a second tensor of that size.
    """
    return jax.nn.softmax(scores, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    weights, (tangent,) = softmax(*primals), tangents
    return weights, weights * (tangent - (weights * tangent).sum(-1, keepdims=True))


def attend(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array,
           mask_BLM: jax.Array) -> jax.Array:
    """Grouped-query attention, softmax in float32; returns out_BLHK in the dtype of `q_BLHK`."""
    batch, length, num_heads, head_size = q_BLHK.shape
    num_groups = k_BMGK.shape[2]
    q_BLGRK = q_BLHK.reshape(batch, length, num_groups, num_heads // num_groups, head_size)
    scores_BGRLM = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK,
                              preferred_element_type=jnp.float32) * head_size**-0.5
    # Added, not `where`: the gradient of `where` would save its mask once per head.
    masked_BLM = jnp.where(mask_BLM, 0, MASKED)
    weights_BGRLM = softmax(scores_BGRLM + masked_BLM[:, None, None]).astype(q_BLHK.dtype)
    out_BLGRK = jnp.einsum("BGRLM,BMGK->BLGRK", weights_BGRLM, v_BMGK)
    return out_BLGRK.reshape(q_BLHK.shape)
