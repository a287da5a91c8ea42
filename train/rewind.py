"""Rewinds a run after a loss spike: back to a checkpoint, skipping the batches around the spike.

As in PaLM (arXiv 2204.02311, section 5.1): restart some 100 steps before a spike and skip the 200
to 500 batches around it; the same batches from another state did not spike again. Steps count
updates and the loader counts batches, so after a rewind the two differ; `rewinds.json` records
where and by how much, and is durable.

The loop must, in this order: `plan`, `record`, delete the checkpoints after `restore_step`,
`complete`, restore. A new process first completes a `pending` rewind. At each step, restored or
reached, the run sets its loader to `resume_index(step)` if there is one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.artifacts import read_json, write_json
from core.errors import UserError
from core.progress import log


@dataclasses.dataclass(frozen=True)
class Rewind:
    """One rewind.

    Attributes:
        step: the step that triggered it.
        restore_step: the checkpoint to continue from.
        resume_index: the next batch, counted from the loader's start.
    """

    step: int
    restore_step: int
    resume_index: int


class Rewinds:
    """The rewinds of one run, stored in a file.

    Args:
        path: `rewinds.json` in the run's folder.
        section: `after` refusals in a row (0: never), `steps_back` from the first of them,
            `skip_batches` beyond those already read, `max_retries` in the whole run.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path, section: ConfigDict):
        self._path = path
        self._section = section
        self._rewinds, self._num_complete = _read(path) if path.exists() else ([], 0)

    def is_due(self, refused_in_row: int) -> bool:
        """Whether that many refusals in a row trigger a rewind."""
        return 0 < self._section.after <= refused_in_row

    def plan(self, step: int, next_index: int, checkpoint_steps: Iterable[int]) -> Rewind:
        """Chooses the checkpoint to restore and the next batch.

        Args:
            step: the last step, at which `is_due` became true.
            next_index: the batch that the loader would return next.
            checkpoint_steps: those that can be restored.

        Raises:
            UserError: the retries are used up, or no checkpoint is old enough.
        """
        self.check_retries()
        first_refused = step - self._section.after + 1
        older = [saved for saved in checkpoint_steps if saved < first_refused]
        if not older:
            raise UserError(f"step {first_refused}", "no checkpoint is older than this step",
                            "lower the learning rate, or run.checkpoint_every for an earlier one")
        far = [saved for saved in older if saved <= first_refused - self._section.steps_back]
        restore_step = max(far, default=min(older))
        if not far:
            log(f"no checkpoint {self._section.steps_back} steps before step {first_refused}: "
                f"going back to step {restore_step}, the oldest there is")
        return Rewind(step, restore_step, next_index + self._section.skip_batches)

    def check_retries(self) -> None:
        """Raises `UserError`, naming the steps, when no rewind is left."""
        if len(self._rewinds) >= self._section.max_retries:
            steps = ", ".join(str(rewind.step) for rewind in self._rewinds) or "none"
            raise UserError(f"rewind.max_retries={self._section.max_retries}",
                            f"is used up, after rewinds at steps: {steps}",
                            "lower the learning rate or inspect the data of these steps")

    def record(self, rewind: Rewind) -> None:
        """Writes the rewind to disk; after a crash from here on it is completed."""
        self._rewinds.append(rewind)
        self._write()

    @property
    def pending(self) -> Rewind | None:
        """The rewind that is recorded but not complete: later checkpoints are not yet deleted."""
        return self._rewinds[-1] if self._num_complete < len(self._rewinds) else None

    def complete(self) -> None:
        """Records that no checkpoint after `pending.restore_step` is left."""
        self._num_complete = len(self._rewinds)
        self._write()

    def resume_index(self, step: int) -> int | None:
        """The loader's index at `step`, if the run was rewound to it; else None.

        A rewind to an earlier step overrides those to later steps: the run reaches those again with
        other batches, all of them later ones.
        """
        for rewind in reversed(self._rewinds):
            if rewind.restore_step <= step:
                return rewind.resume_index if rewind.restore_step == step else None
        return None

    def _write(self) -> None:
        """Writes the file on process 0; the others compute the same plan from the same numbers."""
        if jax.process_index() != 0:
            return
        write_json(self._path, {"num_complete": self._num_complete,
                                "rewinds": [dataclasses.asdict(each) for each in self._rewinds]})
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the file's new name durable as well
        finally:
            os.close(folder)


def _read(path: Path) -> tuple[list[Rewind], int]:
    try:
        saved = read_json(path)
        rewinds = [Rewind(**each) for each in saved["rewinds"]]
        num_complete = saved["num_complete"]
        numbers = [num_complete, *(n for each in rewinds for n in dataclasses.astuple(each))]
        is_sound = all(type(n) is int and n >= 0 for n in numbers) and num_complete <= len(rewinds)
    except (UserError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise UserError(str(path), "is damaged",
                        "restore it from a copy, or delete the run's folder to begin again")
    return rewinds, num_complete
