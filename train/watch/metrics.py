"""Metrics as JSON lines, cut back to the restored step so that a resumed run tells one story.

`metrics.jsonl` holds what the run computes and is the same, byte for byte, however often the run
was killed; `speed.jsonl` holds what the clock says.

A record due at a step is written exactly once, whatever dies when. At a step, the loop evaluates,
writes, calls `sync`, then saves; a process that goes on from step s first evaluates what is due
at s and `has` does not find. Say an evaluation and a checkpoint are both due at s, and r < s is
the checkpoint before:

    died                                  restored   line of s     what happens
    before or amid the evaluation         r          is not there  evaluated when s comes again
    after the line, before the commit     r          cut off       evaluated when s comes again
    amid the line (torn)                  r          cut off       evaluated when s comes again
    after the commit                      s          kept          `has` finds it: not again
    after the commit, the line was lost   s          is not there  `has` misses it: evaluated now

The last is a disk that forgot, or a loop that saves before it evaluates.
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

    A value that is no finite number is written as null, since JSON has no other word for it.

    Args:
        path: the file.
        step: lines of later steps, and a torn last line, are cut off. A loop that goes back to an
            earlier step closes the file and opens it anew at that step.
    """

    def __init__(self, path: Path, step: int):
        kept = _lines_up_to(path, step)
        self._names: dict[int, frozenset[str]] = {}
        for row in map(json.loads, kept):
            self._remember(row)
        self._file = None
        if jax.process_index() == 0:
            temporary = path.with_suffix(".tmp")
            with open(temporary, "w") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            self._file = open(path, "a")  # noqa: SIM115 -- open as long as the run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the system at once: it outlives a killed process."""
        row = {"step": step} | {name: _finite(value) for name, value in values.items()}
        self._remember(row)
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def has(self, step: int, name: str) -> bool:
        """Whether `name` is recorded at `step`. Every process must ask: process 0 answers."""
        found = name in self._names.get(step, ())
        if jax.process_count() > 1:  # the others may not even see the file
            found = multihost_utils.broadcast_one_to_all(np.array(found))
        return bool(found)

    def sync(self) -> None:
        """Brings all lines to the disk; called before a checkpoint that they lead up to."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Brings all lines to the disk and closes the file."""
        if self._file:
            self.sync()
            self._file.close()

    def _remember(self, row: Mapping[str, Any]) -> None:
        self._names[row["step"]] = self._names.get(row["step"], frozenset()) | row.keys()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All lines of a metrics file; what was no finite number reads as NaN."""
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
        except (ValueError, TypeError, KeyError):   # torn, and nothing after it was meant to last
            break
    return kept


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
