"""Records a run: each step's metrics, the speed, and the progress line.

A step is reported while the next one runs, so that the host does not wait for the device.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from core.progress import Progress, log
from model.flops import mfu
from train.objective import target_length
from train.setup import Setup
from train.watch.closing import closed_after
from train.watch.memory import peak_memory_bytes
from train.watch.metrics import MetricsFile
from train.watch.writers import Writers


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something is due at a step that is done every so many steps, and at the last."""
    return step == last or (every > 0 and step % every == 0)


class Recorder:
    """Writes `metrics.jsonl`, `speed.jsonl` and to the config's writers.

    A context manager, which opens the writers; call `start` inside of it.

    Args:
        folder: gets the files.
        section: see `configs.common.make_training`.
        num_steps: of the whole run.
        tokens_per_step: for the rates and the count.
        epochs: passes over the data after a number of batches.

    Attributes:
        reported: the last step whose metrics were reported.
        refused_in_row: updates refused in a row, up to that step.
        pending: the step that is not yet reported, with its metrics on the device, and the number
            of batches up to its own; or None.
    """

    def __init__(self, folder: Path, *, setup: Setup, section: ConfigDict, num_steps: int,
                 tokens_per_step: int,
                 epochs: Callable[[int], Mapping[str, float]] = lambda num_batches: {}):
        self._folder, self._setup, self._section = folder, setup, section
        self._name, self._num_steps, self._tokens_per_step = section.out, num_steps, tokens_per_step
        self._epochs = epochs
        self._files: list[MetricsFile] = []     # of metrics, and of speed
        self._writers: Writers | None = None
        self._progress: Progress | None = None
        self._open = contextlib.ExitStack()     # of progress, writers and files
        self._clock, self._clocked_step = 0.0, 0
        self.reported, self.refused_in_row, self.pending = 0, 0, None

    def start(self, step: int) -> None:
        """Opens the files of a run at `step`; on a rewind, closes the open ones first."""
        self.close_files()
        self._files = [MetricsFile(self._folder / f"{name}.jsonl", step)
                       for name in ("metrics", "speed")]
        if self._progress is None:
            self._writers.start(step)
            self._progress = self._open.enter_context(Progress(
                self._name, self._num_steps, "tokens", units_per_step=self._tokens_per_step,
                start=step))
        self.reported, self.refused_in_row, self.pending = step, 0, None
        self._clocked_step, self._clock = step, time.monotonic()

    def report(self, step: int, metrics: Mapping[str, jax.Array], num_batches: int) -> None:
        """Reports the previous step, and holds the metrics of `step` until the next call.

        Args:
            num_batches: place in the data: batches up to this step's, skipped ones included.
        """
        self.flush()
        self.pending = (step, metrics, num_batches)

    def flush(self) -> None:
        """Reports the pending step, if any; waits for the device."""
        if self.pending is None:
            return
        (step, metrics, num_batches), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.reported, self.refused_in_row = step, int(values.pop("refused_in_row"))
        if self.refused_in_row:
            log(f"{self._name}: the update of step {step} was refused: loss {values['loss']:.4g}, "
                f"gradient norm {values['gradient_norm']:.4g}")
        self._progress.update(step, loss=values["loss"])
        if is_due(step, self._section.run.log_every, self._num_steps):
            seen = {"tokens": step * self._tokens_per_step} | dict(self._epochs(num_batches))
            self.write(step, values | seen)
            self._write_rates(step)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes a line of metrics."""
        for file in (self._files[0], self._writers):
            file.write(step, values)

    def write_speed(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of what depends on the clock."""
        for file in (self._files[1], self._writers):
            file.write(step, values)

    def has(self, step: int, name: str) -> bool:
        """Whether a metric of that name is recorded at `step`; every process must call it."""
        return self._files[0].has(step, name)

    def sync(self) -> None:
        """Syncs all metrics to disk."""
        self._files[0].sync()

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Excludes the time inside it from the rate of tokens."""
        began = time.monotonic()
        yield
        self._clock += time.monotonic() - began

    def close_files(self) -> None:
        """Syncs the files to disk and closes them."""
        for file in self._files:
            file.close()
        self._files = []

    def __enter__(self) -> Recorder:
        self._writers = Writers(self._section.run.writers, self._folder, run_name=self._name,
                                config=self._section)
        self._open.enter_context(closed_after(self.close_files, "metrics.jsonl"))
        self._open.callback(self._writers.close)
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        self._open.__exit__(exc_type, exc, traceback)

    def _write_rates(self, step: int) -> None:
        """Writes tokens per second since the last call, MFU and peak memory."""
        now = time.monotonic()
        rate = (step - self._clocked_step) * self._tokens_per_step / max(now - self._clock, 1e-9)
        self._clocked_step, self._clock = step, now
        speed = {"tokens_per_sec": rate, "peak_memory_bytes": peak_memory_bytes()} | mfu(
            rate, self._setup.config, self._section.row_length,
            target_length=target_length(self._section),
            is_frozen=self._section.get("lora", {}).get("rank", 0) > 0,
            compute_dtype=self._setup.execution.compute_dtype, num_devices=self._setup.mesh.size,
            device_kind=jax.devices()[0].device_kind)
        self.write_speed(step, speed)
