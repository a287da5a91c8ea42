"""The record of a checkpoint: step, loader's state, and shape, dtype and digest of each array.

    {"step": 12, "batches": {...},
     "leaves": {"params/embed_VD": {"shape": [98, 32], "dtype": "float32", "digest": "16 hex"}}}
"""

from __future__ import annotations

from typing import Any

import jax

from core.errors import UserError
from core.file_sums import DamagedError
from model.digests import named_leaves

Record = dict[str, Any]


def make_record(step: int, batches: Any, leaves: dict[str, jax.Array],
                digests: dict[str, str]) -> Record:
    """Describes a state.

    Args:
        batches: the loader's state, plain data.
        leaves: arrays by name; only their shapes and dtypes are used.
        digests: 16 hex digits by the same names.
    """
    return {"step": step, "batches": batches, "leaves": {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digests[name]}
        for name, leaf in leaves.items()}}


def check_digests(record: Record, digests: dict[str, str]) -> None:
    """Raises `DamagedError`, naming the first leaf whose digest differs."""
    for name, digest in digests.items():
        if digest != record["leaves"][name]["digest"]:
            raise DamagedError(f"{name} is not what was saved")


def check_architecture(record: Record, shapes: Any, where: str, remedy: str) -> None:
    """Raises `UserError`, naming the first leaf of another shape or dtype than the model's.

    Args:
        shapes: tree of shapes and dtypes of the current model's state.
        where, remedy: the checkpoint and what to do, for the message.
    """
    expected = {name: (list(leaf.shape), str(leaf.dtype))
                for name, leaf in named_leaves(shapes).items()}
    saved = {name: (leaf["shape"], leaf["dtype"]) for name, leaf in record["leaves"].items()}
    for name in [*expected, *saved]:
        if name not in saved:
            raise UserError(where, f"has no {name}, which this config's model has", remedy)
        if name not in expected:
            raise UserError(where, f"has {name}, which this config's model lacks", remedy)
        if expected[name] != saved[name]:
            sides = [f"{dtype} {tuple(shape)}" for shape, dtype in (saved[name], expected[name])]
            raise UserError(where, f"{name} is {sides[0]}, this config's is {sides[1]}", remedy)
