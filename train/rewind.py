"""Rewinding a run that has gone astray: back to a checkpoint, and past the batches of the trouble.

As in PaLM (arXiv 2204.02311, section 5.1): restart some 100 steps before a spike and skip the 200
to 500 batches around it; the same batches from another state did not spike again. Steps count
updates, the loader counts batches on its own, so after a rewind the two no longer agree; the file
`rewinds.json` says where and by how much, and outlives any kill.

The loop's part, in this order: `plan`, `record`, delete the checkpoints behind `restore_step`,
`complete`, restore. A process that starts finishes what `pending` names first. Whenever the run
stands at a step, restored or reached, it sets its loader to `resume_index(step)` if there is one.
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
    """One way back.

    Attributes:
        step: the step that gave up.
        restore_step: the checkpoint to go on from.
        resume_index: the batch to go on with, counted from the loader's start.
    """

    step: int
    restore_step: int
    resume_index: int


class Rewinds:
    """The rewinds of one run, kept in a file.

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
        """Whether that many refusals in a row are too many."""
        return 0 < self._section.after <= refused_in_row

    def plan(self, step: int, next_index: int, checkpoint_steps: Iterable[int]) -> Rewind:
        """Chooses the checkpoint to restore and the batch to go on with.

        Args:
            step: the last step, at which `is_due` became true.
            next_index: the batch that the loader would give next.
            checkpoint_steps: those that can be restored.

        Raises:
            UserError: the retries are used up, or no checkpoint is older than the trouble.
        """
        self.check_retries()
        first_refused = step - self._section.after + 1
        older = [saved for saved in checkpoint_steps if saved < first_refused]
        if not older:
            raise UserError(f"step {first_refused}", "the trouble is older than every checkpoint",
                            "lower the learning rate, or checkpoint_every to have one before it")
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
                            "lower the learning rate or look at the data behind these steps")

    def record(self, rewind: Rewind) -> None:
        """Writes the rewind to the disk; from here on it happens, whatever dies."""
        self._rewinds.append(rewind)
        self._write()

    @property
    def pending(self) -> Rewind | None:
        """The rewind that is recorded but not complete: later checkpoints are still to go."""
        return self._rewinds[-1] if self._num_complete < len(self._rewinds) else None

    def complete(self) -> None:
        """Says that no checkpoint behind `pending.restore_step` is left."""
        self._num_complete = len(self._rewinds)
        self._write()

    def resume_index(self, step: int) -> int | None:
        """Where the loader must stand at `step`, if the run was rewound to it; else None.

        A rewind to an earlier step makes those to later steps void: the run comes by there again
        on another path, whose batches all lie behind.
        """
        for rewind in reversed(self._rewinds):
            if rewind.restore_step <= step:
                return rewind.resume_index if rewind.restore_step == step else None
        return None

    def _write(self) -> None:
        """One process writes; the others come to the same plan from the same numbers."""
        if jax.process_index() != 0:
            return
        write_json(self._path, {"num_complete": self._num_complete,
                                "rewinds": [dataclasses.asdict(each) for each in self._rewinds]})
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name of the file, too, must outlive a power cut
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
