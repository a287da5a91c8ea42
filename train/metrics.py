"""Metrics as JSON lines, cut back to the restored step so that a resumed run tells one story.

`metrics.jsonl` holds what the run computes and is the same, byte for byte, however often the run
was killed; `speed.jsonl` holds what the clock says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class MetricsFile:
    """An append-only file of ``{"step": ..., name: value}`` lines.

    Args:
        path: the file.
        step: lines of later steps, and a torn last line, are cut off.
    """

    def __init__(self, path: Path, step: int):
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                break
            if row["step"] <= step:
                kept.append(line + "\n")
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)
        self._file = open(path, "a")  # noqa: SIM115 -- open as long as the run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and hands it to the system at once."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All lines of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
