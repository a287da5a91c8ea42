"""The stack of layers: a scan, or a pipeline over the mesh's `stage` axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from model.config import ModelConfig
from model.remat import remat

# `layer(x_BLD, block, positions_BL, segment_ids_BL) -> (x_BLD, stats)`
Layer = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def run_layers(layer: Layer, blocks: Any, x_BLD: jax.Array, positions_BL: jax.Array,
               segment_ids_BL: jax.Array, *,
               config: ModelConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs all layers over packed rows.

    Args:
        blocks: parameters stacked along a leading axis N.

    Returns:
        x_BLD, and each layer's statistics stacked to [N].
    """
    def step(x_BLD, block):
        return layer(x_BLD, block, positions_BL, segment_ids_BL)

    return jax.lax.scan(remat(step, config.remat), x_BLD, blocks,
                        unroll=min(config.scan_unroll, config.N))
