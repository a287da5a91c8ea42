"""The one loop: what every run does between its first step and its last, whatever dies meanwhile.

A step is reported one step late, so that nothing waits for the device. Where something is due, the
order is: report, evaluate, save. A process that is killed comes back at an earlier checkpoint,
`metrics.jsonl` is cut back to it, and what was due is done again: each step is reported, and each
evaluation written, exactly once.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from grain.experimental import get_next_index, set_next_index
from jax.sharding import Mesh

from core.entry import process_secs
from core.progress import Progress, log
from model.config import ModelConfig
from model.flops import mfu
from train.checkpoints.checkpoints import Checkpoints
from train.distributed import any_process
from train.rewind import Rewinds
from train.signals import StopRequest
from train.state import TrainState
from train.step import place_batch
from train.watch.compilation import Compilations
from train.watch.goodput import Goodput
from train.watch.memory import peak_memory_bytes
from train.watch.metrics import MetricsFile
from train.watch.profile import Profiler, requested_window
from train.watch.writers import make_writers

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]]
STEPS_BETWEEN_STOPS = 10     # at which several processes ask each other whether one got a signal

Evaluate = Callable[[TrainState], Mapping[str, float]]


class Loop:
    """Runs a jitted step over rows, from wherever an earlier process stopped.

    Args:
        train_step: `(state, batch) -> (state, metrics)`.
        rows: one element per step. A run that has skipped batches reads on from the first.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`, `goodput.jsonl` and, after
            trouble, `rewinds.json`.
        section: see `configs.common.make_training`.
        config: the model's, to count its floating-point operations.
        tokens_per_step: for the rates.
        evaluate: run every `evaluate_every` steps and after the last.
    """

    def __init__(self, train_step: TrainStep, rows: grain.MapDataset, *, folder: Path, mesh: Mesh,
                 section: Any, config: ModelConfig, tokens_per_step: int,
                 evaluate: Evaluate | None = None):
        self._train_step, self._evaluate = train_step, evaluate
        self._section, self._config, self._mesh = section, config, mesh
        self._folder, self._name = folder, section.out
        self._num_steps, self._tokens_per_step = len(rows), tokens_per_step
        self._rows = iter(rows.repeat().to_iter_dataset(grain.ReadOptions(num_threads=1)))
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=section.keep_checkpoints,
                                        keep_every=section.keep_every)
        self._rewinds = Rewinds(folder / "rewinds.json", section.rewind)
        self._goodput = Goodput(folder / "goodput.jsonl", age_secs=process_secs())
        self._is_frozen = False

    def check(self, state: TrainState) -> None:
        """Raises `UserError` when the newest checkpoint is of another model than `state`.

        Args:
            state: may be abstract; nothing is compiled.
        """
        self._checkpoints.check(state)

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last step.

        Args:
            state: the first state; replaced by the newest intact checkpoint, if there is one.

        Raises:
            UserError: no checkpoint is intact, or too many updates were refused.
            SystemExit: a signal asked to stop, and everything is saved.
        """
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            enter(jax.set_mesh(self._mesh))
            enter(contextlib.closing(self._goodput))
            compilations = enter(Compilations(lambda secs: self._goodput.claim("compile", secs)))
            stop = enter(StopRequest())
            state = self._restore(state)
            step = int(state.step)
            self._profiler = Profiler(requested_window(), self._folder)
            stack.callback(lambda: self._profiler.close(self._pending))
            self._writers = make_writers(self._section.writers, self._folder, run_name=self._name,
                                         config=self._section, step=step)
            for writer in self._writers:
                enter(contextlib.closing(writer))
            self._start_at(step)
            stack.callback(self._close_files)
            self._evaluate_if_due(state, step)
            self._progress = enter(Progress(self._name, self._num_steps, "tokens",
                                            units_per_step=self._tokens_per_step, start=step))
            while step < self._num_steps:
                step += 1
                state = self._take_step(state, step)
                self._do_what_is_due(state, step, stop)
                if self._gave_up_at is not None:
                    state = self._rewind(state, self._gave_up_at)
                    step = int(state.step)
                    self._start_at(step)
            self._checkpoints.close()
            log(f"{self._name}: {compilations.line()}; {self._goodput.line()}")
        return state

    def goodput_frac(self) -> float:
        """Share of the run's time, restarts included, that went into steps that count."""
        return self._goodput.summary()["goodput_frac"]

    def _take_step(self, state: TrainState, step: int) -> TrainState:
        with self._goodput.spend("data_wait"):
            self._skip_batches(step - 1)
            batch = place_batch(next(self._rows), self._mesh)
        self._profiler.before(step, state.step)
        state, metrics = self._train_step(state, batch)
        self._report_pending()
        self._pending = (step, metrics)
        self._profiler.after(step, metrics)
        self._goodput.step(step)
        if not self._is_frozen:     # what is alive now stays: collections need not look at it
            gc.collect()
            gc.freeze()
            self._is_frozen = True
        return state

    def _do_what_is_due(self, state: TrainState, step: int, stop: StopRequest) -> None:
        stops = self._stops(step, stop)
        saves = stops or self._is_due(step, self._section.checkpoint_every)
        if saves or self._is_due(step, self._section.evaluate_every):
            self._report_pending()
        if self._gave_up_at is not None:    # nothing of this is to be kept
            return
        self._evaluate_if_due(state, step)
        if saves:
            with self._goodput.spend("save"), self._off_the_clock():
                self._metrics_file.sync()
                self._checkpoints.save(state, self._rows,
                                       required=stops or step == self._num_steps)
        if stops and step < self._num_steps:
            self._checkpoints.close()
            stop.leave(step)

    def _stops(self, step: int, stop: StopRequest) -> bool:
        """Whether to stop here; several processes ask each other, now and then."""
        if jax.process_count() == 1:
            return stop.requested
        return step % STEPS_BETWEEN_STOPS == 0 and any_process(stop.requested)

    def _evaluate_if_due(self, state: TrainState, step: int) -> None:
        """Also at the step of a restart, whose line may be lost."""
        if (self._evaluate is None or step == 0
                or not self._is_due(step, self._section.evaluate_every)
                or self._metrics_file.has(step, "evaluated")):
            return
        with self._goodput.spend("evaluate"), self._off_the_clock():
            self._write(step, {"evaluated": 1} | self._evaluate(state))

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self._num_steps

    # What a run tells

    def _report_pending(self) -> None:
        """Fetches the metrics of the step before, while the device works on the next."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        refused_in_row = int(values.pop("refused_in_row"))
        if self._rewinds.is_due(refused_in_row):
            self._gave_up_at = step
        if refused_in_row:
            log(f"{self._name}: the update of step {step} was refused: loss {values['loss']:.4g}, "
                f"gradient norm {values['gradient_norm']:.4g}")
        self._progress.update(step, loss=values["loss"])
        if self._is_due(step, self._section.log_every):
            self._write(step, values)
            self._write_speed(step)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for file in (self._metrics_file, *self._writers):
            file.write(step, values)

    def _write_speed(self, step: int) -> None:
        """Tokens per second since the last time, and what follows from it."""
        now = time.monotonic()
        rate = (step - self._clocked_step) * self._tokens_per_step / max(now - self._clock, 1e-9)
        self._clocked_step, self._clock = step, now
        speed = {"tokens_per_sec": rate, "peak_memory_bytes": peak_memory_bytes()} | mfu(
            rate, self._config, self._section.row_length, num_devices=self._mesh.size,
            device_kind=jax.devices()[0].device_kind)
        for file in (self._speed_file, *self._writers):
            file.write(step, speed)

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        """Time that is no training does not slow the rate of tokens."""
        began = time.monotonic()
        yield
        self._clock += time.monotonic() - began

    # Starting, and starting over

    def _restore(self, state: TrainState) -> TrainState:
        with self._goodput.spend("restore"):
            if self._rewinds.pending:   # killed amid a rewind
                self._checkpoints.delete_after(self._rewinds.pending.restore_step)
                self._rewinds.complete()
            return self._checkpoints.restore_latest(state, self._rows)

    def _rewind(self, state: TrainState, step: int) -> TrainState:
        """Goes back to a checkpoint before the trouble, to go on from there with later batches."""
        rewind = self._rewinds.plan(step, get_next_index(self._rows), self._checkpoints.steps())
        log(f"{self._name}: {self._section.rewind.after} updates refused in a row: back from step "
            f"{step} to {rewind.restore_step}, on with batch {rewind.resume_index}")
        self._rewinds.record(rewind)
        with self._goodput.spend("restore"):
            self._checkpoints.delete_after(rewind.restore_step)
            self._rewinds.complete()
            self._close_files()
            return self._checkpoints.restore(rewind.restore_step, state, self._rows)

    def _skip_batches(self, step: int) -> None:
        """Past what a rewind to this step passes over, whether restored or reached again."""
        index = self._rewinds.resume_index(step)
        if index is not None and get_next_index(self._rows) < index:
            set_next_index(self._rows, index)

    def _start_at(self, step: int) -> None:
        """Opens the files of a run that stands at `step`."""
        self._metrics_file = MetricsFile(self._folder / "metrics.jsonl", step)
        self._speed_file = MetricsFile(self._folder / "speed.jsonl", step)
        self._goodput.resume(step)
        self._pending, self._gave_up_at = None, None
        self._clocked_step, self._clock = step, time.monotonic()

    def _close_files(self) -> None:
        self._metrics_file.close()
        self._speed_file.close()
