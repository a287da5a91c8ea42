"""The best parameters of a run by a measure that its evaluations give, and when to end early.

Which evaluation was the best follows from `metrics.jsonl`, which a restart cuts back to its
checkpoint; so a run that was killed keeps and ends as one that was not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from core.artifacts import write_json
from core.errors import UserError
from core.file_sums import write_sums
from model.directory import load_arrays, save_arrays
from train.watch.metrics import read_metrics

DESCRIBED = "best.json"


class Best:
    """Keeps the parameters whose evaluation gave the smallest value, in `folder/best`.

    Args:
        section: `best.measure` names the value, and after `best.patience` evaluations in a row
            that are no better the run ends; 0 never ends it.
        folder: of the run.
    """

    def __init__(self, section: ConfigDict, folder: Path):
        self._stage, self._measure = section.out, section.best.measure
        self._patience = section.best.patience
        self._folder = folder / "best"
        self._values = _read_values(folder / "metrics.jsonl", self._measure)

    def consider(self, step: int, values: Mapping[str, Any], params: Any) -> None:
        """Saves the parameters if their evaluation is better than all before; every process that
        holds a part of them must call it.

        Raises:
            UserError: the evaluation gives no such value.
        """
        if self._measure not in values:
            known = ", ".join(sorted(values)) or "none"
            raise UserError(f"{self._stage}.best.measure={self._measure!r}",
                            "is no value of the evaluations", f"choose among {known}")
        value = float(values[self._measure])
        earlier = [old for at, old in self._values.items() if at < step and math.isfinite(old)]
        self._values[step] = value
        if math.isfinite(value) and value < min(earlier, default=math.inf):
            made = self._folder / str(step)
            digests = save_arrays(made, params)
            if jax.process_index() == 0:
                write_json(made / DESCRIBED, {"step": step, self._measure: value,
                                              "arrays": digests})
                write_sums(made, [made / DESCRIBED, *(made / "params").rglob("*")])
                for other in set(self._folder.iterdir()) - {made}:
                    if int(other.name) < step:
                        shutil.rmtree(other)

    def is_over(self, step: int) -> bool:
        """Whether the last evaluations up to this step were no better than one before them."""
        values = [value for at, value in sorted(self._values.items()) if at <= step]
        if not self._patience or len(values) <= self._patience:
            return False
        smallest = min(range(len(values)), key=lambda n: (not math.isfinite(values[n]), values[n]))
        return len(values) - 1 - smallest >= self._patience

    def load(self, shapes: Any, mesh: Mesh) -> tuple[int, Any]:
        """The step of the best evaluation, and its parameters.

        Raises:
            UserError: no evaluation gave a finite value.
        """
        # A run that went back may have deleted the best of before: then the best that is kept.
        finite = {at: value for at, value in self._values.items()
                  if math.isfinite(value) and (self._folder / str(at) / DESCRIBED).exists()}
        if not finite:
            raise UserError(f"{self._stage}: {self._measure}", "is not finite in any evaluation",
                            "lower the learning rate")
        step = min(finite, key=lambda at: (finite[at], at))
        return step, load_arrays(self._folder / str(step), shapes, DESCRIBED, mesh)

    def clear(self) -> None:
        """Deletes what was kept, once the model is written."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)


def _read_values(path: Path, measure: str) -> dict[int, float]:
    """The values of earlier processes by step, as process 0 reads them."""
    rows: list[tuple[float, float]] = []
    if jax.process_index() == 0 and path.exists():
        rows = [(row["step"], row[measure]) for row in read_metrics(path) if measure in row]
    if jax.process_count() > 1:
        size = int(multihost_utils.broadcast_one_to_all(np.array(len(rows))))
        rows = multihost_utils.broadcast_one_to_all(
            np.array(rows if rows else np.zeros((size, 2)), np.float64)).tolist()
    return {int(step): float(value) for step, value in rows}
