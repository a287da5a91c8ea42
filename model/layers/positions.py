"""Positions: rotary embedding with its scalings, sinusoids, and T5's relative bias.

A learned table is a look-up like that of tokens: see `model.layers.embed`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from model.config import ModelConfig


def rotate(x_BLHK: jax.Array, positions_BL: jax.Array, frequency_K: jax.Array,
           scale: float = 1.0) -> jax.Array:
    """Rotary position embedding: rotates the pairs (i, i + n) (arXiv 2104.09864, equation 34).

    Args:
        frequency_K: turns in radians per position, of n pairs; what follows the first 2 n numbers
            of a head is not rotated.
        scale: of the rotated numbers; see `rope_scale`.
    """
    half = frequency_K.size
    angle_BLHK = positions_BL.astype(jnp.float32)[:, :, None, None] * frequency_K[None, None, None]
    cos_BLHK, sin_BLHK = jnp.cos(angle_BLHK), jnp.sin(angle_BLHK)
    if scale != 1:
        cos_BLHK, sin_BLHK = scale * cos_BLHK, scale * sin_BLHK
    first_BLHK, second_BLHK, kept_BLHK = jnp.split(
        x_BLHK.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned_BLHK = jnp.concatenate([first_BLHK * cos_BLHK - second_BLHK * sin_BLHK,
                                   second_BLHK * cos_BLHK + first_BLHK * sin_BLHK, kept_BLHK],
                                  axis=-1)
    return turned_BLHK.astype(x_BLHK.dtype)


def rope_frequencies(config: ModelConfig, *, is_local: bool = False) -> np.ndarray:
    """Frequencies of the rotated pairs of a head, in radians per position, float32.

    none    theta ** (-i / n)
    linear  all divided by `rope_factor` (arXiv 2306.15595)
    llama3  those of fewer than `rope_low` turns over `rope_context` are divided, those of more than
            `rope_high` kept, in between linear in the turns (Llama 3.1, `apply_scaling`)
    yarn    the same with a ramp that is linear in the index of the pair (arXiv 2309.00071, section
            3.2; `rope_high` is its beta_fast, `rope_low` its beta_slow)

    Args:
        is_local: those of windowed layers beside global ones, which are never scaled.
    """
    c = config
    half = round(c.K * c.rope_frac) // 2
    theta = c.rope_local_theta if is_local and c.rope_local_theta else c.rope_theta
    frequency_K = theta ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    if is_local or c.rope_scaling == "none":
        return frequency_K
    return (frequency_K * _SCALINGS[c.rope_scaling](c, frequency_K)).astype(np.float32)


def rope_scale(config: ModelConfig) -> float:
    """Scale of rotated queries and keys: 0.1 ln(factor) + 1 in YaRN (arXiv 2309.00071, eq. 22)."""
    return 0.1 * math.log(config.rope_factor) + 1 if config.rope_scaling == "yarn" else 1.0


def _llama3(c: ModelConfig, frequency_K: np.ndarray) -> np.ndarray:
    turns_K = c.rope_context * frequency_K / (2 * math.pi)
    kept_K = np.clip((turns_K - c.rope_low) / (c.rope_high - c.rope_low), 0, 1)
    return kept_K + (1 - kept_K) / c.rope_factor


def _yarn(c: ModelConfig, frequency_K: np.ndarray) -> np.ndarray:
    half = frequency_K.size

    def pair_of(turns: float) -> float:     # the index whose frequency makes so many turns
        return half * math.log(c.rope_context / (turns * 2 * math.pi)) / math.log(c.rope_theta)

    first = max(math.floor(pair_of(c.rope_high)), 0)
    last = min(math.ceil(pair_of(c.rope_low)), 2 * half - 1)
    scaled_K = np.clip((np.arange(half) - first) / max(last - first, 0.001), 0, 1)
    return (1 - scaled_K) + scaled_K / c.rope_factor


_SCALINGS = {"linear": lambda c, _: 1 / c.rope_factor, "llama3": _llama3, "yarn": _yarn}


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
    """x_BLD: sine at even and cosine at odd indices (arXiv 1706.03762, section 3.5)."""
    frequency_D = 10_000.0 ** (-np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angle_BLD = positions_BL.astype(jnp.float32)[:, :, None] * frequency_D[None, None]
    pairs_BLD2 = jnp.stack([jnp.sin(angle_BLD), jnp.cos(angle_BLD)], axis=-1)
    return pairs_BLD2.reshape(*positions_BL.shape, -1)[:, :, :width]


def relative_bias(table_WH: jax.Array, distance_BLM: jax.Array, *, is_causal: bool,
                  max_distance: int) -> jax.Array:
    """T5's bias of the scores: bias_BHLM (arXiv 1910.10683, section 2.1).

    Half of the buckets are exact distances, the others grow logarithmically up to `max_distance`;
    without causality one half of all is for keys after the query.

    Args:
        distance_BLM: position of the query minus that of the key.
    """
    num_buckets = table_WH.shape[0]
    bucket_BLM = jnp.zeros_like(distance_BLM)
    if not is_causal:
        num_buckets //= 2
        bucket_BLM += num_buckets * (distance_BLM < 0)
        distance_BLM = jnp.abs(distance_BLM)
    distance_BLM = jnp.maximum(distance_BLM, 0)
    num_exact = num_buckets // 2
    far_BLM = jnp.log(jnp.maximum(distance_BLM, 1).astype(jnp.float32) / num_exact)
    far_BLM = num_exact + (far_BLM / math.log(max_distance / num_exact)
                           * (num_buckets - num_exact)).astype(jnp.int32)
    bucket_BLM += jnp.where(distance_BLM < num_exact, distance_BLM,
                            jnp.minimum(far_BLM, num_buckets - 1))
    return jnp.moveaxis(table_WH[bucket_BLM], -1, 1)
