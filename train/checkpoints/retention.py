"""Retention: which of a run's checkpoints are kept, and deletion of the others."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from core.artifacts import free_name
from core.progress import log

TMP_SUFFIX = ".orbax-checkpoint-tmp"    # Orbax's suffix of a step that is being written
DELETED_SUFFIX = f".deleted{TMP_SUFFIX}"
LEFTOVER_TRIES, LEFTOVER_SECS = 50, 0.1     # of looking for leftovers, and the time between two


class StepFolders:
    """The folders of the saved steps, named by their numbers; used by one process only.

    Args:
        folder: contains them; created if missing.
        keep: how many of the newest to keep.
        keep_every: steps that it divides are kept forever; 0 keeps none forever.
    """

    def __init__(self, folder: Path, keep: int, keep_every: int):
        self._folder, self._keep, self._keep_every = folder, keep, keep_every
        folder.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()

    def steps(self) -> list[int]:
        """The steps that were saved completely, the oldest first."""
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())

    def damaged(self) -> list[Path]:
        """The folders that `set_aside` renamed."""
        return sorted(self._folder.glob("*.damaged*"))

    def set_aside(self, step: int) -> str:
        """Renames a step so that it is never restored again; returns its new name."""
        target = free_name(self._folder / f"{step}.damaged")
        os.rename(self._folder / str(step), target)
        return target.name

    def delete_after(self, step: int) -> None:
        """Deletes the steps after `step`, the newest first."""
        for later in reversed(self.steps()):
            if later > step:
                self._delete(self._folder / str(later))

    def delete_old(self) -> None:
        """Deletes the steps that are neither among the newest nor kept forever."""
        for path in self._expired(self._keep):
            self._delete(path)

    def make_room(self, need_bytes: int) -> bool:
        """Whether there is enough disk space, after deleting damaged and old steps if that helps.

        The newest step and those that are kept forever are not deleted.
        """
        spare = [*self.damaged(), *self._expired(1)]
        if self._free_bytes() + sum(map(_size_bytes, spare)) < need_bytes:
            return False
        while self._free_bytes() < need_bytes and spare:
            log(f"no room for one more checkpoint: deleting {spare[0].name}")
            self._delete(spare.pop(0))
        return self._free_bytes() >= need_bytes

    def remove_leftovers(self) -> None:
        """Deletes files left by failed saves and killed processes.

        A save fails with its first array; others may still be written for a moment.
        """
        for _ in range(LEFTOVER_TRIES):
            left = [*self._folder.glob(f"*{TMP_SUFFIX}*")]
            if not left:
                return
            for path in left:
                shutil.rmtree(path, ignore_errors=True)
            time.sleep(LEFTOVER_SECS)

    def _expired(self, num_newest: int) -> list[Path]:
        """The steps before the newest ones that are not kept forever, the oldest first."""
        return [self._folder / str(step) for step in self.steps()[:-num_newest]
                if not self._keep_every or step % self._keep_every]

    def _delete(self, path: Path) -> None:
        """Renames, then deletes, so that a partly deleted step is not taken for a complete one."""
        renamed = path.with_name(path.name + DELETED_SUFFIX)
        os.rename(path, renamed)
        shutil.rmtree(renamed)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free


def _size_bytes(folder: Path) -> int:
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))
