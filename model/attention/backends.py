"""Attention backends: one is chosen from config and machine, and logged.

    xla      any device; materialises a layer's scores, [B, H, L, L]
    cudnn    NVIDIA GPUs from compute capability 9.0 on, bfloat16
    pallas   NVIDIA GPUs from compute capability 8.0 on, bfloat16
    splash   TPUs

All are exact for packed rows. Only `xla` computes what `model.attention.kind` adds to plain
causal attention. Where the mesh shards rows over `context`, attention across shards
runs in plain XLA, block by block: see `model.attention.blockwise`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from core.errors import UserError
from model.attention import cudnn
from model.attention.blockwise import attend_gathered, attend_ring
from model.attention.kind import Extras, Kind, kind_of, only_of_xla
from model.attention.pallas import attend_splash, attend_triton
from model.attention.placement import attend_in_place
from model.attention.reference import attend, document_mask, tree_mask
from model.config import ModelConfig
from model.execution import Execution

KERNELS = {"cudnn": cudnn.attend, "pallas": attend_triton, "splash": attend_splash}
ACROSS_SHARDS = {"ring": attend_ring, "all_gather": attend_gathered}
FASTEST_FIRST = {"gpu": ("cudnn", "pallas", "xla"), "tpu": ("splash", "xla")}
# Lowest compute capability, and the smallest and largest head size.
CUDA_RULES = {"cudnn": ((9, 0), 8, 256), "pallas": ((8, 0), 16, 128)}


class Machine(NamedTuple):
    """What a backend's rules depend on.

    Attributes:
        platform: as `jax.default_backend` names it.
        name: the kind of device.
        capability: CUDA compute capability; (0, 0) for anything but an NVIDIA GPU.
    """

    platform: str
    name: str
    capability: tuple[int, int]


def attend_documents(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                     segment_ids_BL: jax.Array, positions_BL: jax.Array, *,
                     kind: Kind, extras: Extras, execution: Execution) -> jax.Array:
    """Attention inside each document of packed rows; returns out_BLHK.

    Args:
        segment_ids_BL: document of each token in its row, from 1; 0 is padding, which attends
            to padding and so stays finite. The tokens of a document are contiguous.
        positions_BL: position of each token in its document.
        kind: of trees of tokens, `segment_ids_BL` is `ends_BL` of `tree_mask`.

    Raises:
        UserError: the backend that `execution` names cannot run here.
    """
    num_shards = num_context_shards(q_BLHK.shape[1])
    backend = choose_backend(kind, execution, num_shards)
    if backend == "xla" and num_shards == 1:
        mask_BLM = (tree_mask(segment_ids_BL, positions_BL, kind, extras.is_global)
                    if kind.is_tree else document_mask(segment_ids_BL, kind, extras.is_global))
        return attend(q_BLHK, k_BLGK, v_BLGK, mask_BLM, kind, extras)
    if kind.scale:      # the others scale by the root of the head size
        q_BLHK = q_BLHK * (kind.scale * kind.head_size**0.5)
    args = (q_BLHK, k_BLGK, v_BLGK, segment_ids_BL, positions_BL)
    if num_shards > 1:
        return attend_in_place(ACROSS_SHARDS[execution.context_attention], *args)
    return attend_in_place(KERNELS[backend], *args)


def num_context_shards(row_length: int) -> int:
    """Shards that the current mesh cuts rows into; 1 without a mesh or if it does not divide."""
    size = jax.sharding.get_abstract_mesh().shape.get("context", 1)
    return 1 if row_length % size else size


def choose_backend(kind: Kind, execution: Execution, num_shards: int = 1,
                   machine: Machine | None = None) -> str:
    """The backend for this kind: the one requested, or for `auto` the fastest that can run.

    Args:
        num_shards: size of the mesh's `context` axis.
        machine: the devices' kind; None for this process's own.

    Raises:
        UserError: `execution` names a backend that cannot run here, or rows are cut over `context`
            for a kind of attention that does not cross it.
    """
    machine = machine or this_machine()
    if num_shards > 1 and (part := only_of_xla(kind)):
        raise UserError(f"mesh.context={num_shards}", f"is not possible for attention with {part}",
                        "set --config.mesh.context=1")
    requested = execution.attention
    if requested == "auto":
        return next(backend for backend in _fastest_first(machine)
                    if obstacle(backend, kind, execution, num_shards, machine) is None)
    if rule := obstacle(requested, kind, execution, num_shards, machine):
        raise UserError(f"attention={requested!r}", rule,
                        "change that, or set run.attention to auto")
    return requested


def describe(config: ModelConfig, execution: Execution, mesh: Mesh,
             machine: Machine | None = None) -> str:
    """Text for the log: the backend and, if `auto` did not choose the fastest, the reason."""
    machine, num_shards = machine or this_machine(), mesh.shape["context"]
    kind = kind_of(config)
    backend = choose_backend(kind, execution, num_shards, machine)
    text = f"{backend} attention"
    if num_shards > 1:
        text += f", {execution.context_attention} over {num_shards} context shards"
    fastest = _fastest_first(machine)[0]
    if execution.attention == "auto" and backend != fastest:
        text += f" ({fastest} {obstacle(fastest, kind, execution, num_shards, machine)})"
    return text


@cache
def this_machine() -> Machine:
    """The kind of this process's devices."""
    device = jax.devices()[0]
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    is_cuda = major.isdecimal() and minor.isdecimal()  # AMD's are names such as gfx942
    return Machine(jax.default_backend(), device.device_kind,
                   (int(major), int(minor)) if is_cuda else (0, 0))


def _fastest_first(machine: Machine) -> tuple[str, ...]:
    return FASTEST_FIRST.get(machine.platform, ("xla",))


def obstacle(backend: str, kind: Kind, execution: Execution, num_shards: int,
             machine: Machine) -> str | None:
    """The rule that prevents a backend from running, as a predicate; None if it can run."""
    if backend == "xla":
        return None
    if part := only_of_xla(kind):
        return f"has no {part}"
    if backend == "splash":
        if machine.platform != "tpu":
            return f"needs a TPU, not {machine.name}"
        if kind.head_size % 64:
            return f"needs model.K divisible by 64, not {kind.head_size}"
    else:
        oldest, smallest, largest = CUDA_RULES[backend]
        if machine.capability < oldest:
            return (f"needs an NVIDIA GPU of compute capability {oldest[0]}.{oldest[1]}, "
                    f"not {machine.name}")
        if execution.compute_dtype != "bfloat16":
            return f"needs compute_dtype=bfloat16, not {execution.compute_dtype}"
        size = kind.head_size
        if size % 8 or not smallest <= size <= largest:
            return f"needs model.K divisible by 8 from {smallest} to {largest}, not {size}"
    if num_shards > 1:
        return f"does not cross mesh.context={num_shards}"
    return _missing_cudnn() if backend == "cudnn" else None


def _missing_cudnn() -> str | None:
    try:
        cudnn.load()
    except RuntimeError as error:
        return str(error)
    return None
