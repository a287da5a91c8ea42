"""The one loop: pretraining, SFT and DPO differ in loss and rows, not here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from core.errors import UserError
from core.progress import Progress
from train.checkpoints import Checkpoints
from train.metrics import MetricsFile
from train.state import TrainState
from train.step import place_batch

Evaluate = Callable[[Any], Mapping[str, float]]


def fit(state: TrainState, train_step: Callable, rows: grain.MapDataset, *, folder: Path,
        mesh: Mesh, section: Any, tokens_per_step: int,
        evaluate: Evaluate | None = None) -> TrainState:
    """Runs `train_step` over all batches of `rows`, from wherever an earlier process stopped.

    Args:
        state: the first state; replaced by the newest checkpoint in `folder` if there is one.
        rows: one element per step, so that its length is the number of steps.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`.
        section: config with `out`, `log_every`, `checkpoint_every`, `evaluate_every` (steps).
        tokens_per_step: for the rate that is shown.
        evaluate: `params -> metrics`, run every `evaluate_every` steps and after the last.

    Returns:
        The state after the last step.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    num_steps = len(rows)
    iterator = iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=1)))
    checkpoints = Checkpoints(folder / "checkpoints")
    state = checkpoints.restore_latest(state, iterator)
    first = int(state.step)
    metrics_file = MetricsFile(folder / "metrics.jsonl", first)
    speed_file = MetricsFile(folder / "speed.jsonl", first)
    began = time.monotonic()
    pending = None  # metrics of the step before, still on the device while this one runs

    def is_due(step: int, every: int) -> bool:
        return step % every == 0 or step == num_steps

    def report() -> None:
        step, metrics = pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise UserError(f"{section.out}: loss at step {step}", "is not a finite number",
                            "lower the learning rate or look at the data of that step")
        if is_due(step, section.log_every):
            metrics_file.write(step, values)
            secs = time.monotonic() - began
            speed_file.write(step, {"tokens_per_sec": (step - first) * tokens_per_step / secs})
        progress.update(step, loss=values["loss"])

    with jax.set_mesh(mesh), Progress(section.out, num_steps, "tokens",
                                      units_per_step=tokens_per_step, start=first) as progress:
        for step in range(first + 1, num_steps + 1):
            state, metrics = train_step(state, place_batch(next(iterator), mesh))
            if pending:
                report()
            pending = (step, metrics)
            if is_due(step, section.checkpoint_every) or is_due(step, section.evaluate_every):
                report()  # nothing is evaluated or saved before its loss is known to be finite
                pending = None
            if evaluate and is_due(step, section.evaluate_every):
                metrics_file.write(step, evaluate(state.params))
            if is_due(step, section.checkpoint_every):
                checkpoints.save(state, iterator)
    checkpoints.close()
    metrics_file.close()
    speed_file.close()
    return state
