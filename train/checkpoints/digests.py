"""Digests: 64 bits per array, computed where the array lies, equal however it is cut.

A digest is two sums, modulo 2^32, over the array's 32-bit words. Each word is first mixed with its
place by a function that no two words share (the finalizer of MurmurHash3), so one word that
changes always changes both sums, and any other damage goes unseen with probability 2^-64. Sums
modulo 2^32 do not depend on the order of addition, hence not on the mesh.
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

# Per lane: what an element's place is multiplied by, and what is added. Odd, so that no two of the
# first 2^32 places share a product; from the fractional parts of the golden ratio, pi and sqrt(3).
LANES = ((0x9E3779B1, 0x243F6A88), (0xBB67AE85, 0x13198A2F))

Leaves = dict[str, jax.Array]


def named_leaves(tree: Any) -> Leaves:
    """The leaves of a tree by their paths, as in ``params/blocks/wq_DHK``."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def start_digests(leaves: Leaves) -> jax.Array:
    """Starts computing digests on the devices; to be called before anything donates the leaves.

    Args:
        leaves: arrays of any dtype but typed keys, on one mesh.

    Returns:
        uint32 [leaves, 3]: the two sums, and 1 where every number is finite; see `read_digests`.
    """
    arrays = list(leaves.values())
    sharding = arrays[0].sharding
    if not isinstance(sharding, NamedSharding):
        return _program(None)(arrays)
    with jax.set_mesh(sharding.mesh):    # one program, whether the caller has set the mesh or not
        return _program(NamedSharding(sharding.mesh, PartitionSpec()))(arrays)


def read_digests(leaves: Leaves, words: jax.Array) -> tuple[dict[str, str], list[str]]:
    """Waits for `start_digests`; 16 hex digits for each leaf, and the leaves that are not finite.

    Args:
        leaves: for their names alone; they may have been donated.
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
    places = _places(words.shape)
    return [jnp.sum(_mix(words ^ (places * np.uint32(factor) + np.uint32(start))),
                    dtype=jnp.uint32) for factor, start in LANES]


def _as_words(array: jax.Array) -> jax.Array:
    """The array's bits as uint32, one word for an element of at most 32 bits."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = 8 * array.dtype.itemsize
    if bits >= 32:   # 64 bits become two words, along a new last axis
        return lax.bitcast_convert_type(array, jnp.uint32)
    return lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """Each element's number in row-major order, modulo 2^32, cut as the elements are."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1:]) % 2**32)
        places += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return places


def _mix(words: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finalizer (Appleby, `fmix32`): one to one, each bit stirs all others."""
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _is_finite(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.ones((), jnp.bool_)
    return jnp.all(jnp.isfinite(array))
