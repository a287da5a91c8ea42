"""Checkpoints: the train state and the loader's position, saved and restored as one step.

    <folder>/<step>/state/          the arrays, by Orbax
    <folder>/<step>/record/         JSON: the loader's state; shape, dtype and digest of every array
    <folder>/<step>/files.json      checksums of all these files
    <folder>/<step>.damaged/        a step that was damaged, set aside
    <folder>/<step>.orbax-checkpoint-tmp/   a save in progress, or left by a killed one

A step gets its name when it is completely written. Before it is read, its files are compared with
their checksums; the restored arrays are compared with digests computed on the devices before the
save, so that errors in between are detected as well. Damage is logged, and the next older step is
restored. (Two small files of Orbax's own, `_CHECKPOINT_METADATA` and `commit_success.txt`, are
finished after the checksums; nothing restored depends on them.)
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from core.errors import UserError, as_disk_error
from core.file_sums import DamagedError, write_sums
from core.progress import log
from model.digests import named_leaves, read_digests, start_digests
from train.checkpoints.reader import StepReader, as_tree, first_line
from train.checkpoints.record import make_record
from train.checkpoints.retention import TMP_SUFFIX, StepFolders
from train.distributed import any_process
from train.state import TrainState

# Disk space of a save: its arrays, which do not compress, plus names and metadata.
SPACE_FACTOR, SPACE_BYTES = 1.05, 1 << 20


class Checkpoints:
    """Orbax checkpoints of one run; saving does not block the next step.

    With several processes, all must make the same calls, on one shared folder; process 0 decides
    and deletes. Their loaders must be in equal states, as those of `data.tokens` are.

    Args:
        folder: has a folder for each step.
        keep: how many of the newest steps to keep.
        keep_every: steps that it divides are kept forever; 0 keeps none forever.
    """

    def __init__(self, folder: Path, *, keep: int = 2, keep_every: int = 0):
        self._folder = folder.absolute()
        # Only process 0 lists and deletes; it broadcasts the list.
        self._folders = (StepFolders(self._folder, keep, keep_every) if jax.process_index() == 0
                         else None)
        self._saving: int | None = None     # the step being written in the background
        # If a folder cannot be made, fail at once and not after Orbax's ten minutes.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False,
                                           post_finalization_callback=self._write_sums)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(),
                                                   async_options=options)
        self._reader = StepReader(self._folder, self._checkpointer)

    def steps(self) -> list[int]:
        """The steps that were saved completely, the oldest first."""
        return _from_first(self._folders.steps() if self._folders is not None else [])

    def save(self, state: TrainState, batches: grain.DatasetIterator, *,
             required: bool = False) -> bool:
        """Starts saving the state and the position of its loader.

        A full disk costs a checkpoint, not the run: it is logged as a warning, and the next save
        tries again.

        Args:
            required: waits for the end, and raises if the step could not be saved.

        Returns:
            Whether the step is saved or being saved.

        Raises:
            UserError: a number in the state is not finite; nothing is written.
            OSError: the disk is full or broken, if `required`.
        """
        saved = as_tree(state, jax.random.key_data)
        leaves = named_leaves(saved)
        words = start_digests(leaves)
        step, position = int(state.step), batches.get_state()
        self._settle()
        if step in self.steps():
            return True
        digests, not_finite = read_digests(leaves, words)
        if not_finite:
            raise UserError(f"step {step}: {not_finite[0]}", "is not finite, and is not saved",
                            "lower the learning rate; the checkpoints of older steps are intact")
        record = make_record(step, position, leaves, digests)
        error = self._make_room(sum(leaf.nbytes for leaf in leaves.values()))
        return self._report(step, error or self._write(step, saved, record, required), required)

    def restore_latest(self, state: TrainState,
                       batches: grain.DatasetIterator) -> TrainState | None:
        """Restores the newest intact state, and its loader's position; None if none was saved.

        A damaged step is logged and set aside, and the next older one is tried.

        Args:
            state: gives shapes, dtypes and shardings, and may be abstract.

        Raises:
            UserError: there are checkpoints, but none is intact; or they are of another model.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, state, batches)
            except DamagedError as damage:
                self._set_aside(step, damage)
        if steps or any_process(self._folders is not None and bool(self._folders.damaged())):
            raise UserError(str(self._folder), "holds no checkpoint that is intact",
                            "put one back from a copy, or delete this folder to begin again")
        return None

    def restore(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """Restores one step, as `restore_latest` does; raises `UserError` if it is damaged."""
        try:
            return self._restore(step, state, batches)
        except DamagedError as damage:
            self._set_aside(step, damage)
            raise UserError(f"{self._folder}/{step}", "is damaged",
                            "run again to go on from another one") from None

    def delete_after(self, step: int) -> None:
        """Deletes the steps after `step`, the one being saved too, and none for its age.

        A save that ends here would otherwise make `step` itself too old to be kept.
        """
        if self._saving is not None:
            self._wait()    # were it to fail: it is deleted anyway
        if self._folders is not None:
            self._folders.remove_leftovers()
            self._folders.delete_after(step)
        _barrier("delete_after")

    def close(self) -> None:
        """Waits for a save in progress; its failure is logged, not raised."""
        self._settle()
        self._checkpointer.close()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Waits for a save in progress if an error ends the block, so that whoever goes on in this
        process, as in a notebook, finds it whole. One of several processes does not wait: the
        others might never come."""
        try:
            yield
        except BaseException:
            if jax.process_count() == 1:
                self._settle()
            raise

    # --- saving

    def _write(self, step: int, saved: Any, record: Any, wait: bool) -> OSError | None:
        """Copies the state off the devices and writes it in the background."""
        self._saving = step
        try:
            self._checkpointer.save(self._folder / str(step), args=ocp.args.Composite(
                state=ocp.args.StandardSave(saved), record=ocp.args.JsonSave(record)))
        except (OSError, ValueError) as error:
            self._saving = None
            return as_disk_error(error, self._folder)
        return self._wait() if wait else None

    def _write_sums(self) -> None:
        """Writes checksums; called by Orbax's thread after all files and before renaming."""
        if self._folders is not None:
            (folder,) = self._folder.glob(f"{self._saving}{TMP_SUFFIX}*")
            write_sums(folder, folder.glob("*/**/*"))

    def _wait(self) -> OSError | None:
        """Waits for the save in progress; returns its disk error, if any."""
        try:
            self._checkpointer.wait_until_finished()
        except (OSError, ValueError) as error:
            return as_disk_error(error, self._folder)
        finally:
            self._saving = None
        return None

    def _settle(self) -> None:
        """Waits for the save in progress, logs its failure, and deletes old steps."""
        if self._saving is not None:
            step = self._saving
            self._report(step, self._wait(), required=False)

    def _report(self, step: int, error: OSError | None, required: bool) -> bool:
        if error is None:
            if self._saving is None and self._folders is not None:
                self._folders.delete_old()
            return True
        if self._folders is not None:
            self._folders.remove_leftovers()
        if required:
            raise error
        log(f"WARNING: step {step} could not be saved ({error.strerror.lower()}): training "
            "continues, and the next save tries again")
        return False

    def _make_room(self, state_bytes: int) -> OSError | None:
        need_bytes = round(SPACE_FACTOR * state_bytes) + SPACE_BYTES
        if any_process(self._folders is not None and not self._folders.make_room(need_bytes)):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        return None

    # --- restoring

    def _restore(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        restored, position = self._reader.restore(step, state)
        try:
            batches.set_state(position)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._folder}/{step}",
                            f"is of a run over other data ({first_line(error)})",
                            "restore the data, or choose another --workdir") from None
        log(f"restored step {step}")
        return restored

    def _set_aside(self, step: int, damage: DamagedError) -> None:
        if self._folders is not None:
            name = self._folders.set_aside(step)
            log(f"WARNING: checkpoint {step} is damaged ({damage}): kept as {name}, restoring "
                "an older one")
        _barrier("set_aside")


def _from_first(numbers: list[int]) -> list[int]:
    """Process 0's list of numbers, on every process."""
    if jax.process_count() == 1:
        return numbers
    (count,) = multihost_utils.broadcast_one_to_all(np.asarray([len(numbers)], np.int32)).tolist()
    padded = np.asarray((numbers + [0] * count)[:count], np.int32)
    return multihost_utils.broadcast_one_to_all(padded).tolist() if count else []


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"checkpoints {name}")
