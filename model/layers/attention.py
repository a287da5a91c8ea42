"""The attention layer: projections, norms of queries and keys, RoPE, attention, projection back."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.backends import attend_documents
from model.attention.reference import attend, cache_mask
from model.layers.matmul import project
from model.layers.norms import rms_norm
from model.layers.positions import rotate
from model.parallel.sharding import constrain

# (k_BMGK, v_BMGK, length_B): keys and values of earlier tokens, and their number in each row.
LayerCache = tuple[jax.Array, jax.Array, jax.Array]


def attention(block: nn.Module, h_BLD: jax.Array, positions_BL: jax.Array,
              segment_ids_BL: jax.Array | None,
              cached: LayerCache | None) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Grouped-query self-attention (arXiv 2305.13245).

    Args:
        block: the layer that declares the weights; see `model.families.decoder.Block`.
        h_BLD: normed hidden states.
        segment_ids_BL: document of each token; a token attends inside its own document.
        cached: None, or the cache that the new keys and values are written to at `length_B`;
            attention then runs over its whole capacity M.

    Returns:
        The addition to the residual stream, [B, L, D], and the updated (k_BMGK, v_BMGK) or None.
    """
    c, execution = block.config, block.execution
    wq_DHK = block.weight("wq_DHK", (c.D, c.H, c.K), c.D)
    wk_DGK = block.weight("wk_DGK", (c.D, c.G, c.K), c.D)
    wv_DGK = block.weight("wv_DGK", (c.D, c.G, c.K), c.D)
    q_BLHK = project("BLD,DHK->BLHK", h_BLD, wq_DHK, execution)
    k_BLGK = project("BLD,DGK->BLGK", h_BLD, wk_DGK, execution)
    v_BLGK = project("BLD,DGK->BLGK", h_BLD, wv_DGK, execution)
    if c.qk_norm:
        q_BLHK = rms_norm(q_BLHK, block.ones("q_norm_K", c.K), c.norm_eps)
        k_BLGK = rms_norm(k_BLGK, block.ones("k_norm_K", c.K), c.norm_eps)
    q_BLHK = rotate(q_BLHK, positions_BL, c.rope_theta)
    k_BLGK = rotate(k_BLGK, positions_BL, c.rope_theta)
    # Constrains gradients too: otherwise XLA shards attention's backward pass over L.
    q_BLHK = checkpoint_name(constrain(q_BLHK, "BLHK"), "qkv")
    k_BLGK = checkpoint_name(constrain(k_BLGK, "BLGK"), "qkv")
    v_BLGK = checkpoint_name(constrain(v_BLGK, "BLGK"), "qkv")
    if cached is None:
        updated = None
        out_BLHK = attend_documents(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL,
                                    config=c, execution=execution)
    else:
        mask_BLM = cache_mask(cached[2], h_BLD.shape[1], cached[0].shape[1])
        updated = _write(cached, k_BLGK, v_BLGK)
        out_BLHK = attend(q_BLHK, *updated, mask_BLM)
    out_BLHK = checkpoint_name(constrain(out_BLHK, "BLHK"), "attention")
    wo_HKD = block.weight("wo_HKD", (c.H, c.K, c.D), c.H * c.K, block.residual_scale)
    return project("BLHK,HKD->BLD", out_BLHK, wo_HKD, execution), updated


def _write(cached: LayerCache, k_BLGK: jax.Array,
           v_BLGK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Writes new keys and values after the cached ones of each row."""
    k_BMGK, v_BMGK, length_B = cached
    rows_BL = jnp.arange(k_BLGK.shape[0])[:, None]
    index_BL = length_B[:, None] + jnp.arange(k_BLGK.shape[1])[None]
    return k_BMGK.at[rows_BL, index_BL].set(k_BLGK), v_BMGK.at[rows_BL, index_BL].set(v_BLGK)
