"""Dense MLPs, looked up by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from model.parallel.sharding import constrain

Activation = Callable[[jax.Array], jax.Array]


def gated(activation: Activation, block: nn.Module, h_BLD: jax.Array) -> jax.Array:
    """An MLP of two hidden projections, one of them activated (arXiv 2002.05202, equations 6 to 8).

    Args:
        block: the layer that declares the weights; see `model.families.decoder.Block`.
        h_BLD: its input, normed where the layer norms it.
    """
    has_bias = block.config.mlp_bias
    gate_BLF = checkpoint_name(
        block.linear("w_gate", "BLD,DF->BLF", h_BLD, bias=has_bias), "hidden")
    up_BLF = checkpoint_name(block.linear("w_up", "BLD,DF->BLF", h_BLD, bias=has_bias), "hidden")
    hidden_BLF = constrain(activation(gate_BLF) * up_BLF, "BLF")
    return block.linear("w_down", "BLF,FD->BLD", hidden_BLF, bias=has_bias,
                        scale=block.depth_scale)


def plain(activation: Activation, block: nn.Module, h_BLD: jax.Array) -> jax.Array:
    """An MLP of one activated hidden projection (arXiv 1706.03762, equation 2); see `gated`."""
    has_bias = block.config.mlp_bias
    up_BLF = checkpoint_name(block.linear("w_up", "BLD,DF->BLF", h_BLD, bias=has_bias), "hidden")
    hidden_BLF = constrain(activation(up_BLF), "BLF")
    return block.linear("w_down", "BLF,FD->BLD", hidden_BLF, bias=has_bias,
                        scale=block.depth_scale)


gelu = partial(jax.nn.gelu, approximate=False)          # arXiv 1606.08415, section 2
gelu_tanh = partial(jax.nn.gelu, approximate=True)      # its approximation by tanh

# `mlp(block, h_BLD) -> addition to the residual stream, [B, L, D]`
MLPS = {"swiglu": partial(gated, jax.nn.silu), "geglu": partial(gated, gelu_tanh),
        "gelu": partial(plain, gelu), "gelu_tanh": partial(plain, gelu_tanh),
        "relu": partial(plain, jax.nn.relu)}
