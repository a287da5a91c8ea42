"""The attention layer: projections, norms of queries and keys, RoPE, attention, projection back."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.backends import attend_documents
from model.attention.kind import Extras
from model.attention.reference import attend, attend_cache, cache_mask
from model.config import ModelConfig
from model.generation.cache import LayerCache, Place
from model.layers.positions import rope_frequencies, rope_scale, rotate
from model.parallel.sharding import constrain


def attention(block: nn.Module, h_BLD: jax.Array, positions_BL: jax.Array,
              segment_ids_BL: jax.Array | None, cached: tuple[LayerCache, Place] | None,
              extras: Extras) -> tuple[jax.Array, LayerCache | None]:
    """Grouped-query self-attention (arXiv 2305.13245).

    Args:
        block: the layer that declares the weights; see `model.families.decoder.Block`.
        h_BLD: its input, normed where the layer norms it.
        segment_ids_BL: document of each token; a token attends inside its own document.
        cached: None, or the cache that the new keys and values are written to; attention then runs
            over it.
        extras: of the layer and its tokens; the sinks are the layer's own weights.

    Returns:
        The addition to the residual stream, [B, L, D], and the layer's updated cache or None.
    """
    c, execution, kind = block.config, block.execution, block.kind
    q_BLHK, k_BLGK, v_BLGK = project_tokens(block, h_BLD, positions_BL, extras)
    # Constrains gradients too: otherwise XLA shards attention's backward pass over L.
    q_BLHK = checkpoint_name(constrain(q_BLHK, "BLHK"), "qkv")
    k_BLGK = checkpoint_name(constrain(k_BLGK, "BLGK"), "qkv")
    v_BLGK = checkpoint_name(constrain(v_BLGK, "BLGK"), "qkv")
    extras = with_sinks(block, extras)
    if cached is None:
        updated = None
        out_BLHK = attend_documents(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL,
                                    kind=kind, extras=extras, execution=execution)
    else:
        layer, place = cached
        updated = layer.write(k_BLGK, v_BLGK, place)
        k_BGMK, v_BGMK, keys_BM = updated.read(place, q_BLHK.dtype)
        mask_BLM = cache_mask(positions_BL, keys_BM, kind, extras.is_global)
        out_BLHK = attend_cache(q_BLHK, k_BGMK, v_BGMK, mask_BLM, kind, extras)
    out_BLHK = checkpoint_name(constrain(out_BLHK, "BLHK"), "attention")
    return block.linear("wo", "BLHK,HKD->BLD", out_BLHK, bias=c.attention_out_bias,
                        scale=block.depth_scale), updated


def project_tokens(block: nn.Module, h_BLD: jax.Array, positions_BL: jax.Array,
                   extras: Extras) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q_BLHK, k_BLGK and v_BLGK as attention compares them: normed and rotated where they are."""
    c = block.config
    q_BLHK = block.linear("wq", "BLD,DHK->BLHK", h_BLD, bias=c.attention_bias)
    k_BLGK = block.linear("wk", "BLD,DGK->BLGK", h_BLD, bias=c.attention_bias)
    v_BLGK = block.linear("wv", "BLD,DGK->BLGK", h_BLD, bias=c.attention_bias)
    if c.qk_norm:
        q_BLHK, k_BLGK = block.norm("q_norm", q_BLHK, "K"), block.norm("k_norm", k_BLGK, "K")
    if c.positions == "rope":
        frequency_K, scale = _layer_frequencies(c, extras.is_global), rope_scale(c)
        q_BLHK = rotate(q_BLHK, positions_BL, frequency_K, scale)
        k_BLGK = rotate(k_BLGK, positions_BL, frequency_K, scale)
    return q_BLHK, k_BLGK, v_BLGK


def with_sinks(block: nn.Module, extras: Extras) -> Extras:
    """The extras with the layer's own sinks, if it has any."""
    if not block.kind.has_sinks:
        return extras
    return extras._replace(sinks_H=block.zeros("sinks_H", (block.config.H,)))


def cross_attention(block: nn.Module, h_BLD: jax.Array, k_BMGK: jax.Array, v_BMGK: jax.Array,
                    mask_BLM: jax.Array) -> jax.Array:
    """Attention to keys and values of another sequence (arXiv 1706.03762, section 3.2.3).

    Args:
        k_BMGK, v_BMGK: see `project_source`.
        mask_BLM: which of them a token sees.
    """
    c = block.config
    q_BLHK = block.linear("cross_wq", "BLD,DHK->BLHK", h_BLD, bias=c.attention_bias)
    out_BLHK = attend(constrain(q_BLHK, "BLHK"), k_BMGK, v_BMGK, mask_BLM, block.kind._replace(
        has_bias=False, has_sinks=False))
    return block.linear("cross_wo", "BLHK,HKD->BLD", constrain(out_BLHK, "BLHK"),
                        bias=c.attention_out_bias, scale=block.depth_scale)


def project_source(block: nn.Module, source_BMD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values of the other sequence for one layer's `cross_attention`."""
    bias = block.config.attention_bias
    return (constrain(block.linear("cross_wk", "BMD,DGK->BMGK", source_BMD, bias=bias), "BLGK"),
            constrain(block.linear("cross_wv", "BMD,DGK->BMGK", source_BMD, bias=bias), "BLGK"))


def _layer_frequencies(config: ModelConfig, is_global: jax.Array | None) -> jax.Array:
    """RoPE frequencies of a layer; where some are global, of the kind that this one is."""
    frequency_K = jnp.asarray(rope_frequencies(config))
    if is_global is None:
        return frequency_K
    return jnp.where(is_global, frequency_K, jnp.asarray(rope_frequencies(config, is_local=True)))
