"""The decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU.

The block is a linen module used purely; the stack is plain JAX: `vmap` of `init` for stacked
parameters, `lax.scan` over `apply`. A KV cache is an argument and a result.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.backends import attend_documents
from model.attention.reference import attend, cache_mask
from model.config import ModelConfig
from model.generation.cache import Cache
from model.layers.experts import mix_experts, summarise
from model.layers.matmul import project
from model.layers.positions import rotate
from model.parallel.pipeline import run_layers
from model.parallel.sharding import HEAD_RULES, STREAM_RULES, constrain

# {"embed_VD", "embed_previous_VD" if embed_previous, "blocks": {name: [N, ...]}, "final_norm_D",
#  "head_DV" unless tied}
Params = Any


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm over the last axis in float32 (arXiv 1910.07467, equation 4), in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (normed * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and added to the residual stream."""

    config: ModelConfig

    @property
    def residual_scale(self) -> float:
        """Of what writes into the stream: keeps its variance independent of depth."""
        return (2 * self.config.N) ** -0.5

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int, scale: float = 1.0):
        """A float32 master weight of standard deviation scale/sqrt(fan_in)."""
        init = nn.initializers.normal(scale * fan_in**-0.5)
        return self.param(name, init, shape, jnp.float32)

    @nn.compact
    def __call__(self, x_BLD, positions_BL, segment_ids_BL=None, cached=None):
        """Runs the layer over packed rows, or, given a cache, over new tokens behind it.

        Args:
            segment_ids_BL: document of each token; a token sees only its own document.
            cached: None, or (k_BMGK, v_BMGK, length_B): the new keys and values are written
                behind `length_B`, and attention runs over the whole capacity M.

        Returns:
            x_BLD, the updated (k_BMGK, v_BMGK) or None, and the layer's statistics.
        """
        c = self.config
        ones = nn.initializers.ones_init()

        h_BLD = rms_norm(x_BLD, self.param("attn_norm_D", ones, (c.D,)), c.norm_eps)
        h_BLD = constrain(h_BLD, "BLD")  # gathers the positions that the stream had over `tensor`
        wq_DHK = self.weight("wq_DHK", (c.D, c.H, c.K), c.D)
        wk_DGK = self.weight("wk_DGK", (c.D, c.G, c.K), c.D)
        wv_DGK = self.weight("wv_DGK", (c.D, c.G, c.K), c.D)
        q_BLHK = project("BLD,DHK->BLHK", h_BLD, wq_DHK, config=c)
        k_BLGK = project("BLD,DGK->BLGK", h_BLD, wk_DGK, config=c)
        v_BLGK = project("BLD,DGK->BLGK", h_BLD, wv_DGK, config=c)
        if c.qk_norm:
            q_BLHK = rms_norm(q_BLHK, self.param("q_norm_K", ones, (c.K,)), c.norm_eps)
            k_BLGK = rms_norm(k_BLGK, self.param("k_norm_K", ones, (c.K,)), c.norm_eps)
        q_BLHK = rotate(q_BLHK, positions_BL, c.rope_theta)
        k_BLGK = rotate(k_BLGK, positions_BL, c.rope_theta)
        # Gradients take these places too; left alone, XLA cuts attention's backward pass by L.
        q_BLHK = checkpoint_name(constrain(q_BLHK, "BLHK"), "qkv")
        k_BLGK = checkpoint_name(constrain(k_BLGK, "BLGK"), "qkv")
        v_BLGK = checkpoint_name(constrain(v_BLGK, "BLGK"), "qkv")
        if cached is None:
            out_BLHK = attend_documents(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL,
                                        config=c)
        else:
            mask_BLM = cache_mask(cached[2], x_BLD.shape[1], cached[0].shape[1])
            cached = _write(cached, k_BLGK, v_BLGK)
            out_BLHK = attend(q_BLHK, *cached, mask_BLM)
        out_BLHK = checkpoint_name(constrain(out_BLHK, "BLHK"), "attention")
        wo_HKD = self.weight("wo_HKD", (c.H, c.K, c.D), c.H * c.K, self.residual_scale)
        x_BLD = x_BLD + project("BLHK,HKD->BLD", out_BLHK, wo_HKD, config=c)
        x_BLD = checkpoint_name(constrain(x_BLD, "BLD", STREAM_RULES), "residual")

        h_BLD = rms_norm(x_BLD, self.param("mlp_norm_D", ones, (c.D,)), c.norm_eps)
        h_BLD = constrain(h_BLD, "BLD")
        if c.E:
            mlp_BLD, stats = self.mix(h_BLD, segment_ids_BL)
        else:
            mlp_BLD, stats = self.mlp(h_BLD), {}
        return constrain(x_BLD + mlp_BLD, "BLD", STREAM_RULES), cached, stats

    def mlp(self, h_BLD):
        """The dense SwiGLU MLP (arXiv 2002.05202)."""
        c = self.config
        w_gate_DF = self.weight("w_gate_DF", (c.D, c.F), c.D)
        w_up_DF = self.weight("w_up_DF", (c.D, c.F), c.D)
        w_down_FD = self.weight("w_down_FD", (c.F, c.D), c.F, self.residual_scale)
        gate_BLF = checkpoint_name(project("BLD,DF->BLF", h_BLD, w_gate_DF, config=c), "hidden")
        up_BLF = checkpoint_name(project("BLD,DF->BLF", h_BLD, w_up_DF, config=c), "hidden")
        hidden_BLF = constrain(jax.nn.silu(gate_BLF) * up_BLF, "BLF")
        return project("BLF,FD->BLD", hidden_BLF, w_down_FD, config=c)

    def mix(self, h_BLD, segment_ids_BL):
        """The experts, each such an MLP, and their statistics."""
        c = self.config
        weights = {
            "router_DE": self.weight("router_DE", (c.D, c.E), c.D),
            "w_gate_EDF": self.weight("w_gate_EDF", (c.E, c.D, c.F), c.D),
            "w_up_EDF": self.weight("w_up_EDF", (c.E, c.D, c.F), c.D),
            "w_down_EFD": self.weight("w_down_EFD", (c.E, c.F, c.D), c.F, self.residual_scale),
        }
        is_token_BL = (jnp.ones(h_BLD.shape[:2], bool) if segment_ids_BL is None
                       else segment_ids_BL > 0)
        return mix_experts(h_BLD, is_token_BL, weights, config=c)


def _write(cached, k_BLGK, v_BLGK):
    """Writes new keys and values behind the cached ones of each row."""
    k_BMGK, v_BMGK, length_B = cached
    rows_BL = jnp.arange(k_BLGK.shape[0])[:, None]
    index_BL = length_B[:, None] + jnp.arange(k_BLGK.shape[1])[None]
    return (k_BMGK.at[rows_BL, index_BL].set(k_BLGK), v_BMGK.at[rows_BL, index_BL].set(v_BLGK))


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters; blocks are stacked along a leading axis N."""
    embed_key, previous_key, blocks_key, head_key = jax.random.split(key, 4)
    x_BLD = jnp.zeros((1, 1, config.D), config.dtype)
    zeros_BL = jnp.zeros((1, 1), jnp.int32)

    def init_block(block_key):
        return Block(config).init(block_key, x_BLD, zeros_BL, zeros_BL)["params"]

    # A tied embedding is also the head, so it starts at the head's scale.
    embed_scale = config.D**-0.5 if config.tied else 1.0
    params = {
        "embed_VD": embed_scale * jax.random.normal(embed_key, (config.V, config.D)),
        "blocks": jax.vmap(init_block)(jax.random.split(blocks_key, config.N)),
        "final_norm_D": jnp.ones(config.D),
    }
    if config.embed_previous:  # quieter than the token itself, at first
        params["embed_previous_VD"] = 0.3 * embed_scale * jax.random.normal(
            previous_key, (config.V, config.D))
    if not config.tied:
        params["head_DV"] = 0.1 * config.D**-0.5 * jax.random.normal(head_key, (config.D, config.V))
    return params


def embed(params: Params, config: ModelConfig, tokens_BL: jax.Array,
          previous_BL: jax.Array) -> jax.Array:
    """Looks tokens up and brings them to unit scale.

    Args:
        previous_BL: the token before each; -1 where its document has none.

    Returns:
        x_BLD in the compute dtype.
    """
    def look_up(table_VD, indices_BL):  # whole rows, as B has the mesh axis that cuts D at rest
        return constrain(constrain(table_VD.astype(config.dtype), "VD")[indices_BL], "BLD")

    x_BLD = look_up(params["embed_VD"], tokens_BL)
    if config.embed_previous:
        previous_BLD = look_up(params["embed_previous_VD"], previous_BL)
        x_BLD = x_BLD + jnp.where(previous_BL[:, :, None] >= 0, previous_BLD, 0)
    return constrain(x_BLD * (config.D**0.5 if config.tied else 1.0), "BLD", STREAM_RULES)


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, *,
                       config: ModelConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full forward pass over packed rows, up to the last norm.

    Args:
        positions_BL: position of each token in its document.
        segment_ids_BL: document of each token; a token sees only its own document.

    Returns:
        x_BLD: hidden states; `logits` or a loss in `model.heads.language` takes them from there.
        Statistics of the layers, each [N].
    """
    previous_BL = jnp.where(positions_BL > 0, jnp.roll(tokens_BL, 1, axis=1), -1)
    x_BLD = embed(params, config, tokens_BL, previous_BL)

    def layer(x_BLD, block, positions_BL, segment_ids_BL):
        x_BLD, _, stats = Block(config).apply({"params": block}, x_BLD, positions_BL,
                                              segment_ids_BL)
        return x_BLD, stats

    x_BLD, stats = run_layers(layer, params["blocks"], x_BLD, positions_BL, segment_ids_BL,
                              config=config)
    x_BLD = rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)
    return constrain(x_BLD, "BLD", HEAD_RULES), summarise(stats) if config.E else {}


def forward(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
            segment_ids_BL: jax.Array, *, config: ModelConfig) -> jax.Array:
    """The hidden states x_BLD of `forward_with_stats` alone."""
    return forward_with_stats(params, tokens_BL, positions_BL, segment_ids_BL, config=config)[0]


def extend(params: Params, tokens_BL: jax.Array, cache: Cache, *,
           config: ModelConfig) -> tuple[jax.Array, Cache]:
    """Runs new tokens behind those in the cache; prefill and decode are this one function.

    Args:
        tokens_BL: the new tokens; the caller says with `Cache.advance` how many are real.

    Returns:
        x_BLD of the new tokens, and the cache with their keys and values, not yet advanced.
    """
    positions_BL = cache.length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]

    # The cache is carried, not scanned over, so that its one new entry is written in place.
    def layer(carry, block_and_index):
        x_BLD, k_NBMGK, v_NBMGK = carry
        block, n = block_and_index
        x_BLD, (k_BMGK, v_BMGK), _ = Block(config).apply(
            {"params": block}, x_BLD, positions_BL,
            cached=(k_NBMGK[n], v_NBMGK[n], cache.length_B))
        return (x_BLD, k_NBMGK.at[n].set(k_BMGK), v_NBMGK.at[n].set(v_BMGK)), None

    previous_BL = jnp.concatenate([cache.last_B[:, None], tokens_BL[:, :-1]], axis=1)
    x_BLD = embed(params, config, tokens_BL, previous_BL)
    carry = (x_BLD, cache.k_NBMGK, cache.v_NBMGK)
    (x_BLD, k_NBMGK, v_NBMGK), _ = jax.lax.scan(
        layer, carry, (params["blocks"], jnp.arange(config.N)))
    x_BLD = rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)
    return x_BLD, cache.replace(k_NBMGK=k_NBMGK, v_NBMGK=v_NBMGK)


def num_params(config: ModelConfig) -> int:
    """Counts the parameters without making them."""
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
