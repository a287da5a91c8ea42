"""The stack of layers as a pipeline over the mesh's `stage` axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.execution import Execution
from model.parallel.remat import remat
from model.parallel.sharding import (
    PARAM_RULES,
    STREAM_RULES,
    constrain,
    letters_of,
    num_stages,
    param_name,
    spec,
)


def run_pipeline(layer: Callable, blocks: Any, x_BLD: jax.Array, positions_BL: jax.Array,
                 segment_ids_BL: jax.Array, *,
                 execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs the layers as a pipeline of S stages; see `model.parallel.stack.run_layers`.

    In each tick every stage processes one of the U microbatches and sends it to the next stage: one
    program over an axis S that is sharded over the mesh (arXiv 2105.04663, section 3.3). At tick t
    stage s has item t - s; items number the microbatches of the first round, then those of the
    second, and so on. In round r stage s runs the r-th of its runs of layers. One round is GPipe
    (arXiv 1811.06965), more are the interleaved schedule (arXiv 2104.04473, section 2.2). Results
    of a stage before its first and after its last item are discarded.
    """
    num_s, num_rounds = num_stages(), execution.pipeline_rounds
    num_u = execution.pipeline_microbatches or num_s
    num_items = num_rounds * num_u
    total_layers = jax.tree.leaves(blocks)[0].shape[0]
    num_layers = total_layers // (num_rounds * num_s)  # of a stage in a round
    blocks = _cut_into_stages(blocks, num_rounds, num_s)
    positions_UBL, segment_ids_UBL = _split(positions_BL, num_u), _split(segment_ids_BL, num_u)
    own_s = jnp.arange(num_s)

    def run_stage(own_blocks, item, x_BLD):
        piece = item % num_u
        block_round = jnp.clip(item // num_u, 0, num_rounds - 1)
        positions_BL = constrain(positions_UBL[piece], "BL")
        segment_ids_BL = constrain(segment_ids_UBL[piece], "BL")

        own_round = jax.tree.map(lambda leaf: leaf[block_round], own_blocks)
        own_layer = partial(layer, positions_BL=positions_BL, segment_ids_BL=segment_ids_BL)
        return jax.lax.scan(own_layer, x_BLD, own_round,
                            unroll=min(execution.scan_unroll, num_layers))

    run_stages = jax.vmap(_remat_stage(run_stage, execution.remat), in_axes=(1, 0, 0),
                          spmd_axis_name="stage")

    def tick(carry, t):
        # Only stage 0 reads its queue, which holds the microbatches that wait for a round. All
        # stages have one, so that the last one returns its output by the shift that moves all.
        x_SBLD, queue_SUBLD = carry
        is_first_S111 = (own_s == 0).reshape(-1, 1, 1, 1)
        x_SBLD = jnp.where(is_first_S111, queue_SUBLD[:, t % num_u], x_SBLD)
        x_SBLD, stats = run_stages(blocks, t - own_s, x_SBLD)
        x_SBLD = constrain(jnp.roll(x_SBLD, 1, axis=0), "SBLD", STREAM_RULES)
        done = t - (num_s - 1)
        slot = done % num_u
        queue_SUBLD = queue_SUBLD.at[:, slot].set(
            jnp.where(done >= 0, x_SBLD, queue_SUBLD[:, slot]))
        return (x_SBLD, constrain(queue_SUBLD, "SUBLD", STREAM_RULES)), stats

    x_UBLD = _split(x_BLD, num_u)
    queue_SUBLD = constrain(jnp.broadcast_to(x_UBLD[None], (num_s, *x_UBLD.shape)), "SUBLD",
                            STREAM_RULES)
    # Idle stages get real inputs as well: a layer might compute infinities from zeros.
    x_SBLD = constrain(queue_SUBLD[:, 0], "SBLD", STREAM_RULES)
    (_, queue_SUBLD), stats = jax.lax.scan(tick, (x_SBLD, queue_SUBLD),
                                           jnp.arange(num_items + num_s - 1))

    def sum_pieces(leaf):  # [ticks, S, layers of a run, ...] -> [N, ...]
        leaf = leaf[jnp.arange(num_items)[:, None] + own_s[None], own_s[None]]
        leaf = leaf.reshape(num_rounds, num_u, *leaf.shape[1:]).sum(1)
        return leaf.reshape(total_layers, *leaf.shape[3:])

    return _join(queue_SUBLD[0]), jax.tree.map(sum_pieces, stats)


# Primitives that only move or cast: cheap to recompute, and the only ones applied to weights alone.
_MOVES = ("broadcast_in_dim", "convert_element_type", "dynamic_slice", "gather", "reshape",
          "squeeze", "transpose")


def _remat_stage(run_stage: Callable, policy: str) -> Callable:
    """Applies `remat` to a whole stage: each tick saves its input and what `policy` names.

    With `none` that is every result but moves and casts. Otherwise the backward pass would save the
    stage's weights, sliced and cast, once for each tick.
    """
    if policy != "none":
        return remat(run_stage, policy)

    def is_saveable(primitive, *_, **__):
        return primitive.name not in _MOVES

    return jax.checkpoint(run_stage, policy=is_saveable, prevent_cse=False)


def _cut_into_stages(blocks: Any, num_rounds: int, num_stages: int) -> Any:
    """Reshapes blocks [N, ...] to [rounds, S, layers of a run, ...], each run on its stage.

    With more than one round a stage's layers are not contiguous along N, so this moves parameters
    between stages, once a step and not once a tick. Parts of a weight of `model.adapters` have no
    letters; the partitioner places their other axes.
    """
    def cut(path, leaf):
        own = [P.UNCONSTRAINED] * (leaf.ndim - 1)
        if param_name(path).rpartition("_")[2].isupper():
            own = spec(letters_of(path, leaf.ndim)[1:], PARAM_RULES)
        leaf = leaf.reshape(num_rounds, num_stages, -1, *leaf.shape[1:])
        return jax.lax.with_sharding_constraint(leaf, P(None, "stage", None, *own))

    return jax.tree_util.tree_map_with_path(cut, blocks)


def _split(x: jax.Array, num_u: int) -> jax.Array:
    """Rows [B, ...] to microbatches [U, B/U, ...]: every U-th row, so devices split their own."""
    return jnp.swapaxes(x.reshape(-1, num_u, *x.shape[1:]), 0, 1)


def _join(x: jax.Array) -> jax.Array:
    """Inverts `_split`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
