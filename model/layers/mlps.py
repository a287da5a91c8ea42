"""Dense MLPs."""

from __future__ import annotations

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from model.layers.matmul import project
from model.parallel.sharding import constrain


def swiglu(block: nn.Module, h_BLD: jax.Array) -> jax.Array:
    """SwiGLU (arXiv 2002.05202, equation 6, without biases); returns [B, L, D].

    Args:
        block: the layer that declares the weights; see `model.families.decoder.Block`.
        h_BLD: normed hidden states.
    """
    c, execution = block.config, block.execution
    w_gate_DF = block.weight("w_gate_DF", (c.D, c.F), c.D)
    w_up_DF = block.weight("w_up_DF", (c.D, c.F), c.D)
    w_down_FD = block.weight("w_down_FD", (c.F, c.D), c.F, block.residual_scale)
    gate_BLF = checkpoint_name(project("BLD,DF->BLF", h_BLD, w_gate_DF, execution), "hidden")
    up_BLF = checkpoint_name(project("BLD,DF->BLF", h_BLD, w_up_DF, execution), "hidden")
    hidden_BLF = constrain(jax.nn.silu(gate_BLF) * up_BLF, "BLF")
    return project("BLF,FD->BLD", hidden_BLF, w_down_FD, execution)
