"""One builder per artifact: its lock, and how the other processes of a run wait for the first."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from core.errors import UserError
from core.processes import ProcessLost

LOCK_SECS = 1.0         # of trying to lock: `is_locked` holds the lock for an instant
FOLLOW_SECS = 0.25      # between two looks at a shared disk


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Holds an artifact for this process; a second builder, of whatever config, is refused.

    The lock lies beside the artifact, so that it stays when a folder is set aside.

    Raises:
        UserError: another process holds the artifact, or its workdir cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        file = open(_lock(final), "w")  # noqa: SIM115 -- closed below
    except OSError as error:
        raise UserError(f"--workdir={final.parent}",
                        f"cannot be written ({error.strerror.lower()})",
                        "choose one that you may write to") from None
    with file:
        deadline = time.monotonic() + LOCK_SECS
        while not _try_lock(file, fcntl.LOCK_EX, final):
            if time.monotonic() >= deadline:
                raise UserError(str(final), "another process is building this artifact",
                                "wait for it, or choose another --workdir")
            time.sleep(0.05)
        yield


def is_locked(final: Path) -> bool:
    """Whether a process, on whatever host that shares the disk, is building this artifact."""
    try:
        with open(_lock(final)) as file:
            return not _try_lock(file, fcntl.LOCK_SH, final)
    except FileNotFoundError:
        return False


def mark_done(partial: Path, index: int) -> None:
    """Marks that this process has done its part and reads nothing more."""
    (partial / f".done-{index}").touch()


def clear_marks(partial: Path, count: int) -> None:
    """Removes the marks of all processes but the first."""
    for index in range(1, count):
        (partial / f".done-{index}").unlink(missing_ok=True)


def await_marks(partial: Path, count: int, wait_secs: float) -> None:
    """Waits, as the first process, until the others have done their parts.

    Raises:
        ProcessLost: they did not within `wait_secs`.
    """
    deadline = time.monotonic() + wait_secs
    while late := [i for i in range(1, count) if not (partial / f".done-{i}").exists()]:
        if time.monotonic() > deadline:
            raise ProcessLost(f"{partial}: process {late[0]} did not end within {wait_secs:g} s of "
                              "process 0: see its log; run the same command again to go on")
        time.sleep(FOLLOW_SECS / 10)


def _lock(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def _try_lock(file: IO[str], kind: int, final: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"--workdir={final.parent}",
                        f"is on a disk that cannot lock files ({error.strerror.lower()})",
                        "choose one on another disk, or mount this one with flock") from None
    return True


def follow(final: Path, until: Callable[[], bool], *, start_secs: float,
           has_begun: bool = False) -> None:
    """Waits for a condition on what the first process builds, as long as that process runs.

    Args:
        until: looks at the shared disk.
        start_secs: how long the first process may take to begin.
        has_begun: whether it was seen at work already.

    Raises:
        ProcessLost: it did not begin, or it let go of the artifact before.
    """
    began = time.monotonic()
    while not until():
        held = is_locked(final)
        if not held and until():    # it may have ended between the two looks
            return
        if has_begun and not held:
            raise ProcessLost(f"{final}: process 0 stopped before it was finished: see its log; "
                              "run the same command again to go on")
        has_begun |= held
        if not has_begun and time.monotonic() - began > start_secs:
            raise ProcessLost(f"{final}: process 0 did not begin within {start_secs:g} s: see its "
                              "log, and whether all processes share --workdir")
        time.sleep(FOLLOW_SECS)
