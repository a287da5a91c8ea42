"""Reads a run's checkpoints and verifies them; changes nothing on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from core.errors import UserError
from core.file_sums import DamagedError, check_sums
from model.digests import named_leaves, read_digests, start_digests
from train.checkpoints.record import Record, check_architecture, check_digests
from train.distributed import any_process
from train.state import TrainState

# Exceptions of Orbax, TensorStore and JSON on damaged files.
DAMAGE_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError)
REFUSAL_ERRNOS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE)
SAME_CONFIG = "go back to the config of that run, or choose another --workdir"


class StepReader:
    """The steps in one folder of checkpoints.

    With several processes, all must make the same calls, on one shared folder.

    Args:
        folder: has a folder for each step.
        checkpointer: of Orbax, with the items of `Checkpoints`.
    """

    def __init__(self, folder: Path, checkpointer: ocp.Checkpointer):
        self._folder, self._checkpointer = folder.absolute(), checkpointer

    def restore(self, step: int, state: TrainState, *,
                remedy: str = SAME_CONFIG) -> tuple[TrainState, Any]:
        """Restores one step; and the position of its loader.

        Args:
            state: gives shapes, dtypes and shardings, and may be abstract.
            remedy: for a state of another model or optimizer.

        Raises:
            DamagedError: it is not what was saved.
            UserError: it is of another model or optimizer.
        """
        record, shapes = self.check(step, state, remedy=remedy), _as_shapes(state)
        self._check_files(step)
        saved = self._read(step, state=ocp.args.StandardRestore(shapes))
        leaves = named_leaves(saved)
        digests, _ = read_digests(leaves, start_digests(leaves))
        check_digests(record, digests)
        key = jax.random.wrap_key_data(saved["key"])
        return TrainState(**saved | {"key": key}), record["batches"]

    def check(self, step: int, state: TrainState, *, remedy: str = SAME_CONFIG) -> Record:
        """Checks that a step fits a state, without reading its arrays; raises as `restore`."""
        record = self.read_record(step)
        check_architecture(record, _as_shapes(state), f"{self._folder}/{step}", remedy)
        return record

    def read_record(self, step: int) -> Record:
        """What is recorded of a step beside its arrays; raises `DamagedError`."""
        self._check_files(step, part="record")
        record = self._read(step, record=ocp.args.JsonRestore())
        if record["step"] != step:
            raise DamagedError(f"it is that of step {record['step']}")
        return record

    def _check_files(self, step: int, part: str = "") -> None:
        """Checks each process's share of the files; raises `DamagedError` on all if one is bad."""
        damage = ""
        try:
            check_sums(self._folder / str(step), select=lambda name: name.startswith(part),
                       index=jax.process_index(), count=jax.process_count())
        except DamagedError as error:
            damage = str(error)
        if any_process(bool(damage)):
            raise DamagedError(damage or "reported by another process")

    def _read(self, step: int, **items: Any) -> Any:
        """Reads one item of a step; raises `DamagedError` on all processes if it is damaged."""
        item, damage = None, ""
        try:
            restored = self._checkpointer.restore(self._folder / str(step),
                                                  args=ocp.args.Composite(**items))
            (item,) = (restored[name] for name in items)
        except Exception as error:
            cause = _root_cause(error)
            if not isinstance(cause, DAMAGE_ERRORS) or _is_refusal(cause):
                raise
            damage = f"{min(items)}: {first_line(cause)}"
        if any_process(bool(damage)):
            raise DamagedError(damage or "reported by another process")
        return item


@dataclasses.dataclass(frozen=True)
class Branch:
    """A checkpoint of another run, from which a run begins with the whole state.

    Attributes:
        folder: the other run's `checkpoints`.
        step: one of its steps.
        field: of the config, that names the step, for messages.
        remedy: for a state that does not fit this run's.
    """

    folder: Path
    step: int
    field: str
    remedy: str

    def restore(self, state: TrainState) -> TrainState:
        """The state on this run's mesh; see `StepReader.restore`."""
        with self._open() as reader:
            return reader.restore(self.step, state, remedy=self.remedy)[0]

    def check(self, state: TrainState) -> None:
        """Raises `UserError` when the checkpoint does not fit this run's state."""
        with self._open() as reader:
            reader.check(self.step, state, remedy=self.remedy)

    def next_index(self) -> int:
        """The batch, counted from the other run's first, that it would have read next."""
        with self._open() as reader:
            return reader.read_record(self.step)["batches"]["next_index"]

    @contextlib.contextmanager
    def _open(self) -> Iterator[StepReader]:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            try:
                yield StepReader(self.folder, checkpointer)
            except DamagedError as damage:
                raise UserError(f"{self.folder}/{self.step}", f"is damaged ({damage})",
                                f"name another step with --config.{self.field}") from None


def as_tree(state: TrainState, words_of_key: Any) -> dict[str, Any]:
    """The state as plain arrays: a typed PRNG key is stored as its words."""
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state,
            "guard": state.guard, "ema": state.ema, "key": words_of_key(state.key)}


def _as_shapes(state: TrainState) -> dict[str, Any]:
    """Shapes, dtypes and shardings of `as_tree`."""
    shapes = jax.eval_shape(lambda state: as_tree(state, jax.random.key_data), state)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, as_tree(state, lambda key: key))
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)


def _root_cause(error: BaseException) -> BaseException:
    """The innermost cause of an exception that Orbax wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_refusal(error: BaseException) -> bool:
    """Whether a file could not be opened for lack of permission or resources: no sign of damage."""
    return (getattr(error, "errno", None) in REFUSAL_ERRNOS
            or any(status in str(error) for status in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED")))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to a readable length."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
