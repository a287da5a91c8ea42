"""Parameters as generation reads them: layers apart, cast once, and matrices of one input joined.

A step of decoding reads every weight once and computes little. So a copy of a layer's weights out
of the stacked ones, or a cast, would cost as much as the step itself, and a few large products are
faster than many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model.adapters.lora import Adapter, apply_adapters
from model.adapters.quantization import Int8Weight
from model.execution import Execution
from model.families.registry import Params
from model.layers.matmul import PROJECTIONS, letters_of_equation, project
from model.parallel.sharding import letters_of, param_name

# Read in float32 whatever the compute dtype is: by the choice of experts, by norms and by gates.
KEPT = ("router_DE", "relative_bias_WH", "gates_bias_QF")
# Stems of projections that read the same input. Each of the others is joined with none.
SAME_INPUT = (("wq", "wk", "wv"), ("w_gate", "w_up"), ("cross_wk", "cross_wv"))


class Part(NamedTuple):
    """Where a weight is in a joined one.

    Attributes:
        index: of the joined weight.
        start: of its outputs there.
        shape: of the weight by itself.
        num_inputs: how many of its axes, the first ones, are summed over.
    """

    index: int
    start: int
    shape: tuple[int, ...]
    num_inputs: int


class JoinedWeight(NamedTuple):
    """A weight within a joined one; products of the same input with all of its parts are one."""

    weight_OD: Any      # D all its inputs, O the outputs of all parts
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight by itself."""
        return self.part.shape

    def astype(self, dtype: Any) -> jax.Array:
        """The weight by itself, as an array."""
        stop = self.part.start + math.prod(self.part.shape[self.part.num_inputs:])
        return self.weight_OD.astype(dtype)[self.part.start:stop].T.reshape(self.part.shape)

    def project(self, equation: str, x: jax.Array, execution: Execution) -> jax.Array:
        """See `model.layers.matmul.project`."""
        of_x, of_weight, _ = letters_of_equation(equation)
        rows = x.shape[:sum(letter not in of_weight for letter in of_x)]
        x_BLD = x.reshape(*rows, -1)
        out_BLO = project("BLD,OD->BLO", x_BLD, self.weight_OD, execution)
        outputs = self.part.shape[self.part.num_inputs:]
        stop = self.part.start + math.prod(outputs)
        return out_BLO[..., self.part.start:stop].reshape(*rows, *outputs)


@flax.struct.dataclass
class JoinedLayer:
    """The parameters of a layer, some of them joined.

    Attributes:
        joined: the joined weights_OD.
        others: parameters by name, as they were.
        parts: names of those that are joined, and where they are.
    """

    joined: tuple[Any, ...]
    others: Mapping[str, Any]
    parts: tuple[tuple[str, Part], ...] = flax.struct.field(pytree_node=False)

    def open(self) -> dict[str, Any]:
        """All parameters by name."""
        return {**self.others, **{name: JoinedWeight(self.joined[part.index], part)
                                  for name, part in self.parts}}


def unstack(params: Params, execution: Execution) -> Params:
    """Weights for `model.families.registry.extend`.

    Sharded weights are not joined: their parts are on other devices than those of the whole.

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
    leaves, structure = jax.tree.flatten(params["blocks"])
    leaf = leaves[0]
    # One scale of fp8 is for a whole tensor: joined ones would share it.
    is_joined = len(leaf.devices()) == 1 and execution.matmul != "fp8"
    take = _make_take(structure, tuple(map(_layer_sharding, leaves)), is_joined)
    return {**params, "blocks": tuple(take(params["blocks"], n) for n in range(leaf.shape[0]))}


def add_adapters(weights: Params, adapters: Adapter) -> Params:
    """Weights of `unstack` with adapters, among which each slot chooses.

    Args:
        adapters: see `model.adapters.lora.stack_adapters`.
    """
    return {**weights, "adapters": adapters}


def choose_adapters(weights: Params, adapter_B: jax.Array) -> Params:
    """The weights as rows read them that have these adapters; unchanged where there are none."""
    if "adapters" not in weights:
        return weights
    blocks = [block.open() if hasattr(block, "open") else block for block in weights["blocks"]]
    return apply_adapters({**weights, "blocks": blocks}, weights["adapters"], adapter_B)


@lru_cache
def _make_take(structure: Any, shardings: tuple[NamedSharding | None, ...],
               is_joined: bool) -> Callable:
    """The compiled function from stacked layers and a number to that layer; one for all calls, as
    weights that change are unstacked again and again."""
    def take(blocks, n):
        layer = jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, n, keepdims=False), blocks)
        return join(layer) if is_joined else layer

    # Joined weights are on one device, where there is nothing to choose.
    return jax.jit(take, out_shardings=None if is_joined else structure.unflatten(shardings))


def _layer_sharding(leaf: jax.Array) -> NamedSharding | None:
    """That of stacked layers without their first axis; None, the default, without a mesh."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    return NamedSharding(sharding.mesh, P(*sharding.spec[1:]))


def join(layer: Mapping[str, Any]) -> JoinedLayer:
    """Joins a layer's projections of the same input."""
    by_stem = {name.rpartition("_")[0]: name for name, leaf in layer.items()
               if name.rpartition("_")[2] in PROJECTIONS
               and (isinstance(leaf, Int8Weight) or not hasattr(leaf, "project"))}
    groups = [group for group in SAME_INPUT if all(stem in by_stem for stem in group)]
    together = {stem for group in groups for stem in group}
    groups += [(stem,) for stem in by_stem if stem not in together]
    joined, parts = [], []
    for index, group in enumerate(groups):
        names = [by_stem[stem] for stem in group]
        flat, start = [], 0
        for name in names:
            num_inputs = len(PROJECTIONS[name.rpartition("_")[2]])
            parts.append((name, Part(index, start, layer[name].shape, num_inputs)))
            flat.append(_flatten(layer[name], num_inputs))
            start += flat[-1].shape[0]
        joined.append(flat[0] if len(flat) == 1 else _concatenate(flat))
    others = {name: leaf for name, leaf in layer.items() if name not in dict(parts)}
    return JoinedLayer(tuple(joined), others, tuple(parts))


def _flatten(weight: Any, num_inputs: int) -> Any:
    """weight_OD: all outputs, then all inputs."""
    size = math.prod(weight.shape[:num_inputs])
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values.reshape(size, -1).T, weight.scale.reshape(1, -1).T)
    return weight.reshape(size, -1).T


def _concatenate(weights: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *weights)
