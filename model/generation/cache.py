"""The KV cache: keys and values of earlier tokens."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
    """Keys and values of earlier tokens, for all layers.

    Attributes:
        k_NBMGK: keys, already rotated.
        v_NBMGK: values.
        length_B: tokens held per row; the next token is written at this index.
        last_B: the newest token of each row; -1 in an empty cache.
    """

    k_NBMGK: jax.Array
    v_NBMGK: jax.Array
    length_B: jax.Array
    last_B: jax.Array

    def advance(self, tokens_BL: jax.Array, count_B: jax.Array) -> Cache:
        """Appends the first `count_B` (at least 1) of each row's written tokens to the cache."""
        last_BL = jnp.take_along_axis(tokens_BL, count_B[:, None] - 1, axis=1)
        return self.replace(length_B=self.length_B + count_B, last_B=last_BL[:, 0])
