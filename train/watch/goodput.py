"""Goodput: the share of a run's time, restarts included, that was spent on steps that count.

`goodput.jsonl` has one line per attempt: per process, or per part of one between rewinds. A process
rewrites its line every few seconds, so that a kill loses no more than that. The causes are those of
ml-goodput-measurement, which needs a cloud's logs:

    step        steps that count
    wasted      steps that a later attempt repeated
    startup     from the process's start to the first step: imports, data, initialisation
    compile, data_wait, restore, save (its blocking part), evaluate
    down        between two processes
    other       the rest: unfinished steps, the end of the run
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from core.progress import format_secs

CAUSES = ("step", "startup", "compile", "data_wait", "restore", "save", "evaluate", "other")

# began: wall clock; resumed, last: steps; secs: by cause. It ended at began + sum(secs), by the
# monotonic clock: the wall clock may jump.
Attempt = dict[str, Any]


class Goodput:
    """Accounts for the time of a run. Used by the training loop's thread only.

    Time outside of phases is counted at the next `step` as that step's.

    Args:
        path: the file; attempts that it already holds are counted. Only process 0 writes it.
        age_secs: how long this process has run already.
        flush_secs: least time between two writes, at ends of steps and phases.
        clock, wall: monotonic and wall clock, in seconds.
    """

    def __init__(self, path: Path, *, age_secs: float = 0.0, flush_secs: float = 5.0,
                 clock: Callable[[], float] = time.monotonic,
                 wall: Callable[[], float] = time.time):
        self._clock, self._flush_secs = clock, flush_secs
        self._earlier, self._offset = read_attempts(path)
        self._thread = threading.current_thread()
        self._phases = ["pending"]      # time outside of phases, until the next `step`
        self._file = None   # a descriptor
        if jax.process_index() == 0:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            os.ftruncate(self._file, self._offset)
        self._mark = clock()
        self._begin(wall() - age_secs, age_secs)

    @contextmanager
    def spend(self, cause: str) -> Iterator[None]:
        """Counts a phase under `cause`; a phase nested in it is not counted twice."""
        if cause not in CAUSES:
            raise ValueError(f"{cause!r} is none of {CAUSES}")
        self._settle()
        self._phases.append(cause)
        try:
            yield
        finally:
            self._settle()
            self._phases.pop()
            self._flush()

    def claim(self, cause: str, secs: float) -> None:
        """Moves the last `secs` from the running phase to `cause`, e.g. compilation in a step.

        Does nothing on other threads than the loop's, which did not wait.
        """
        if threading.current_thread() is self._thread:
            self._settle()
            moved = min(secs, self._secs[self._phases[-1]])
            self._secs[self._phases[-1]] -= moved
            self._secs[cause] += moved

    def resume(self, step: int) -> None:
        """Records the step from which work continues: 0, a restored one, or that of a rewind."""
        self._settle()
        if self._resumed is not None:
            self._write()
            attempt = self._attempt()
            self._earlier.append(attempt)
            self._offset += self._width + 1
            self._begin(attempt["began"] + sum(attempt["secs"].values()))
        self._resumed = self._last = step
        self._book_pending("startup")
        self._write()

    def step(self, step: int) -> None:
        """Records that `step` is done."""
        self._settle()
        self._book_pending("step")
        self._last = step
        self._flush()

    def summary(self) -> dict[str, float]:
        """``X_secs`` and ``X_frac`` by cause, ``total_secs`` since the first start, and
        ``goodput_frac``, the share of steps that count."""
        self._settle()
        secs = account([*self._earlier, self._attempt()])
        total = sum(secs.values())
        return ({"total_secs": total, "goodput_frac": secs["step"] / max(total, 1e-9)}
                | {f"{cause}_secs": spent for cause, spent in secs.items()}
                | {f"{cause}_frac": spent / max(total, 1e-9) for cause, spent in secs.items()})

    def line(self) -> str:
        """The summary as a line of the log: causes of at least 0.1 %, the largest first."""
        summary = self.summary()
        costs = sorted(((summary[f"{cause}_frac"], cause) for cause in (*CAUSES, "wasted", "down")
                        if cause != "step"), reverse=True)
        listed = [f"{cause} {100 * frac:.1f} %" for frac, cause in costs if frac >= 0.001]
        total = format_secs(summary["total_secs"])
        return (f"goodput {100 * summary['goodput_frac']:.1f} % of {total}"
                + (f" ({', '.join(listed)})" if listed else ""))

    def close(self) -> None:
        """Writes the last state and closes the file."""
        self._settle()
        self._write()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin(self, began: float, pending_secs: float = 0.0) -> None:
        self._began, self._resumed, self._last, self._width = began, None, None, 0
        self._secs = dict.fromkeys(CAUSES, 0.0) | {"pending": pending_secs}
        self._write()

    def _settle(self) -> None:
        """Counts the time since the last call under the running phase."""
        now = self._clock()
        self._secs[self._phases[-1]] += now - self._mark
        self._mark = now

    def _book_pending(self, cause: str) -> None:
        self._secs[cause] += self._secs["pending"]
        self._secs["pending"] = 0.0

    def _attempt(self) -> Attempt:
        secs = dict(self._secs)
        rest = "startup" if self._resumed is None else "other"
        secs[rest] += secs.pop("pending")
        return {"began": self._began, "resumed": self._resumed, "last": self._last, "secs": secs}

    def _flush(self) -> None:
        if self._mark - self._written >= self._flush_secs:
            self._write()

    def _write(self) -> None:
        """Overwrites this attempt's line in one system call; a line never gets shorter."""
        self._written = self._mark
        if self._file is not None:
            attempt = self._attempt()
            attempt["secs"] = {cause: round(secs, 3) for cause, secs in attempt["secs"].items()}
            line = json.dumps(attempt)
            self._width = max(self._width, len(line))
            os.pwrite(self._file, f"{line:<{self._width}}\n".encode(), self._offset)


def account(attempts: list[Attempt]) -> dict[str, float]:
    """Seconds by cause over all attempts, in their order; they add up to the whole run.

    Steps that a later attempt repeated are moved from `step` to `wasted`, at the mean step time of
    the attempt that first ran them. If the wall clock was set back between two attempts, the pause
    between them counts as 0.
    """
    secs = dict.fromkeys((*CAUSES, "wasted", "down"), 0.0)
    ranges: list[tuple[int, int, float]] = []    # steps after .. to, and their seconds
    ended = None
    for attempt in attempts:
        if ended is not None:
            secs["down"] += max(attempt["began"] - ended, 0.0)
        ended = attempt["began"] + sum(attempt["secs"].values())
        for cause, spent in attempt["secs"].items():
            secs[cause] += spent
        if (resumed := attempt["resumed"]) is None:
            continue
        for i, (after, to, spent) in enumerate(ranges):
            kept = min(max(resumed, after), to)
            wasted = spent * (to - kept) / max(to - after, 1)
            secs["step"] -= wasted
            secs["wasted"] += wasted
            ranges[i] = (after, kept, spent - wasted)
        ranges.append((resumed, attempt["last"], attempt["secs"]["step"]))
    return secs


def read_attempts(path: Path) -> tuple[list[Attempt], int]:
    """The attempts in a file, and where the whole lines end."""
    attempts, offset = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            attempt = json.loads(line)
        except ValueError:
            attempt = None
        if attempt is None or not line.endswith(b"\n"):
            break       # cut off by a crash
        attempts.append(attempt)
        offset += len(line)
    return attempts, offset
