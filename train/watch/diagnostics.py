"""Optional metrics of a step: norms of gradients, weights and updates by parameter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.layers.positions import rope_scale
from model.parallel.sharding import leaf_name, letters_of

RMS_SHIFT = {"rms": 0, "rms_plus_one": 1}   # added to the scale of an RMSNorm


def diagnose(config: ModelConfig, params: Any, gradient: Any,
             update: Any) -> dict[str, jax.Array]:
    """Metrics by parameter and layer, as float32 scalars.

    `gradient_norm/NAME`, `weight_norm/NAME`: Euclidean norms, of each layer where blocks are
    stacked, e.g. `gradient_norm/blocks/wq_DHK/3`. `update_ratio/NAME`: RMS of the update over RMS
    of the weights; about 1e-3 is usual, and 1e-2 late in a run is a warning.
    `attention_logit_bound/3`: an upper bound of that layer's attention logits. It is computed from
    the weights, so it exists only if queries and keys have an RMSNorm.

    Args:
        params: before the update.
        gradient: before clipping.
        update: what is added to the parameters.
    """
    norms = {"gradient_norm": _norms(gradient), "weight_norm": _norms(params)}
    updates, weights = _norms(update), norms["weight_norm"]
    # Both are norms over as many entries, so their ratio is that of the RMS.
    norms["update_ratio"] = {name: updates[name] / jnp.maximum(weights[name], 1e-12)
                             for name in weights}
    metrics = {f"{kind}/{name}": values
               for kind, by_name in norms.items() for name, values in by_name.items()}
    if config.norm in RMS_SHIFT and "q_norm_K" in params["blocks"]:     # no adapter has it
        metrics["attention_logit_bound"] = _logit_bound(config, params["blocks"])
    return {name: value for stacked, values in metrics.items()
            for name, value in _by_layer(stacked, values)}


def _norms(tree: Any) -> dict[str, jax.Array]:
    """The norm of each parameter by name: a scalar, or [N] where layers are stacked."""
    norms = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_stacked = letters_of(path, leaf.ndim).startswith("N")
        squares = jnp.square(leaf.astype(jnp.float32))
        axes = tuple(range(is_stacked, leaf.ndim))
        norms[leaf_name(path)] = jnp.sqrt(jnp.sum(squares, axis=axes))
    return norms


def _logit_bound(config: ModelConfig, blocks: Any) -> jax.Array:
    """Largest possible scaled |q k| of each layer: RMSNorm gives vectors of length sqrt(K).

    Its scales stretch them by at most their largest entry, RoPE stretches both by `rope_scale`, and
    by Cauchy-Schwarz the product is at most that of the lengths.
    """
    largest_N = 1.0
    for name in ("q_norm_K", "k_norm_K"):
        largest_N *= jnp.max(jnp.abs(RMS_SHIFT[config.norm] + blocks[name]), axis=1)
    scale = config.attention_scale or config.K**-0.5
    return scale * config.K * rope_scale(config) ** 2 * largest_N


def _by_layer(name: str, values: jax.Array) -> list[tuple[str, jax.Array]]:
    if values.ndim == 0:
        return [(name, values)]
    return [(f"{name}/{n}", values[n]) for n in range(values.shape[0])]
