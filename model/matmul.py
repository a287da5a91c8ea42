"""The one hook that every matmul of a block goes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.config import ModelConfig


def project(equation: str, x: jax.Array, weight: jax.Array, *, config: ModelConfig) -> jax.Array:
    """`einsum(equation, x, weight)`, in the precision that `config.matmul` names.

    Args:
        x: activations in the compute dtype.
        weight: a float32 master weight.
    """
    return jnp.einsum(equation, x, weight.astype(config.dtype))
