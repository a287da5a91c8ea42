"""Checkpoints: the train state and the loader's state, saved and restored as one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from core.errors import UserError
from core.progress import log
from model.directory import disk_errors
from train.state import TrainState


class Checkpoints:
    """Orbax checkpoints of one run; saving does not block the next step.

    Args:
        folder: where steps are kept, each in a folder of its own.
        keep: how many of the newest steps to keep.
    """

    def __init__(self, folder: Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, cleanup_tmp_directories=True)
        self._folder = folder
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, state: TrainState, rows: grain.DatasetIterator) -> None:
        """Starts saving the state and the position of its loader."""
        with disk_errors(self._folder):
            self._manager.save(int(state.step), args=ocp.args.Composite(
                state=ocp.args.StandardSave(_savable(state)),
                rows=grain.checkpoint.CheckpointSave(rows)))

    def restore_latest(self, state: TrainState, rows: grain.DatasetIterator) -> TrainState:
        """The newest saved state, its loader set to the same step; `state` if there is none.

        Args:
            state: gives shapes and shardings.

        Raises:
            UserError: the newest checkpoint cannot be read or is of another model.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            _savable(state))
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                rows=grain.checkpoint.CheckpointRestore(rows)))
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{self._folder}/{step}", f"cannot be restored ({_first_line(error)})",
                            "delete this step to go on from an older one") from None
        log(f"restored step {step}")
        return _from_savable(restored["state"])

    def close(self) -> None:
        """Waits for a save under way."""
        with disk_errors(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


def _savable(state: TrainState) -> dict[str, Any]:
    """The state as plain arrays: a typed PRNG key is stored as its words."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state,
            "guard": state.guard, "ema": state.ema, "key": jax.random.key_data(state.key)}


def _from_savable(saved: dict[str, Any]) -> TrainState:
    return TrainState(saved["step"], saved["params"], saved["opt_state"],
                      jax.random.wrap_key_data(saved["key"]), saved["guard"], saved["ema"])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
