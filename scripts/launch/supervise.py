"""Supervises a command: restarts it after failures as long as it makes progress.

    python -m scripts.launch.supervise --max_restarts=20 -- python -m train.pretrain --config=... \\
        --workdir=runs/mine

A command that ends with 0, or with 2 (a user error, which a restart would repeat), is not
restarted; nor is one that was stopped by a signal to the supervisor, which forwards it. After
anything else (a crash, a kill, a lost peer) the command is restarted after `backoff_secs`, twice
that, four times that, up to five minutes. A newer checkpoint or another finished artifact under the
command's `--workdir` is progress: it resets the count of restarts and the wait.

The exit status is the command's last one, 128 + n for signal n. The last line is JSON with the
restarts and their causes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.progress import format_secs, log

MAX_BACKOFF_SECS = 300.0
FINAL_STATUSES = (0, entry.EXIT_USER_ERROR)


class Supervisor:
    """Runs one command until it is done, is stopped, or fails too often without progress.

    Args:
        command: the command and its arguments.
        workdir: where its artifacts and checkpoints appear; with None there is never progress.
        max_restarts: restarts without progress between them.
        backoff_secs: the first wait before a restart.
    """

    def __init__(self, command: Sequence[str], workdir: Path | None, *, max_restarts: int,
                 backoff_secs: float):
        self._command, self._workdir = list(command), workdir
        self._max_restarts, self._backoff_secs = max_restarts, backoff_secs
        self._process: subprocess.Popen | None = None
        self._stopped_by: signal.Signals | None = None

    def run(self) -> dict[str, Any]:
        """Runs the command; returns its last status, restarts, their causes, and seconds."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._forward)
        began, causes, in_a_row, reached = time.monotonic(), [], 0, self._progress()
        while True:
            status = self._run_once()
            if status in FINAL_STATUSES or self._stopped_by:
                break
            now = self._progress()
            if now > reached:
                in_a_row, reached = 0, now
            if in_a_row == self._max_restarts:
                log(f"{_cause(status)}: giving up after {in_a_row} restarts without progress")
                break
            wait_secs = min(self._backoff_secs * 2 ** in_a_row, MAX_BACKOFF_SECS)
            in_a_row += 1
            causes.append(_cause(status))
            log(f"{causes[-1]} at {_place(now)}: restart {in_a_row} of {self._max_restarts} in "
                f"{format_secs(wait_secs)}")
            if not self._wait(wait_secs):
                break
        return {"status": status, "restarts": len(causes), "causes": causes,
                "stopped_by": self._stopped_by and self._stopped_by.name,
                "secs": round(time.monotonic() - began, 1)}

    def _run_once(self) -> int:
        try:
            # A session of its own, so that Ctrl-C reaches the command only once, through us.
            self._process = subprocess.Popen(self._command, start_new_session=True)
        except OSError as error:
            raise UserError(self._command[0], f"cannot be started ({error.strerror.lower()})",
                            "name a program after --") from None
        if self._stopped_by:    # the signal came before the process existed
            self._process.send_signal(self._stopped_by)
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def _forward(self, number: int, _: Any) -> None:
        self._stopped_by = signal.Signals(number)
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _wait(self, secs: float) -> bool:
        """Waits, and returns whether no signal arrived."""
        deadline = time.monotonic() + secs
        while not self._stopped_by and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
        return not self._stopped_by

    def _progress(self) -> tuple[int, int]:
        """Number of finished artifacts, and the newest step of an unfinished one."""
        if self._workdir is None:
            return (0, 0)
        return (sum(1 for path in self._workdir.glob("*/lineage.json")
                    if not path.parent.name.endswith(".partial")),
                max(_steps(self._workdir), default=0))


def _steps(workdir: Path) -> Iterator[int]:
    for path in workdir.glob("*.partial/checkpoints/*"):
        if path.name.isdecimal():
            yield int(path.name)


def _cause(status: int) -> str:
    if status <= 128:
        return f"exit {status}"
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return f"exit {status}"


def _place(progress: tuple[int, int]) -> str:
    return f"step {progress[1]}" if progress[1] else "no checkpoint"


def find_workdir(command: Sequence[str]) -> Path | None:
    """The value of the command's ``--workdir``; None if it has none."""
    for argument, following in zip(command, [*command[1:], ""]):
        name, equals, value = argument.partition("=")
        if name in ("--workdir", "-workdir"):
            return Path(value if equals else following)
    return None


def main(command: Sequence[str]) -> dict[str, Any]:
    """Supervises the command by the flags."""
    if not command:
        raise UserError("--", "no command follows it",
                        "write python -m scripts.launch.supervise -- python -m train.pretrain ...")
    return Supervisor(command, find_workdir(command), max_restarts=flags.FLAGS.max_restarts,
                      backoff_secs=flags.FLAGS.backoff_secs).run()


if __name__ == "__main__":
    flags.DEFINE_integer("max_restarts", 20, "Restarts without progress between them.",
                         lower_bound=0)
    flags.DEFINE_float("backoff_secs", 5.0, "Wait before the first restart.", lower_bound=0.0)
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    command = sys.argv[split + 1:]
    sys.argv = sys.argv[:split]
    os.environ["PYTHONUNBUFFERED"] = "1"    # so that a killed command's last lines are not lost
    entry.run(lambda: main(command), status=lambda result: result["status"])
