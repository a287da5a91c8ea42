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

from model.attention import Cache, attend, cache_mask, document_mask, rotate
from model.config import ModelConfig
from model.sharding import constrain

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

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int, scale: float = 1.0):
        """A float32 master weight of standard deviation scale/sqrt(fan_in), cast at use."""
        init = nn.initializers.normal(scale * fan_in**-0.5)
        return self.param(name, init, shape, jnp.float32).astype(self.config.dtype)

    @nn.compact
    def __call__(self, x_BLD, positions_BL, mask_BLM, cached=None):
        """Runs the layer.

        Args:
            cached: None, or (k_BMGK, v_BMGK, length_B): the new keys and values are written
                behind `length_B`, and attention runs over the whole capacity M.

        Returns:
            x_BLD, and the updated (k_BMGK, v_BMGK) or None.
        """
        c = self.config
        residual_scale = (2 * c.N) ** -0.5  # keeps the stream's variance independent of depth
        ones = nn.initializers.ones_init()

        h_BLD = rms_norm(x_BLD, self.param("attn_norm_D", ones, (c.D,)), c.norm_eps)
        q_BLHK = jnp.einsum("BLD,DHK->BLHK", h_BLD, self.weight("wq_DHK", (c.D, c.H, c.K), c.D))
        k_BLGK = jnp.einsum("BLD,DGK->BLGK", h_BLD, self.weight("wk_DGK", (c.D, c.G, c.K), c.D))
        v_BLGK = jnp.einsum("BLD,DGK->BLGK", h_BLD, self.weight("wv_DGK", (c.D, c.G, c.K), c.D))
        if c.qk_norm:
            q_BLHK = rms_norm(q_BLHK, self.param("q_norm_K", ones, (c.K,)), c.norm_eps)
            k_BLGK = rms_norm(k_BLGK, self.param("k_norm_K", ones, (c.K,)), c.norm_eps)
        q_BLHK = rotate(q_BLHK, positions_BL, c.rope_theta)
        k_BLGK = rotate(k_BLGK, positions_BL, c.rope_theta)
        if cached is not None:
            k_BLGK, v_BLGK = cached = _write(cached, k_BLGK, v_BLGK)
        out_BLHK = attend(q_BLHK, k_BLGK, v_BLGK, mask_BLM)
        wo_HKD = self.weight("wo_HKD", (c.H, c.K, c.D), c.H * c.K, residual_scale)
        x_BLD = constrain(x_BLD + jnp.einsum("BLHK,HKD->BLD", out_BLHK, wo_HKD), "BLD")

        h_BLD = rms_norm(x_BLD, self.param("mlp_norm_D", ones, (c.D,)), c.norm_eps)
        gate_BLF = jnp.einsum("BLD,DF->BLF", h_BLD, self.weight("w_gate_DF", (c.D, c.F), c.D))
        up_BLF = jnp.einsum("BLD,DF->BLF", h_BLD, self.weight("w_up_DF", (c.D, c.F), c.D))
        hidden_BLF = constrain(jax.nn.silu(gate_BLF) * up_BLF, "BLF")
        w_down_FD = self.weight("w_down_FD", (c.F, c.D), c.F, residual_scale)
        x_BLD = constrain(x_BLD + jnp.einsum("BLF,FD->BLD", hidden_BLF, w_down_FD), "BLD")
        return x_BLD, cached


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
    positions_BL, mask_BLM = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)

    def init_block(block_key):
        return Block(config).init(block_key, x_BLD, positions_BL, mask_BLM)["params"]

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


def _remat(function, policy: str):
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                "full": jax.checkpoint_policies.nothing_saveable}
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=policies[policy], prevent_cse=False)


def embed(params: Params, config: ModelConfig, tokens_BL: jax.Array,
          previous_BL: jax.Array) -> jax.Array:
    """Looks tokens up and brings them to unit scale.

    Args:
        previous_BL: the token before each; -1 where its document has none.

    Returns:
        x_BLD in the compute dtype.
    """
    x_BLD = params["embed_VD"].astype(config.dtype)[tokens_BL]
    if config.embed_previous:
        previous_BLD = params["embed_previous_VD"].astype(config.dtype)[previous_BL]
        x_BLD = x_BLD + jnp.where(previous_BL[:, :, None] >= 0, previous_BLD, 0)
    return constrain(x_BLD * (config.D**0.5 if config.tied else 1.0), "BLD")


def forward(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
            segment_ids_BL: jax.Array, *, config: ModelConfig) -> jax.Array:
    """The full forward pass over packed rows, up to the last norm.

    Args:
        positions_BL: position of each token in its document.
        segment_ids_BL: document of each token; a token sees only its own document.

    Returns:
        x_BLD: hidden states; `logits` or a loss in `model.head` takes them from there.
    """
    mask_BLM = document_mask(segment_ids_BL)
    previous_BL = jnp.where(positions_BL > 0, jnp.roll(tokens_BL, 1, axis=1), -1)
    x_BLD = embed(params, config, tokens_BL, previous_BL)

    @partial(_remat, policy=config.remat)
    def layer(x_BLD, block):
        return Block(config).apply({"params": block}, x_BLD, positions_BL, mask_BLM)[0], None

    x_BLD, _ = jax.lax.scan(layer, x_BLD, params["blocks"],
                            unroll=min(config.scan_unroll, config.N))
    return rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)


def extend(params: Params, tokens_BL: jax.Array, cache: Cache, *,
           config: ModelConfig) -> tuple[jax.Array, Cache]:
    """Runs new tokens behind those in the cache; prefill and decode are this one function.

    Args:
        tokens_BL: the new tokens; the caller says with `Cache.advance` how many are real.

    Returns:
        x_BLD of the new tokens, and the cache with their keys and values, not yet advanced.
    """
    num_new, capacity = tokens_BL.shape[1], cache.k_NBMGK.shape[2]
    positions_BL = cache.length_B[:, None] + jnp.arange(num_new)[None]
    mask_BLM = cache_mask(cache.length_B, num_new, capacity)

    # The cache is carried, not scanned over, so that its one new entry is written in place.
    def layer(carry, block_and_index):
        x_BLD, k_NBMGK, v_NBMGK = carry
        block, n = block_and_index
        x_BLD, (k_BMGK, v_BMGK) = Block(config).apply(
            {"params": block}, x_BLD, positions_BL, mask_BLM,
            (k_NBMGK[n], v_NBMGK[n], cache.length_B))
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
