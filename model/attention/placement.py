"""Runs attention on a mesh: every device computes its own rows, positions and heads."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.parallel.sharding import fitting_spec

# `attend(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL) -> out_BLHK`
Attend = Callable[..., jax.Array]


def attend_in_place(attend: Attend, q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                    segment_ids_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
    """Runs `attend` on each device's shard, for code that XLA cannot partition.

    Queries are sharded like the keys of their group, so that a group and its queries are together.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL)
    heads = fitting_spec("BLGK", k_BLGK.shape)
    tokens = P(*heads[:2])
    # `check_vma` is off: varying axes of kernels and custom gradients are not tracked.
    attend = jax.shard_map(attend, in_specs=(heads, heads, heads, tokens, tokens),
                           out_specs=heads, check_vma=False)
    return attend(q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL)


def fill_blocks(x: jax.Array, block: int, filling: int = 0) -> jax.Array:
    """Pads rows [B, L, ...] at the end, up to whole blocks of positions."""
    ends = [(0, 0)] * x.ndim
    ends[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, ends, constant_values=filling)
