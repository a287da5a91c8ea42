"""The decoder: pre-norm blocks of attention and MLP on a residual stream.

The block is a linen module used as pure functions; the stack is plain JAX: `vmap` of `init` for
stacked parameters, `lax.scan` over `apply`. A KV cache is an argument and a result.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.execution import Execution
from model.generation.cache import Cache
from model.layers.attention import attention
from model.layers.embed import embed, init_embeddings
from model.layers.experts import experts, summarise
from model.layers.mlps import swiglu
from model.layers.norms import rms_norm
from model.parallel.sharding import HEAD_RULES, STREAM_RULES, constrain
from model.parallel.stack import run_layers

# {"embed_VD", "embed_previous_VD" if embed_previous, "blocks": {name: [N, ...]}, "final_norm_D",
#  "head_DV" unless tied}
Params = Any


class Block(nn.Module):
    """One layer: attention, then MLP, each after a norm and added to the residual stream."""

    config: ModelConfig
    execution: Execution

    @property
    def residual_scale(self) -> float:
        """Scale of output projections that makes the stream's variance independent of depth."""
        return (2 * self.config.N) ** -0.5

    def weight(self, name: str, shape: tuple[int, ...], fan_in: int,
               scale: float = 1.0) -> jax.Array:
        """A float32 master weight of standard deviation scale/sqrt(fan_in)."""
        init = nn.initializers.normal(scale * fan_in**-0.5)
        return self.param(name, init, shape, jnp.float32)

    def ones(self, name: str, size: int) -> jax.Array:
        """A norm's float32 scale."""
        return self.param(name, nn.initializers.ones_init(), (size,))

    @nn.compact
    def __call__(self, x_BLD, positions_BL, segment_ids_BL=None, cached=None):
        """Runs the layer over packed rows or, given a cache, over the tokens that follow it.

        Args:
            segment_ids_BL: document of each token; a token attends inside its own document.
            cached: None, or (k_BMGK, v_BMGK, length_B); see `model.layers.attention`.

        Returns:
            x_BLD, the updated (k_BMGK, v_BMGK) or None, and the layer's statistics.
        """
        c = self.config
        h_BLD = rms_norm(x_BLD, self.ones("attn_norm_D", c.D), c.norm_eps)
        h_BLD = constrain(h_BLD, "BLD")  # gathers positions over `tensor`
        out_BLD, cached = attention(self, h_BLD, positions_BL, segment_ids_BL, cached)
        x_BLD = checkpoint_name(constrain(x_BLD + out_BLD, "BLD", STREAM_RULES), "residual")

        h_BLD = rms_norm(x_BLD, self.ones("mlp_norm_D", c.D), c.norm_eps)
        h_BLD = constrain(h_BLD, "BLD")
        if c.E:
            mlp_BLD, stats = experts(self, h_BLD, segment_ids_BL)
        else:
            mlp_BLD, stats = swiglu(self, h_BLD), {}
        return constrain(x_BLD + mlp_BLD, "BLD", STREAM_RULES), cached, stats


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Makes fresh float32 parameters; blocks are stacked along a leading axis N."""
    embed_key, previous_key, blocks_key, head_key = jax.random.split(key, 4)
    x_BLD = jnp.zeros((1, 1, config.D))
    zeros_BL = jnp.zeros((1, 1), jnp.int32)

    def init_block(block_key):
        return Block(config, Execution()).init(block_key, x_BLD, zeros_BL, zeros_BL)["params"]

    params = init_embeddings(config, embed_key, previous_key) | {
        "blocks": jax.vmap(init_block)(jax.random.split(blocks_key, config.N)),
        "final_norm_D": jnp.ones(config.D),
    }
    if not config.tied:
        params["head_DV"] = 0.1 * config.D**-0.5 * jax.random.normal(head_key, (config.D, config.V))
    return params


def forward_with_stats(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                       segment_ids_BL: jax.Array, *, config: ModelConfig,
                       execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The full forward pass over packed rows, up to the last norm.

    Args:
        positions_BL: position of each token in its document.
        segment_ids_BL: document of each token; a token attends inside its own document.

    Returns:
        x_BLD: hidden states, the input of `model.heads.language`.
        Statistics of the layers, each [N].
    """
    previous_BL = jnp.where(positions_BL > 0, jnp.roll(tokens_BL, 1, axis=1), -1)
    x_BLD = embed(params, tokens_BL, previous_BL, config=config, execution=execution)

    def layer(x_BLD, block, positions_BL, segment_ids_BL):
        x_BLD, _, stats = Block(config, execution).apply({"params": block}, x_BLD, positions_BL,
                                                         segment_ids_BL)
        return x_BLD, stats

    x_BLD, stats = run_layers(layer, params["blocks"], x_BLD, positions_BL, segment_ids_BL,
                              execution=execution)
    x_BLD = rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)
    return constrain(x_BLD, "BLD", HEAD_RULES), summarise(stats) if config.E else {}


def forward(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
            segment_ids_BL: jax.Array, *, config: ModelConfig, execution: Execution) -> jax.Array:
    """The hidden states x_BLD of `forward_with_stats` alone."""
    return forward_with_stats(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                              execution=execution)[0]


def extend(params: Params, tokens_BL: jax.Array, cache: Cache, *, config: ModelConfig,
           execution: Execution) -> tuple[jax.Array, Cache]:
    """Runs the tokens that follow those in the cache; prefill and decode both call it.

    Args:
        tokens_BL: the new tokens; the caller marks with `Cache.advance` how many are real.

    Returns:
        x_BLD of the new tokens, and the cache with their keys and values, not yet advanced.
    """
    positions_BL = cache.length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]

    # The cache is carried, not scanned over, so that its one new entry is written in place.
    def layer(carry, block_and_index):
        x_BLD, k_NBMGK, v_NBMGK = carry
        block, n = block_and_index
        x_BLD, (k_BMGK, v_BMGK), _ = Block(config, execution).apply(
            {"params": block}, x_BLD, positions_BL,
            cached=(k_NBMGK[n], v_NBMGK[n], cache.length_B))
        return (x_BLD, k_NBMGK.at[n].set(k_BMGK), v_NBMGK.at[n].set(v_BMGK)), None

    previous_BL = jnp.concatenate([cache.last_B[:, None], tokens_BL[:, :-1]], axis=1)
    x_BLD = embed(params, tokens_BL, previous_BL, config=config, execution=execution)
    carry = (x_BLD, cache.k_NBMGK, cache.v_NBMGK)
    (x_BLD, k_NBMGK, v_NBMGK), _ = jax.lax.scan(
        layer, carry, (params["blocks"], jnp.arange(config.N)))
    x_BLD = rms_norm(x_BLD, params["final_norm_D"], config.norm_eps)
    return x_BLD, cache.replace(k_NBMGK=k_NBMGK, v_NBMGK=v_NBMGK)


@lru_cache
def abstract_params(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init`'s parameters; one tree for all callers, who leave it as it is."""
    return jax.eval_shape(partial(init, config), jax.random.key(0))


def num_params(config: ModelConfig) -> int:
    """Counts the parameters without making them."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
