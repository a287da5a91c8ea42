"""The KV cache: keys and values of earlier tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.layers.matmul import round_to_int8

PIECE = 512             # tokens that are written at once at most


class Place(NamedTuple):
    """Where new tokens go in a cache, the same in all layers.

    Attributes:
        length_B: tokens that their rows hold.
        count_B: new tokens of each row; what follows them is padding.
        rows_B: the cache's rows that they extend; one beyond the last is written nowhere. None is
            all rows in their order, which are read without a copy.
    """

    length_B: jax.Array
    count_B: jax.Array
    rows_B: jax.Array | None = None


@flax.struct.dataclass
class LayerCache:
    """Keys and values of one layer.

    The token at position p of its row is at index p modulo M: a layer with a window holds only the
    newest tokens, the others all.

    Attributes:
        k_BGMK: keys, already rotated; each head's apart, as they are multiplied.
        v_BGMK: values.
        k_scale_BGM, v_scale_BGM: float32 scales of int8 keys and values; None where they are held
            in the compute dtype.
    """

    k_BGMK: jax.Array
    v_BGMK: jax.Array
    k_scale_BGM: jax.Array | None = None
    v_scale_BGM: jax.Array | None = None

    def write(self, k_BLGK: jax.Array, v_BLGK: jax.Array, place: Place) -> LayerCache:
        """Writes the real ones of new keys and values."""
        (batch, length, num_heads), size = k_BLGK.shape[:3], self.k_BGMK.shape[2]
        offset_1L = jnp.arange(length)[None]
        index_BL = (place.length_B[:, None] + offset_1L) % size
        index_BL = jnp.where(offset_1L < place.count_B[:, None], index_BL, size)  # none: dropped
        rows_B = jnp.arange(batch) if place.rows_B is None else place.rows_B

        def put(old, new):
            places = rows_B[:, None, None], jnp.arange(num_heads)[None, None], index_BL[:, :, None]
            return old.at[places].set(new.astype(old.dtype), mode="drop")

        if self.k_scale_BGM is None:
            return self.replace(k_BGMK=put(self.k_BGMK, k_BLGK), v_BGMK=put(self.v_BGMK, v_BLGK))
        (k_BLGK, k_scale), (v_BLGK, v_scale) = (round_to_int8(x, [3]) for x in (k_BLGK, v_BLGK))
        return LayerCache(put(self.k_BGMK, k_BLGK), put(self.v_BGMK, v_BLGK),
                          put(self.k_scale_BGM, k_scale[..., 0]),
                          put(self.v_scale_BGM, v_scale[..., 0]))

    def read(self, place: Place, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Keys and values of the rows in `dtype`, and their `positions`."""
        def take(held, scale_BGM):
            held = pick(held, place.rows_B)
            if scale_BGM is None:
                return held
            scale_BGM = pick(scale_BGM, place.rows_B)
            return (held.astype(jnp.float32) * scale_BGM[..., None]).astype(dtype)

        return (take(self.k_BGMK, self.k_scale_BGM), take(self.v_BGMK, self.v_scale_BGM),
                self.positions(place))

    def positions(self, place: Place) -> jax.Array:
        """positions_BM of what `read` returns, once the new tokens are written; negative at an
        index that holds none."""
        size = self.k_BGMK.shape[2]
        newest_B1 = (place.length_B + place.count_B)[:, None] - 1
        return newest_B1 - (newest_B1 - jnp.arange(size)[None]) % size


@flax.struct.dataclass
class Cache:
    """Keys and values of earlier tokens.

    Attributes:
        layers: of each layer.
        length_B: tokens held per row; the next token has this position.
        last_B: the newest token of each row; -1 in an empty row.
    """

    layers: tuple[LayerCache, ...]
    length_B: jax.Array
    last_B: jax.Array

    def advance(self, tokens_BL: jax.Array, count_B: jax.Array,
                rows_B: jax.Array | None = None) -> Cache:
        """Keeps the first `count_B` of each row's written tokens; with 0 a row stays as it is.

        Args:
            rows_B: see `Place`.
        """
        new_BL = jnp.take_along_axis(tokens_BL, jnp.maximum(count_B, 1)[:, None] - 1, axis=1)
        length_B, last_B = pick(self.length_B, rows_B), pick(self.last_B, rows_B)
        last_B = jnp.where(count_B > 0, new_BL[:, 0], last_B)
        return self.replace(length_B=put_rows(self.length_B, length_B + count_B, rows_B),
                            last_B=put_rows(self.last_B, last_B, rows_B))

    def resize(self, config: ModelConfig, capacity: int, piece: int = PIECE) -> Cache:
        """A cache of another capacity with the same tokens; a row that holds more than fit must not
        be read again. See `empty_cache`."""
        def fit(leaf, size):
            missing = max(size - leaf.shape[2], 0)
            return jnp.pad(leaf, [(0, 0), (0, 0), (0, missing), *[(0, 0)] * (leaf.ndim - 3)]
                           )[:, :, :size]

        sizes = [layer_capacity(config, n, capacity, piece) for n in range(config.N)]
        return self.replace(layers=tuple(
            jax.tree.map(lambda leaf, size=size: fit(leaf, size), layer)
            for layer, size in zip(self.layers, sizes)))

    def copy(self, source: jax.Array, target: jax.Array) -> Cache:
        """Copies row `source` to row `target`."""
        return jax.tree.map(lambda leaf: leaf.at[target].set(leaf[source]), self)

    def rewind(self, rows_B: jax.Array, length_B: jax.Array, last_B: jax.Array) -> Cache:
        """Makes rows end after their first `length_B` tokens, of which `last_B` is the newest."""
        return self.replace(length_B=put_rows(self.length_B, length_B, rows_B),
                            last_B=put_rows(self.last_B, last_B, rows_B))


def pick(leaf: jax.Array, rows_B: jax.Array | None) -> jax.Array:
    """Rows of an array; all of them without `rows_B`."""
    return leaf if rows_B is None else leaf[rows_B]


def put_rows(leaf: jax.Array, new: jax.Array, rows_B: jax.Array | None) -> jax.Array:
    """Replaces the rows that `pick` returns."""
    return new if rows_B is None else leaf.at[rows_B].set(new, mode="drop")


def empty_cache(config: ModelConfig, batch_size: int, capacity: int, piece: int,
                dtype: Any) -> Cache:
    """A cache without tokens.

    Args:
        capacity: tokens that a row holds at most.
        piece: tokens that are written at once at most, on which the size of a layer with a window
            depends: the first of them still sees the window before it.
        dtype: of keys and values.
    """
    def layer(n: int) -> LayerCache:
        shape = (batch_size, config.G, layer_capacity(config, n, capacity, piece), config.K)
        scales = ([jnp.zeros(shape[:-1]) for _ in "kv"] if jnp.dtype(dtype) == jnp.int8
                  else [None, None])
        return LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), *scales)

    return Cache(tuple(layer(n) for n in range(config.N)), jnp.zeros(batch_size, jnp.int32),
                 jnp.full(batch_size, -1, jnp.int32))


def layer_capacity(config: ModelConfig, n: int, capacity: int, piece: int) -> int:
    """Tokens of a row that layer `n` holds; see `empty_cache`."""
    if not config.window or is_global(config, n):
        return capacity
    return min(capacity, config.window + piece)


def is_global(config: ModelConfig, n: int) -> bool:
    """Whether layer `n` of a model with a window ignores it."""
    return bool(config.global_every) and (n + 1) % config.global_every == 0
