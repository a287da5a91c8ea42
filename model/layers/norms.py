"""Norms, over the last axis and in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Norm(NamedTuple):
    """A kind of norm.

    Attributes:
        run: `run(x, scale, eps)`, or `run(x, scale, bias, eps)`; in the dtype of `x`.
        start: the first value of its scale.
        has_bias: whether it adds a bias.
    """

    run: Callable[..., jax.Array]
    start: float
    has_bias: bool


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm (arXiv 1910.07467, equation 4)."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + eps)
    return (normed * _spread(scale, x)).astype(x.dtype)


def rms_norm_plus_one(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm whose weights are 1 + scale, as Gemma stores them (`GemmaRMSNorm`, transformers)."""
    return rms_norm(x, 1 + scale, eps)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm (arXiv 1607.06450, equation 4)."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)
    return (normed * _spread(scale, x) + _spread(bias, x)).astype(x.dtype)


NORMS = {"rms": Norm(rms_norm, 1.0, False), "rms_plus_one": Norm(rms_norm_plus_one, 0.0, False),
         "layer": Norm(layer_norm, 1.0, True)}


def init_norm(kind: str, name: str, size: int, letter: str = "D") -> dict[str, jax.Array]:
    """The first weights of a norm: NAME_D and, if it has a bias, NAME_bias_D."""
    norm = NORMS[kind]
    weights = {f"{name}_{letter}": jnp.full(size, norm.start, jnp.float32)}
    return weights | ({f"{name}_bias_{letter}": jnp.zeros(size)} if norm.has_bias else {})


def apply_norm(kind: str, weights: Mapping[str, jax.Array], name: str, x: jax.Array, eps: float,
               letter: str = "D") -> jax.Array:
    """Applies the norm whose weights `init_norm` named."""
    norm, own = NORMS[kind], [weights[f"{name}_{letter}"]]
    if norm.has_bias:
        own.append(weights[f"{name}_bias_{letter}"])
    return norm.run(x, *own, eps)


def _spread(weight: jax.Array, x: jax.Array) -> jax.Array:
    return weight.reshape((1,) * (x.ndim - 1) + (-1,))
