"""Metrics as JSON lines, truncated to the restored step on resume.

`metrics.jsonl` holds what the run computes and is the same, byte for byte, however often the run
was killed; `speed.jsonl` holds what depends on the clock.

A record due at a step is written exactly once, wherever the process is killed. At a step, the loop
evaluates, writes, calls `sync`, then saves; a process that resumes from step s first evaluates what
is due at s and not recorded by `has`. Let an evaluation and a checkpoint both be due at s, and let
r < s be the step of the previous checkpoint:

    killed                                restored   line of s     evaluation
    before or during the evaluation       r          missing       when s is reached again
    after the line, before the commit     r          cut off       when s is reached again
    while the line is written             r          cut off       when s is reached again
    after the commit                      s          kept          not repeated
    after the commit, the line was lost   s          missing       on resume

The last case is a disk that lost the write, or a signal: then the loop saves before it evaluates.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


class MetricsFile:
    """An append-only file of ``{"step": ..., name: value}`` lines; process 0 writes it.

    Values are numbers or, of samples, texts. One that is not finite is written as null, since JSON
    has no NaN.

    Args:
        path: the file.
        step: lines of later steps, and an incomplete last line, are cut off. A loop that rewinds to
            an earlier step closes the file and reopens it at that step.
    """

    def __init__(self, path: Path, step: int):
        kept = _lines_up_to(path, step)
        self._names: dict[int, frozenset[str]] = {}
        for row in map(json.loads, kept):
            self._add_names(row)
        self._file = None
        if jax.process_index() == 0:
            temporary = path.with_suffix(".tmp")
            with open(temporary, "w") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self._file = open(path, "a")  # noqa: SIM115 -- open as long as the run

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Appends one line and flushes it, so that it is not lost if the process is killed."""
        row = {"step": step} | {name: _finite(value) for name, value in values.items()}
        self._add_names(row)
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def has(self, step: int, name: str) -> bool:
        """Whether `name` is recorded at `step`, by process 0's file; every process must call it."""
        has_name = name in self._names.get(step, ())
        if jax.process_count() > 1:  # the others may not have access to the file
            has_name = multihost_utils.broadcast_one_to_all(np.array(has_name))
        return bool(has_name)

    def sync(self) -> None:
        """Syncs all lines to disk; called before the checkpoint that follows them."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Syncs all lines to disk and closes the file."""
        if self._file:
            self.sync()
            self._file.close()

    def _add_names(self, row: Mapping[str, Any]) -> None:
        self._names[row["step"]] = self._names.get(row["step"], frozenset()) | row.keys()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics file; values that were not finite are NaN."""
    return [{name: math.nan if value is None else value for name, value in row.items()}
            for row in map(json.loads, path.read_text().splitlines())]


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The whole lines of steps up to `step`."""
    kept = []
    text = path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line)
            if row["step"] <= step and line.endswith("\n"):
                kept.append(line)
        except (ValueError, TypeError, KeyError):   # incomplete line
            break
    return kept


def _finite(value: float | str) -> float | str | None:
    return value if isinstance(value, str) or math.isfinite(value) else None
