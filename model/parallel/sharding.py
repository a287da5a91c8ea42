"""Sharding rules: tables map axis letters to mesh axes.

A parameter's name ends in its axis letters (`wq_DHK`), so the name determines its sharding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution

ROWS = "VLAW"   # letters of rows that are looked up: by token, position, type and distance

# From the slowest link to the fastest: `tensor` communicates most.
MESH_AXES = ("stage", "data", "fsdp", "expert", "context", "tensor")

Rules = Mapping[str, str | tuple[str, ...] | None]

# Parameters and their optimizer moments: width over `fsdp` (ZeRO-3, arXiv 1910.02054), layers over
# `stage`, experts over `expert`, the rest over `tensor`.
PARAM_RULES: Rules = {"V": "tensor", "D": "fsdp", "F": "tensor", "H": "tensor", "G": "tensor",
                      "K": None, "N": "stage", "E": "expert", "Z": None, "L": None, "W": None,
                     "A": None, "Q": None, "O": None, "I": None, "Y": None}

# Activations inside a layer: rows over all axes that only shard the batch, positions over
# `context`, the hidden axes over `tensor`.
ACTIVATION_RULES: Rules = {"B": ("data", "fsdp", "expert"), "L": "context", "D": None,
                           "F": "tensor", "H": "tensor", "G": "tensor", "K": None, "V": "tensor",
                           "E": None, "C": None, "S": "stage", "U": None, "Z": None,
                           "A": None, "Q": None}

# The residual stream between attention and MLP: positions over `tensor` too, so that norms and
# saved activations are sharded as well (sequence parallelism, arXiv 2205.05198).
STREAM_RULES: Rules = {**ACTIVATION_RULES, "L": ("context", "tensor")}

# After the layers, rows are sharded over a pipeline's stages too: each computes part of the head.
HEAD_RULES: Rules = {**ACTIVATION_RULES, "B": ("data", "fsdp", "expert", "stage")}


def make_mesh(section: Mapping[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of a config's `mesh` section.

    Args:
        section: size of each axis; a missing one is 1, and one may be -1: all remaining devices.

    Raises:
        UserError: an axis is unknown, or the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if unknown := set(section) - set(MESH_AXES):
        raise UserError(f"mesh.{min(unknown)}", "is no axis of a mesh",
                        f"choose among {', '.join(MESH_AXES)}")
    shape = [int(section.get(axis, 1)) for axis in MESH_AXES]
    given = {axis: int(size) for axis, size in section.items()}
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1 or known < 1 or len(devices) % known:
        raise UserError(f"mesh={given}", f"does not divide {len(devices)} devices",
                        "set --config.mesh.data=-1 and axes whose product divides them")
    shape = [len(devices) // known if size == -1 else size for size in shape]
    if math.prod(shape) != len(devices):
        raise UserError(f"mesh={given}", f"does not use all {len(devices)} devices",
                        "set --config.mesh.data=-1")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(shape),
                         devices=devices)


def check_mesh(config: ModelConfig, execution: Execution, mesh: Mesh, *, batch_size: int,
               row_length: int) -> None:
    """Raises `UserError` if the mesh does not divide model, batch or row; run before compilation.

    Args:
        batch_size: rows of one forward pass, over all devices.
        row_length: positions of a row.

    Raises:
        UserError: names the first size that does not fit.
    """
    for letter in "DFHGEN":     # V is padded: see `pad_vocabulary`
        _check_divides(letter, getattr(config, letter), mesh)
    if mesh.shape["expert"] > 1 and not config.E:
        raise UserError(f"mesh.expert={mesh.shape['expert']}", "needs a model with experts",
                        "set --config.mesh.expert=1 or --config.model.E")
    if mesh.shape["stage"] > 1 and config.family in ("encoder_decoder", "lstm"):
        raise UserError(f"mesh.stage={mesh.shape['stage']}",
                        f"is not possible for family={config.family!r}",
                        "set --config.mesh.stage=1")
    _check_pipeline(config, execution, mesh, batch_size)
    if batch_size % num_batch_shards(mesh):
        raise UserError(f"batch_size={batch_size}",
                        f"is not divisible by {num_batch_shards(mesh)} data shards",
                        "change the batch size or --config.mesh")
    parts = math.prod(mesh.shape[axis] for axis in STREAM_RULES["L"])
    if row_length % parts:
        raise UserError(f"row_length={row_length}",
                        f"is not divisible by mesh.context x mesh.tensor = {parts}",
                        f"take a multiple of {parts} or change --config.mesh")


def _check_pipeline(config: ModelConfig, execution: Execution, mesh: Mesh,
                    batch_size: int) -> None:
    """Raises `UserError` if stages, rounds and microbatches do not fit each other."""
    stages, rounds = mesh.shape["stage"], execution.pipeline_rounds
    if stages == 1:
        return
    if config.N % (stages * rounds):
        raise UserError(f"model.N={config.N}",
                        f"is not divisible by {stages} stages x {rounds} pipeline_rounds",
                        "change --config.mesh.stage or run.pipeline_rounds")
    microbatches = execution.pipeline_microbatches or stages
    if rounds > 1 and microbatches < stages:
        raise UserError(f"pipeline_microbatches={microbatches}",
                        f"must be at least mesh.stage={stages} when there are rounds",
                        "raise it or set run.pipeline_rounds to 1")
    if execution.remat == "dots":
        raise UserError("remat='dots'", "would keep nothing in a pipeline, where a matmul is "
                        "batched over stages", "take names:qkv,attention,hidden,residual")
    shards = num_batch_shards(mesh)
    if batch_size % (shards * microbatches):
        raise UserError(f"batch_size={batch_size}",
                        f"is not divisible by {shards} data shards x {microbatches} pieces for "
                        "the pipeline", "change it or run.pipeline_microbatches")


def _check_divides(letter: str, size: int, mesh: Mesh) -> None:
    """Raises `UserError` if the mesh axis does not divide the parameter's axis."""
    axis = PARAM_RULES[letter]
    parts = mesh.shape[axis] if axis else 1
    if size % parts:
        raise UserError(f"mesh.{axis}={parts}", f"does not divide model.{letter}={size}",
                        f"change --config.mesh.{axis} or --config.model.{letter}")


def num_batch_shards(mesh: Mesh) -> int:
    """Number of shards that the mesh cuts a batch into."""
    return math.prod(mesh.shape[axis] for axis in ACTIVATION_RULES["B"])


def num_stages() -> int:
    """Pipeline stages of the current mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get("stage", 1)


def spec(letters: str, rules: Rules = ACTIVATION_RULES) -> P:
    """The partition of a tensor whose axes are `letters`, e.g. ``spec("BLD")``."""
    return P(*(rules[letter] for letter in letters))


def fitting_spec(letters: str, shape: tuple[int, ...], rules: Rules = ACTIVATION_RULES) -> P:
    """`spec` on the current mesh without the mesh axes that do not divide the tensor's axis.

    E.g. in decoding of a single row, L and often B are 1.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    parts = []
    for entry, size in zip(spec(letters, rules), shape):
        axes = []
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            if size % math.prod([sizes[a] for a in axes], start=sizes[axis]) == 0:
                axes.append(axis)
        parts.append(tuple(axes) or None)
    return P(*parts)


def constrain(x: jax.Array, letters: str, rules: Rules = ACTIVATION_RULES) -> jax.Array:
    """Shards an activation over the current mesh; returns it unchanged without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, fitting_spec(letters, x.shape, rules))


def pad_vocabulary(table: jax.Array, axis: int) -> jax.Array:
    """Appends zeros along a table's axis V until the current mesh's axis `tensor` divides it.

    For the time of its use alone: parameters have V entries on every mesh and on disk, so that
    neither their number nor a checkpoint depends on a mesh. Whoever reads logits of the padding
    masks them.
    """
    missing = -table.shape[axis] % jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    if not missing:
        return table
    return jnp.pad(table, [(0, missing * (place == axis)) for place in range(table.ndim)])


def leaf_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf in a tree as one name, e.g. ``params/blocks/wq_DHK``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def param_name(path: tuple[Any, ...]) -> str:
    """A parameter's own name, the last part of its path, e.g. ``wq_DHK``."""
    return leaf_name(path[-1:])


def letters_of(path: tuple[Any, ...], rank: int) -> str:
    """The axis letters of the parameter at `path`; layers stacked in front add an ``N``.

    Raises:
        ValueError: the name has no letters, or not as many as the parameter has axes.
    """
    name = param_name(path)
    letters = name.rpartition("_")[2]
    stacked = "N" * (rank - len(letters))
    if not letters.isupper() or len(stacked) > 1:
        raise ValueError(f"parameter {name!r} of rank {rank} does not end in its axis letters")
    return stacked + letters


def is_weight(path: tuple[Any, ...], rank: int) -> bool:
    """Whether activations are multiplied with the parameter at `path`: it is no norm, no bias and
    no table of rows to look up."""
    letters = letters_of(path, rank).lstrip("N")
    return (len(letters) > 1 and not set(letters) & set(ROWS)
            and "_bias_" not in param_name(path))


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """A tree of `NamedSharding` for a tree of parameters (or of their shapes).

    A vocabulary that `tensor` does not divide stays whole, and `tensor` shards the width instead,
    beside `fsdp`, where both divide it.

    Raises:
        UserError: a mesh axis does not divide the parameter's axis.
    """
    def shard(path, leaf):
        letters, rules = letters_of(path, leaf.ndim), PARAM_RULES
        sizes = dict(zip(letters, leaf.shape))
        if sizes.get("V", 0) % mesh.shape["tensor"]:
            both = mesh.shape["fsdp"] * mesh.shape["tensor"]
            width = "fsdp" if sizes.get("D", 1) % both else ("fsdp", "tensor")
            rules = {**PARAM_RULES, "V": None, "D": width}
        for letter in letters.replace("V", ""):
            _check_divides(letter, sizes[letter], mesh)
        return NamedSharding(mesh, spec(letters, rules))

    return jax.tree_util.tree_map_with_path(shard, params)


def state_shardings(state: Any, params: Any, mesh: Mesh) -> Any:
    """Shardings of a train state: leaves that mirror a parameter like it, the rest replicated.

    Moments and averages are trees of their own, or a small state for each parameter, so a leaf is
    matched by its shape and the part of its path that is a parameter's. Adafactor's factored
    moments have another shape and are small, hence replicated.
    """
    places = {leaf_name(path): sharding for path, sharding in
              jax.tree_util.tree_leaves_with_path(param_shardings(params, mesh))}
    shapes = {leaf_name(path): leaf.shape for path, leaf in
              jax.tree_util.tree_leaves_with_path(params)}

    def shard(path, leaf):
        for start, end in itertools.combinations(range(len(path) + 1), 2):
            name = leaf_name(path[start:end])
            if shapes.get(name) == leaf.shape:
                return places[name]
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(shard, state)
