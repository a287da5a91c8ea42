"""Rotary position embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x_BLHK: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding: rotates the pairs (i, i + K/2) (arXiv 2104.09864, equation 34)."""
    half = x_BLHK.shape[-1] // 2
    frequency_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BLHK = positions_BL.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None]
    cos_BLHK, sin_BLHK = jnp.cos(angle_BLHK), jnp.sin(angle_BLHK)
    first_BLHK, second_BLHK = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    rotated_BLHK = jnp.concatenate([first_BLHK * cos_BLHK - second_BLHK * sin_BLHK,
                                    second_BLHK * cos_BLHK + first_BLHK * sin_BLHK], axis=-1)
    return rotated_BLHK.astype(x_BLHK.dtype)
