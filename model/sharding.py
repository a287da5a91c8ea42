"""Sharding by rules: two tables say where on the mesh an axis letter lies.

A parameter's name ends in its axis letters (`wq_DHK`), so the name alone says how it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from core.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters and their optimizer moments: width over `fsdp` (ZeRO-3), the rest over `tensor`.
PARAM_RULES: Rules = {"V": "tensor", "D": "fsdp", "F": "tensor", "H": "tensor", "G": "tensor",
                      "K": None, "N": None}

# Activations: rows over `data` and `fsdp` alike, the hidden axes of a layer over `tensor`.
ACTIVATION_RULES: Rules = {"B": ("data", "fsdp"), "L": None, "D": None, "F": "tensor",
                           "H": "tensor", "G": "tensor", "K": None, "V": "tensor"}


def make_mesh(section: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of the `mesh` config section; one axis may be -1: all remaining devices.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(section[axis]) for axis in MESH_AXES]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or known < 1 or len(devices) % known:
        raise UserError(f"mesh={dict(zip(MESH_AXES, shape))}",
                        f"does not divide {len(devices)} devices",
                        "set --config.mesh.data=-1 and axes whose product divides them")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    if math.prod(shape) != len(devices):
        raise UserError(f"mesh={dict(zip(MESH_AXES, shape))}",
                        f"does not use all {len(devices)} devices", "set --config.mesh.data=-1")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape),
                         devices=devices)


def spec(letters: str, rules: Rules = ACTIVATION_RULES) -> P:
    """The partition of a tensor whose axes are `letters`, e.g. ``spec("BLD")``."""
    return P(*(rules[letter] for letter in letters))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many pieces the mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["B"])


def letters_of(path: tuple[Any, ...], rank: int) -> str:
    """The axis letters of the parameter at `path`; layers stacked in front add an ``N``.

    Raises:
        ValueError: the name has no letters, or not as many as the parameter has axes.
    """
    name = str(getattr(path[-1], "key", path[-1]))
    letters = name.rpartition("_")[2]
    stacked = "N" * (rank - len(letters))
    if not letters.isupper() or len(stacked) > 1:
        raise ValueError(f"parameter {name!r} of rank {rank} does not end in its axis letters")
    return stacked + letters


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for a tree of parameters (or of their shapes).

    Raises:
        UserError: a mesh axis does not divide the parameter's axis.
    """
    def shard(path, leaf):
        letters = letters_of(path, leaf.ndim)
        for letter, size in zip(letters, leaf.shape):
            axes = PARAM_RULES[letter]
            parts = mesh.shape[axes] if axes else 1
            if size % parts:
                raise UserError(f"mesh.{axes}={parts}", f"does not divide model.{letter}={size}",
                                f"change --config.mesh.{axes} or --config.model.{letter}")
        return NamedSharding(mesh, spec(letters, PARAM_RULES))

    return jax.tree_util.tree_map_with_path(shard, params)


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of a train state: whatever mirrors a parameter is cut like it, the rest is copied.

    Optimizer moments live in trees of their own, so a leaf is matched by the end of its path and
    its shape.
    """
    cut = {}
    for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings(params, mesh)):
        cut[tuple(str(getattr(p, "key", p)) for p in path)] = sharding
    shapes = {tuple(str(getattr(p, "key", p)) for p in path): leaf.shape
              for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def shard(path, leaf):
        names = tuple(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        for start in range(len(names)):
            tail = names[start:]
            if tail in cut and shapes[tail] == leaf.shape:
                return cut[tail]
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(shard, state)


def constrain(x: jax.Array, letters: str) -> jax.Array:
    """Pins an activation to its place on the current mesh; without a mesh it stays as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(letters))
