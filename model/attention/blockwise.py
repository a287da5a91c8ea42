"""Attention over blocks of keys, on one device or around a ring of devices.

The softmax is accumulated block by block (arXiv 2205.14135, algorithm 1), and the backward pass
recomputes the weights from its normaliser (algorithm 4), so only one block of scores is held at a
time. A query attends to keys of its own document at its own or earlier positions. The mask needs
no row index: the tokens of a row may be on any device, in any order.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.reference import MASKED

KEYS_PER_BLOCK = 1024


class Queries(NamedTuple):
    """Queries with the document and the position of each."""

    q_BLGRK: jax.Array
    segment_ids_BL: jax.Array
    positions_BL: jax.Array


class Keys(NamedTuple):
    """Keys and values with the document and the position of each."""

    k_BMGK: jax.Array
    v_BMGK: jax.Array
    segment_ids_BM: jax.Array
    positions_BM: jax.Array


class Softmax(NamedTuple):
    """Partial attention of each query over the keys processed so far, in float32."""

    out_BGRLK: jax.Array  # values weighted by exp(score - top), not yet divided by `total`
    top_BGRL: jax.Array  # largest score so far
    total_BGRL: jax.Array  # sum of exp(score - top)


def attend_gathered(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                    segment_ids_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """Attention of one shard of queries to all keys and values, gathered at once.

    Runs under `shard_map` over `context`; takes and returns its shard of `attend_documents`.
    """
    keys = Keys(k_BLGK, v_BLGK, segment_ids_BL, positions_BL)
    keys = jax.tree.map(partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True), keys)
    return attend_blocks(q_BLHK, segment_ids_BL, positions_BL, keys, num_hops=1)


def attend_ring(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                segment_ids_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """Attention of one shard of queries to the key shards in turn (arXiv 2310.01889).

    Runs under `shard_map` over `context`; takes and returns its shard of `attend_documents`.
    """
    keys = Keys(k_BLGK, v_BLGK, segment_ids_BL, positions_BL)
    return attend_blocks(q_BLHK, segment_ids_BL, positions_BL, keys,
                         num_hops=jax.lax.axis_size("context"))


def attend_blocks(q_BLHK: jax.Array, segment_ids_BL: jax.Array, positions_BL: jax.Array,
                  keys: Keys, *, num_hops: int) -> jax.Array:
    """Grouped-query attention to `keys` and to those of the next `num_hops` - 1 shards."""
    batch, length, num_heads, head_size = q_BLHK.shape
    num_groups = keys.k_BMGK.shape[2]
    q_BLGRK = q_BLHK.reshape(batch, length, num_groups, num_heads // num_groups, head_size)
    out_BLGRK = _attend(num_hops, Queries(q_BLGRK, segment_ids_BL, positions_BL), keys)
    return out_BLGRK.reshape(q_BLHK.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(num_hops, queries, keys):
    return _forward(num_hops, queries, keys)[0]


def _forward(num_hops, queries, keys):
    """The output and the residuals, whose size does not grow with the ring."""
    state = _no_keys(queries.q_BLGRK)
    if num_hops > 1:
        def hop(carry, _):  # sends the keys on while they are used
            state, keys = carry
            return (_fold(state, queries, keys), _send_to_next(keys)), None

        (state, last), _ = jax.lax.scan(hop, (state, keys), length=num_hops - 1)
    else:
        last = keys
    state = _fold(state, queries, last)
    out_BGRLK = state.out_BGRLK / state.total_BGRL[..., None]
    out_BLGRK = jnp.moveaxis(out_BGRLK, 3, 1).astype(queries.q_BLGRK.dtype)
    log_z_BGRL = state.top_BGRL + jnp.log(state.total_BGRL)
    # Rematerialisation that saves both does not repeat the ring.
    out_BLGRK, log_z_BGRL = checkpoint_name((out_BLGRK, log_z_BGRL), "attention")
    return out_BLGRK, (queries, keys, out_BLGRK, log_z_BGRL)


def _backward(num_hops, residuals, dout_BLGRK):
    """Gradients of queries, keys and values; the latter two move around the ring with them."""
    queries, keys, out_BLGRK, log_z_BGRL = residuals
    delta_BGRL = jnp.einsum("BLGRK,BLGRK->BGRL", out_BLGRK, dout_BLGRK,
                            preferred_element_type=jnp.float32)
    fold = partial(_fold_backward, queries, dout_BLGRK, log_z_BGRL, delta_BGRL)

    def hop(carry, _):
        dq_BLGRK, keys, dk_BMGK, dv_BMGK = carry
        dq_BLGRK, dk_here_BMGK, dv_here_BMGK = fold(dq_BLGRK, keys)
        carry = keys, dk_BMGK + dk_here_BMGK, dv_BMGK + dv_here_BMGK
        return (dq_BLGRK, *(_send_to_next(carry) if num_hops > 1 else carry)), None

    zeros = [jnp.zeros(x.shape, jnp.float32)
             for x in (queries.q_BLGRK, keys.k_BMGK, keys.v_BMGK)]
    carry = (zeros[0], keys, *zeros[1:])
    (dq_BLGRK, _, dk_BMGK, dv_BMGK), _ = jax.lax.scan(hop, carry, length=num_hops)
    return (Queries(dq_BLGRK.astype(queries.q_BLGRK.dtype), None, None),
            Keys(dk_BMGK.astype(keys.k_BMGK.dtype), dv_BMGK.astype(keys.v_BMGK.dtype), None, None))


_attend.defvjp(_forward, _backward)


def _no_keys(q_BLGRK):
    """The state before the first key."""
    batch, length, num_groups, per_group, head_size = q_BLGRK.shape
    shape = (batch, num_groups, per_group, length)
    return Softmax(jnp.zeros((*shape, head_size)), jnp.full(shape, MASKED), jnp.zeros(shape))


def _send_to_next(shard):
    """Sends a shard to the next device of the ring and returns that of the previous one."""
    size = jax.lax.axis_size("context")
    ring = [(i, (i + 1) % size) for i in range(size)]
    return jax.tree.map(partial(jax.lax.ppermute, axis_name="context", perm=ring), shard)


def _split(keys):
    """Cuts keys [B, M, ...] into blocks [blocks, B, m, ...], m the largest that divides M."""
    length = keys.k_BMGK.shape[1]
    size = max(m for m in range(1, min(length, KEYS_PER_BLOCK) + 1) if length % m == 0)
    return jax.tree.map(lambda x: jnp.moveaxis(
        x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0), keys)


def _join(blocks):
    """Undoes `_split`."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _visible(queries, keys):
    """Causal mask within each document, from positions: mask_BLM.

    Equals `document_mask` if positions increase along each document."""
    same_BLM = queries.segment_ids_BL[:, :, None] == keys.segment_ids_BM[:, None, :]
    return same_BLM & (queries.positions_BL[:, :, None] >= keys.positions_BM[:, None, :])


def _scores(queries, keys):
    """Scaled products of queries and keys in float32: scores_BGRLM."""
    return jnp.einsum("BLGRK,BMGK->BGRLM", queries.q_BLGRK, keys.k_BMGK,
                      preferred_element_type=jnp.float32) * queries.q_BLGRK.shape[-1]**-0.5


def _fold(state, queries, keys):
    """Adds a shard of keys to the state; blocks that are masked for all queries are skipped."""
    def take(state, block, mask_BLM):
        scores_BGRLM = jnp.where(mask_BLM[:, None, None], _scores(queries, block), MASKED)
        top_BGRL = jnp.maximum(state.top_BGRL, scores_BGRLM.max(-1))
        shrink_BGRL = jnp.exp(state.top_BGRL - top_BGRL)
        # Before a query's first visible key, masked keys have weight exp(0). That key then scales
        # them by exp(MASKED) = 0; it always exists, as every query attends to itself.
        weights_BGRLM = jnp.exp(scores_BGRLM - top_BGRL[..., None])
        new_BGRLK = jnp.einsum("BGRLM,BMGK->BGRLK", weights_BGRLM.astype(block.v_BMGK.dtype),
                               block.v_BMGK, preferred_element_type=jnp.float32)
        return Softmax(state.out_BGRLK * shrink_BGRL[..., None] + new_BGRLK, top_BGRL,
                       state.total_BGRL * shrink_BGRL + weights_BGRLM.sum(-1))

    def step(state, block):
        mask_BLM = _visible(queries, block)
        return jax.lax.cond(mask_BLM.any(), take, lambda state, *_: state,
                            state, block, mask_BLM), None

    return jax.lax.scan(step, state, _split(keys))[0]


def _fold_backward(queries, dout_BLGRK, log_z_BGRL, delta_BGRL, dq_BLGRK, keys):
    """Adds to the queries' gradient and returns that of a shard of keys."""
    dtype, scale = queries.q_BLGRK.dtype, queries.q_BLGRK.shape[-1]**-0.5
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def take(dq_BLGRK, block, mask_BLM):
        weights_BGRLM = jnp.where(mask_BLM[:, None, None],
                                  jnp.exp(_scores(queries, block) - log_z_BGRL[..., None]), 0)
        dv_BMGK = einsum("BGRLM,BLGRK->BMGK", weights_BGRLM.astype(dtype), dout_BLGRK)
        dweights_BGRLM = einsum("BLGRK,BMGK->BGRLM", dout_BLGRK, block.v_BMGK)
        dscores_BGRLM = weights_BGRLM * (dweights_BGRLM - delta_BGRL[..., None]) * scale
        dscores_BGRLM = dscores_BGRLM.astype(dtype)
        dk_BMGK = einsum("BGRLM,BLGRK->BMGK", dscores_BGRLM, queries.q_BLGRK)
        return dq_BLGRK + einsum("BGRLM,BMGK->BLGRK", dscores_BGRLM, block.k_BMGK), dk_BMGK, dv_BMGK

    def skip(dq_BLGRK, block, mask_BLM):
        zeros_BMGK = jnp.zeros(block.k_BMGK.shape, jnp.float32)
        return dq_BLGRK, zeros_BMGK, zeros_BMGK

    def step(dq_BLGRK, block):
        mask_BLM = _visible(queries, block)
        dq_BLGRK, *dkv_BMGK = jax.lax.cond(mask_BLM.any(), take, skip, dq_BLGRK, block, mask_BLM)
        return dq_BLGRK, dkv_BMGK

    dq_BLGRK, (dk_BMGK, dv_BMGK) = jax.lax.scan(step, dq_BLGRK, _split(keys))
    return dq_BLGRK, _join(dk_BMGK), _join(dv_BMGK)
