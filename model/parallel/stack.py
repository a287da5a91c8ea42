"""The stack of layers: a scan, or a pipeline over the mesh's `stage` axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from model.execution import Execution
from model.parallel.pipeline import run_pipeline
from model.parallel.remat import remat
from model.parallel.sharding import num_stages

# `layer(x_BLD, block, positions_BL, segment_ids_BL) -> (x_BLD, stats)`. Statistics are sums over
# tokens, so that those of microbatches add up to those of the batch.
Layer = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def run_layers(layer: Layer, blocks: Any, x_BLD: jax.Array, positions_BL: jax.Array,
               segment_ids_BL: jax.Array, *,
               execution: Execution) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs all layers over packed rows: a scan, or a pipeline if the mesh has stages.

    Args:
        blocks: parameters stacked along a leading axis N.

    Returns:
        x_BLD, and each layer's statistics stacked to [N, ...].
    """
    if num_stages() > 1:
        return run_pipeline(layer, blocks, x_BLD, positions_BL, segment_ids_BL,
                            execution=execution)
    layer = partial(layer, positions_BL=positions_BL, segment_ids_BL=segment_ids_BL)
    if execution.remat != "none":
        layer = remat(layer, execution.remat)
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    return jax.lax.scan(layer, x_BLD, blocks, unroll=min(execution.scan_unroll, num_layers))
