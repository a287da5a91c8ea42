"""Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import functools
import sys
import time

from core.processes import find_processes


def log(message: str) -> None:
    """Prints one line to stderr, once for all processes; stdout is reserved for the JSON result."""
    if find_processes().index == 0:
        print(message, file=sys.stderr, flush=True)


@functools.cache
def log_once(message: str) -> None:
    """`log`, where the same is found several times in a process."""
    log(message)


def format_secs(secs: float) -> str:
    """Formats a duration as ``1h02m``, ``3m07s`` or ``42s``."""
    minutes, rest = divmod(max(round(secs), 0), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def format_count(count: float) -> str:
    """Formats a count with a decimal unit: ``950``, ``12.3k``, ``4.56M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.4g}"


class Progress:
    """Shows progress towards `total`, with rate and remaining time.

    Args:
        label: name of the activity, e.g. ``pretrain``.
        total: number of steps.
        unit: of the rate, e.g. ``tokens``.
        units_per_step: units in one step, so that steps can show tokens per second.
        start: steps done by an earlier, interrupted process.
        line_secs: seconds between plain lines when stderr is not a terminal.
    """

    def __init__(self, label: str, total: int, unit: str = "steps", *, units_per_step: float = 1,
                 start: int = 0, line_secs: float = 10.0):
        self._label, self._total, self._unit = label, total, unit
        self._units_per_step, self._start, self._line_secs = units_per_step, start, line_secs
        self._done, self._began, self._last_line = start, time.monotonic(), time.monotonic()
        self._bar = self._task = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and find_processes().index == 0:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(),
                       TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                       TextColumn("{task.fields[note]}"))
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._start,
                                            note="")
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif exc_type is None:
            self._print_line()

    def update(self, done: int, **values: float) -> None:
        """Sets the number of steps done; `values` (e.g. ``loss=2.31``) are shown beside it."""
        self._done, self._values = done, values
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=self._note())
        elif time.monotonic() - self._last_line >= self._line_secs:
            self._print_line()

    def _note(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-6)
        steps_per_sec = (self._done - self._start) / elapsed
        left = (self._total - self._done) / steps_per_sec if steps_per_sec else float("inf")
        parts = [f"{format_count(steps_per_sec * self._units_per_step)} {self._unit}/s"]
        parts += [f"{name} {value:.4g}" for name, value in getattr(self, "_values", {}).items()]
        if self._done < self._total and left < 1e7:
            parts.append(f"{format_secs(left)} left")
        return ", ".join(parts)

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        log(f"{self._label} {self._done}/{self._total}: {self._note()}")
