"""Digests: 64 bits per array, computed on its devices, independent of its sharding.

A digest is two sums, modulo 2^32, over the array's 32-bit words. Each word is first mixed with its
position by a bijection (the finalizer of MurmurHash3), so a change of one word always changes both
sums, and any other damage is missed with probability 2^-64. Sums modulo 2^32 do not depend on the
order of addition, hence not on the mesh.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from model.parallel.sharding import leaf_name

# Per lane: the factor of an element's position, and the offset. Factors are odd, so that the first
# 2^32 products are distinct; from the fractional parts of the golden ratio, pi and sqrt(3).
LANES = ((0x9E3779B1, 0x243F6A88), (0xBB67AE85, 0x13198A2F))

Leaves = dict[str, jax.Array]


def named_leaves(tree: Any) -> Leaves:
    """The leaves of a tree by their paths, as in ``params/blocks/wq_DHK``."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def start_digests(leaves: Leaves) -> jax.Array:
    """Starts computing digests on the devices; call it before the leaves are donated.

    Args:
        leaves: arrays of any dtype but typed keys, on one mesh.

    Returns:
        uint32 [leaves, 3]: the two sums, and 1 if every number is finite; see `read_digests`.
    """
    arrays = list(leaves.values())
    sharding = arrays[0].sharding
    if not isinstance(sharding, NamedSharding):
        return _program(None)(arrays)
    with jax.set_mesh(sharding.mesh):    # one program, whether or not the caller has set the mesh
        return _program(NamedSharding(sharding.mesh, PartitionSpec()))(arrays)


def read_digests(leaves: Leaves, words: jax.Array) -> tuple[dict[str, str], list[str]]:
    """Waits for `start_digests`; 16 hex digits for each leaf, and the leaves that are not finite.

    Args:
        leaves: only their names are used; they may have been donated.
    """
    rows = np.asarray(words).tolist()
    digests = {name: f"{low:08x}{high:08x}" for name, (low, high, _) in zip(leaves, rows)}
    return digests, [name for name, (_, _, is_finite) in zip(leaves, rows) if not is_finite]


@lru_cache(maxsize=8)
def _program(sharding: NamedSharding | None) -> Any:
    return jax.jit(_digest_leaves, out_shardings=sharding)


def _digest_leaves(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.stack([*_digest(array), _is_finite(array).astype(jnp.uint32)])
                      for array in arrays])


def _digest(array: jax.Array) -> list[jax.Array]:
    words = _as_words(array)
    positions = _positions(words.shape)
    return [jnp.sum(_mix(words ^ (positions * np.uint32(factor) + np.uint32(start))),
                    dtype=jnp.uint32) for factor, start in LANES]


def _as_words(array: jax.Array) -> jax.Array:
    """The array's bits as uint32, one word for an element of at most 32 bits."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = 8 * array.dtype.itemsize
    if bits >= 32:   # 64 bits become two words, along a new last axis
        return lax.bitcast_convert_type(array, jnp.uint32)
    return lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Each element's index in row-major order, modulo 2^32, with the array's shape."""
    positions = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1:]) % 2**32)
        positions += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return positions


def _mix(words: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer (Appleby, `fmix32`): a bijection, each bit affects all."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _is_finite(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.ones((), jnp.bool_)
    return jnp.all(jnp.isfinite(array))
