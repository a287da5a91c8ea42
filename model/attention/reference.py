"""Reference attention in plain einsums, which every other backend must match."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.attention.kind import CAUSAL, NO_EXTRAS, Extras, Kind

MASKED = -1e30  # finite, so that a fully masked row gives no NaN


def document_mask(segment_ids_BL: jax.Array, kind: Kind = CAUSAL,
                  is_global: jax.Array | None = None) -> jax.Array:
    """Mask within each document of packed rows: mask_BLM."""
    index_L = jnp.arange(segment_ids_BL.shape[1])
    visible_LM = _visible(index_L[:, None] - index_L[None], kind, is_global)
    return visible_LM[None] & (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])


def tree_mask(ends_BL: jax.Array, positions_BL: jax.Array, kind: Kind = CAUSAL,
              is_global: jax.Array | None = None) -> jax.Array:
    """Mask within trees of tokens, in which texts that begin alike share their first tokens.

    A token sees its ancestors and itself. Rows hold trees in depth-first order, so the descendants
    of a token follow it without a gap.

    Args:
        ends_BL: of each token, the index after the last of its descendants; 0 is padding.
        positions_BL: depth of each token in its tree.

    Returns:
        mask_BLM.
    """
    index_L = jnp.arange(ends_BL.shape[1])
    is_ancestor_BLM = (index_L[:, None] >= index_L[None])[None] & (
        index_L[None, :, None] < ends_BL[:, None, :])
    distance_BLM = positions_BL[:, :, None] - positions_BL[:, None, :]
    return is_ancestor_BLM & _visible(distance_BLM, kind, is_global)


def cache_mask(positions_BL: jax.Array, keys_BM: jax.Array, kind: Kind = CAUSAL,
               is_global: jax.Array | None = None) -> jax.Array:
    """Mask of tokens at `positions_BL` over the keys of a cache: mask_BLM.

    Args:
        keys_BM: position of each key; negative where there is none.
    """
    keys_BM = keys_BM[:, None]
    return _visible(positions_BL[:, :, None] - keys_BM, kind, is_global) & (keys_BM >= 0)


def _visible(distance: jax.Array, kind: Kind, is_global: jax.Array | None) -> jax.Array:
    """Whether a query sees a key, by the position of the query minus that of the key."""
    visible = distance >= 0 if kind.is_causal else jnp.ones_like(distance, bool)
    if kind.window:
        is_near = jnp.abs(distance) < kind.window
        visible &= is_near if is_global is None else is_near | is_global
    return visible


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


def attend(q_BLHK: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array, mask_BLM: jax.Array,
           kind: Kind = CAUSAL, extras: Extras = NO_EXTRAS) -> jax.Array:
    """Grouped-query attention, softmax in float32; returns out_BLHK in the dtype of `q_BLHK`.

    Args:
        kind: its scale, cap, bias and sinks; what a query sees is the mask's alone.
    """
    weights_BGRLM = attention_weights(q_BLHK, k_BMGK, mask_BLM, kind, extras)
    out_BLGRK = jnp.einsum("BGRLM,BMGK->BLGRK", weights_BGRLM.astype(q_BLHK.dtype), v_BMGK)
    return out_BLGRK.reshape(q_BLHK.shape)


def attend_cache(q_BLHK: jax.Array, k_BGMK: jax.Array, v_BGMK: jax.Array, mask_BLM: jax.Array,
                 kind: Kind = CAUSAL, extras: Extras = NO_EXTRAS) -> jax.Array:
    """`attend` over keys and values as a cache holds them, which it multiplies without a copy."""
    q_BGRLK = jnp.moveaxis(_grouped(q_BLHK, k_BGMK.shape[1]), 1, 3)
    batch, num_groups, num_shared, length, head_size = q_BGRLK.shape
    # Heads that share keys are more queries, Q = R L, of one matmul.
    q_BGQK = q_BGRLK.reshape(batch, num_groups, -1, head_size)
    scores_BGQM = jnp.einsum("BGQK,BGMK->BGQM", q_BGQK, k_BGMK, preferred_element_type=jnp.float32)
    scores_BGRLM = scores_BGQM.reshape(batch, num_groups, num_shared, length, -1)
    weights_BGRLM = _weigh(scores_BGRLM, head_size, mask_BLM, kind, extras)
    weights_BGQM = weights_BGRLM.astype(q_BLHK.dtype).reshape(scores_BGQM.shape)
    out_BGQK = jnp.einsum("BGQM,BGMK->BGQK", weights_BGQM, v_BGMK)
    return jnp.moveaxis(out_BGQK.reshape(q_BGRLK.shape), 3, 1).reshape(q_BLHK.shape)


def attention_weights(q_BLHK: jax.Array, k_BMGK: jax.Array, mask_BLM: jax.Array,
                      kind: Kind = CAUSAL, extras: Extras = NO_EXTRAS) -> jax.Array:
    """The weights that `attend` gives to values: weights_BGRLM, float32."""
    q_BLGRK = _grouped(q_BLHK, k_BMGK.shape[2])
    scores_BGRLM = jnp.einsum("BLGRK,BMGK->BGRLM", q_BLGRK, k_BMGK,
                              preferred_element_type=jnp.float32)
    return _weigh(scores_BGRLM, q_BLHK.shape[-1], mask_BLM, kind, extras)


def _grouped(q_BLHK: jax.Array, num_groups: int) -> jax.Array:
    """Queries by the key and value head that they share."""
    batch, length, num_heads, head_size = q_BLHK.shape
    return q_BLHK.reshape(batch, length, num_groups, num_heads // num_groups, head_size)


def _weigh(scores_BGRLM: jax.Array, head_size: int, mask_BLM: jax.Array, kind: Kind,
           extras: Extras) -> jax.Array:
    """Attention weights of products of queries and keys."""
    grouped = scores_BGRLM.shape[1:3]
    scores_BGRLM *= kind.scale or head_size**-0.5
    if kind.softcap:
        scores_BGRLM = kind.softcap * jnp.tanh(scores_BGRLM / kind.softcap)
    if kind.has_bias:
        bias_BHLM = extras.bias_BHLM
        scores_BGRLM += bias_BHLM.reshape(bias_BHLM.shape[0], *grouped, *bias_BHLM.shape[2:])
    # Added, not `where`: the gradient of `where` would save its mask once per head.
    masked_BLM = jnp.where(mask_BLM, 0, MASKED)
    scores_BGRLM += masked_BLM[:, None, None]
    if kind.has_sinks:
        sinks_BGRLM = extras.sinks_H.astype(jnp.float32).reshape(1, *grouped, 1, 1)
        sinks_BGRLM = jnp.broadcast_to(sinks_BGRLM, (*scores_BGRLM.shape[:-1], 1))
        return softmax(jnp.concatenate([scores_BGRLM, sinks_BGRLM], -1))[..., :-1]
    return softmax(scores_BGRLM)
