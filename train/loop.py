"""The one loop of every trainer, from its first step or a checkpoint to its last step.

Where something is due at a step, the order is: report, evaluate, save. A killed process restarts
from a checkpoint, `metrics.jsonl` is cut back to it, and what was due is done again: each step is
reported, and each evaluation written, exactly once. A run that is to stop leaves an evaluation, or
does not begin it, and saves at once; the next process evaluates.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grain
import jax
from grain.experimental import get_next_index, set_next_index
from ml_collections import ConfigDict

from core.artifacts import hold_from
from core.entry import stage_secs
from core.progress import log
from train.checkpoints.checkpoints import Checkpoints
from train.rewind import Rewinds
from train.setup import Setup
from train.signals import Interrupted, StopRequest
from train.state import TrainState
from train.step import TrainStep, place_batch
from train.watch.closing import closed_after
from train.watch.compilation import Compilations
from train.watch.goodput import Goodput
from train.watch.profile import Profiler, requested_window
from train.watch.recorder import Recorder, is_due


class Evaluation(NamedTuple):
    """What is computed on the state every `evaluate_every` steps and after the last.

    Attributes:
        run: from the state to values, numbers or texts, by name.
        is_over: whether the run ends at a step, because its evaluations get no better.
    """

    run: Callable[[TrainState], Mapping[str, Any]]
    is_over: Callable[[int], bool] = lambda step: False


class Loop:
    """Runs a jitted step over batches, from the step at which an earlier process stopped.

    Args:
        train_step: `(state, batch) -> (state, metrics)`.
        batches: one element per step. A run that has skipped batches reads on from the first.
        section: see `configs.common.make_training`.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`, `goodput.jsonl` and, after
            trouble, `rewinds.json`.
        tokens_per_step: for the rates.
        evaluation: what is evaluated; None evaluates nothing.
        epochs: passes over the data after a number of batches, for the metrics.
    """

    def __init__(self, train_step: TrainStep, batches: grain.MapDataset, *, setup: Setup,
                 section: ConfigDict, folder: Path, tokens_per_step: int,
                 evaluation: Evaluation | None = None,
                 epochs: Callable[[int], Mapping[str, float]] = lambda num_batches: {}):
        self._train_step, self._evaluation = train_step, evaluation
        self._run, self._mesh, self._folder = section.run, setup.mesh, folder
        self._name, self._num_steps = section.out, len(batches)
        self._batches = iter(batches.repeat().to_iter_dataset(grain.ReadOptions(num_threads=1)))
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=section.run.keep_checkpoints,
                                        keep_every=section.run.keep_every)
        self._rewinds = Rewinds(folder / "rewinds.json", section.rewind)
        self._goodput = Goodput(folder / "goodput.jsonl", age_secs=stage_secs())
        self._recorder = Recorder(folder, setup=setup, section=section, num_steps=len(batches),
                                  tokens_per_step=tokens_per_step, epochs=epochs)
        self._profiler = Profiler(requested_window(), folder)
        self._held_from: int | None = None      # the step from which this process's settings hold

    def run(self, abstract_state: TrainState, make_state: Callable[[], TrainState]) -> TrainState:
        """Trains to the last step, or to the evaluation that ends it early.

        Args:
            abstract_state: shapes, dtypes and shardings of the state.
            make_state: makes the first state, where there is no checkpoint. Its step is 0, or
                where another run stood whose state it is.

        Raises:
            UserError: the checkpoints are of another model, none is intact, or too many updates
                were refused.
            SystemExit: a signal asked to stop, and everything is saved.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self._mesh))
            stack.enter_context(self._checkpoints.settled())
            stack.enter_context(closed_after(self._goodput.close, "goodput.jsonl"))
            compilations = stack.enter_context(
                Compilations(lambda secs: self._goodput.claim("compile", secs)))
            stop = stack.enter_context(StopRequest())
            recorder = stack.enter_context(self._recorder)
            stack.enter_context(closed_after(lambda: self._profiler.close(recorder.pending),
                                             "the profile"))

            state = self._start(abstract_state, make_state)
            first = step = int(state.step)
            self._evaluate_or_leave(state, step, stop)
            while step < self._num_steps and not self._is_over(step):
                step += 1
                batch = self._next_batch(step)
                self._profiler.before(step, state.step)
                state, metrics = self._train_step(state, batch)
                recorder.report(step, metrics, get_next_index(self._batches))
                self._profiler.after(step, metrics)
                self._goodput.step(step)
                if step == first + 1:   # what is alive now stays alive: collections may skip it
                    gc.collect()
                    gc.freeze()

                stops = stop.is_stopping()
                saves = self._is_due(step, self._run.checkpoint_every)
                if stops or saves or self._is_due(step, self._run.evaluate_every):
                    recorder.flush()
                if self._rewinds.is_due(recorder.refused_in_row):
                    del state
                    state = self._rewind(abstract_state, recorder.reported)
                    step = int(state.step)
                    continue
                if stops:
                    self._leave(state, step, stop)
                self._evaluate_or_leave(state, step, stop)
                if saves:
                    self._save(state, required=step == self._num_steps)
            self._checkpoints.close()
            log(f"{self._name}: {compilations.line()}; {self._goodput.line()}")
        return state

    def _is_over(self, step: int) -> bool:
        return self._evaluation is not None and self._evaluation.is_over(step)

    def goodput_frac(self) -> float:
        """Share of the run's time, restarts included, that went into steps that count."""
        return self._goodput.summary()["goodput_frac"]

    def _start(self, abstract_state: TrainState,
               make_state: Callable[[], TrainState]) -> TrainState:
        """The newest intact checkpoint, or the first state; everything that watches stands there.

        A rewind that was interrupted is completed first.
        """
        with self._goodput.spend("restore"):
            if self._rewinds.pending:
                self._checkpoints.delete_after(self._rewinds.pending.restore_step)
                self._rewinds.complete()
            state = self._checkpoints.restore_latest(abstract_state, self._batches)
        if state is None:
            state = make_state()
            set_next_index(self._batches, int(state.step))
        self._stand_at(int(state.step))
        return state

    def _stand_at(self, step: int) -> None:
        """Lets everything that watches the run begin at `step`, after a start or a rewind."""
        if self._held_from is None or step < self._held_from:
            self._held_from = step
            if jax.process_index() == 0:
                hold_from(self._folder, step)
        self._recorder.start(step)
        self._goodput.resume(step)

    def _next_batch(self, step: int) -> Any:
        """The batch of `step`, on the devices; behind a rewind, past the batches to skip."""
        with self._goodput.spend("data_wait"):
            index = self._rewinds.resume_index(step - 1)
            if index is not None and get_next_index(self._batches) < index:
                set_next_index(self._batches, index)
            return place_batch(next(self._batches), self._mesh)

    def _is_due(self, step: int, every: int) -> bool:
        return is_due(step, every, self._num_steps)

    def _evaluate_or_leave(self, state: TrainState, step: int, stop: StopRequest) -> None:
        """Evaluates where it is due and not recorded: at a restart too, since the process before
        may not have come to it. A signal meanwhile ends the run."""
        if (self._evaluation is None or step == 0
                or not self._is_due(step, self._run.evaluate_every)
                or self._recorder.has(step, "evaluated")):
            return
        try:
            with self._goodput.spend("evaluate"), self._recorder.off_the_clock():
                values = self._evaluation.run(state)
        except Interrupted:
            self._leave(state, step, stop)
        self._recorder.write(step, {"evaluated": 1} | values)

    def _leave(self, state: TrainState, step: int, stop: StopRequest) -> NoReturn:
        """Saves, and ends the process with the signal's status."""
        self._save(state, required=True)
        self._checkpoints.close()
        stop.leave(step)

    def _save(self, state: TrainState, *, required: bool) -> None:
        with self._goodput.spend("save"), self._recorder.off_the_clock():
            self._recorder.sync()
            self._checkpoints.save(state, self._batches, required=required)

    def _rewind(self, abstract_state: TrainState, step: int) -> TrainState:
        """Goes back to a checkpoint before the trouble, to go on from there with later batches."""
        rewind = self._rewinds.plan(step, get_next_index(self._batches), self._checkpoints.steps())
        log(f"{self._name}: {self._recorder.refused_in_row} updates refused in a row: back from "
            f"step {step} to {rewind.restore_step}, on with batch {rewind.resume_index}")
        self._rewinds.record(rewind)
        with self._goodput.spend("restore"):
            self._checkpoints.delete_after(rewind.restore_step)
            self._rewinds.complete()
            state = self._checkpoints.restore(rewind.restore_step, abstract_state, self._batches)
        self._stand_at(rewind.restore_step)
        return state
