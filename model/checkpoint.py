"""Parameters out of a checkpoint of training, without the rest of its state.

`train.checkpoints` writes the folders, one a step; of these only `params`, the running average
`ema` and what schedule-free AdamW averages are read. Files and arrays are verified as they are
there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from core.artifacts import read_json
from core.errors import UserError, first_line
from core.file_sums import DamagedError, check_sums
from model.config import ModelConfig
from model.digests import named_leaves, read_digests, start_digests
from model.families.registry import Params, abstract_params

OTHER = "name another run, or another step"


def saved_steps(folder: Path) -> list[int]:
    """The steps saved completely in a folder of checkpoints, the oldest first."""
    return sorted(int(path.name) for path in Path(folder).glob("*") if path.name.isdecimal())


def load_checkpoint(folder: Path, step: int, config: ModelConfig, *, raw: bool = False) -> Params:
    """Loads a step's parameters onto one device: those that training would keep.

    These are the running average where one is kept, schedule-free AdamW's average (arXiv
    2405.15682), and else the parameters of the last update.

    Args:
        folder: of checkpoints.
        raw: leaves a running average aside.

    Raises:
        UserError: the step is damaged, or holds other parameters than those of this model: an
            adapter's, or another architecture's.
    """
    place = Path(folder).absolute() / str(step)
    try:
        check_sums(place)
        leaves = read_json(place / "record" / "metadata")["leaves"]
    except (DamagedError, KeyError) as damage:
        raise UserError(str(place), f"is damaged ({damage})", OTHER) from None
    shapes = abstract_params(config)
    averages = not raw and any(name.startswith("ema/") for name in leaves)
    part = "ema" if averages else "params"
    _check_shapes(place, leaves, {part: shapes})
    wanted: dict[str, Any] = {part: shapes}
    free = [match for name in leaves
            if (match := re.fullmatch(r"opt_state/(\d+)/weight_sum", name))]
    if free and not averages:
        index, num = int(free[0][1]), 1 + max(
            int(name.split("/")[1]) for name in leaves if name.startswith("opt_state/"))
        wanted["opt_state"] = [ocp.PLACEHOLDER] * num
        wanted["opt_state"][index] = {"z": shapes, "b1": jax.ShapeDtypeStruct((), jnp.float32)}
    found = _restore(place, wanted)
    digests, _ = read_digests(named := named_leaves(found), start_digests(named))
    for name, digest in digests.items():
        if leaves[name]["digest"] != digest:
            raise UserError(str(place), f"is damaged: {name} is not what was saved", OTHER)
    if "opt_state" not in wanted:
        return found[part]
    own = found["opt_state"][index]
    return schedule_free_eval_params(ScheduleFreeState(
        b1=own["b1"], weight_sum=None, step_count=None, max_lr=None, base_optimizer_state=None,
        z=own["z"]), found[part])


def _restore(place: Path, wanted: Any) -> Any:
    device = SingleDeviceSharding(jax.local_devices()[0])
    item = jax.tree.map(lambda leaf: leaf if leaf is ocp.PLACEHOLDER else jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=device), wanted)
    arguments = ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(place / "state", args=arguments)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(str(place), f"cannot be read ({first_line(error)})", OTHER) from None


def _check_shapes(place: Path, saved: dict[str, Any], shapes: Any) -> None:
    """Raises `UserError`, naming the first array that is missing or of another shape."""
    part = next(iter(shapes))
    expected = {name: list(leaf.shape) for name, leaf in named_leaves(shapes).items()}
    own = {name for name in saved if name.startswith(f"{part}/")}
    for name in sorted(expected.keys() | own):
        if name not in expected or name not in saved or saved[name]["shape"] != expected[name]:
            raise UserError(str(place), f"{name} is not that of the run's model: an adapter's "
                            "checkpoint holds no model", OTHER)
