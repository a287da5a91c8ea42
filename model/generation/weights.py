"""Parameters as generation reads them: layers apart, cast once instead of at every token."""

from __future__ import annotations

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model.execution import Execution
from model.families.registry import Params
from model.parallel.sharding import letters_of, param_name

# Read in float32 whatever the compute dtype is: by the choice of experts and by norms and biases.
KEPT = ("router_DE", "relative_bias_WH", "gates_bias_QF")


def unstack(params: Params, execution: Execution) -> Params:
    """Weights for `model.families.registry.extend`.

    A step of decoding reads every weight once and computes little: a copy of a layer's weights out
    of the stacked ones, or a cast, costs as much as the step itself.

    Args:
        params: with layers stacked along a leading axis N; quantised or adapted ones too.

    Returns:
        The same tree, but with a tuple of layers, and matrices in the compute dtype; sharded as
        they are.
    """
    def is_other(leaf):     # than an array: quantised or adapted
        return hasattr(leaf, "project")

    def cast(path, leaf):
        if is_other(leaf):
            return leaf
        is_matrix = len(letters_of(path, leaf.ndim).lstrip("N")) > 1
        return leaf.astype(execution.compute_dtype) if (
            is_matrix and leaf.dtype == "float32" and param_name(path) not in KEPT) else leaf

    params = jax.tree_util.tree_map_with_path(cast, params, is_leaf=is_other)
    blocks = params["blocks"]
    take = jax.jit(lambda blocks, n: jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False), blocks),
        out_shardings=jax.tree.map(_layer_sharding, blocks))
    layers = tuple(take(blocks, n) for n in range(jax.tree.leaves(blocks)[0].shape[0]))
    return {**params, "blocks": layers}


def _layer_sharding(leaf: jax.Array) -> NamedSharding | None:
    """That of stacked layers without their first axis; None, the default, without a mesh."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))
