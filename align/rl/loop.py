"""The outer loop of reinforcement learning: gather experience, then update on it.

Steps are those of `TrainState`: iteration i has the steps from i U on, U updates to each. One that
nothing could be learned from counts as that many steps as well, so that the step alone says where
a run stands. Checkpoints are saved at ends of iterations and when a signal asks to stop; a process
that goes on within an iteration reads its experience from the disk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from ml_collections import ConfigDict

from align.rl.advantages import KLControl, update_kl_coef
from align.rl.algorithms import num_examples
from align.rl.experience import Experience, Gatherer, read_experience, write_experience
from align.rl.pretraining import Pretraining
from align.rl.rollouts import pick_minibatch
from core.artifacts import hold_from
from core.errors import UserError
from core.progress import log
from train.checkpoints.checkpoints import Checkpoints
from train.setup import Setup
from train.signals import Interrupted, StopRequest
from train.state import TrainState
from train.step import TrainStep, place_batch
from train.trainer import Evaluate, evaluate_state
from train.watch.compilation import Compilations
from train.watch.recorder import Recorder, is_due

MAX_REFUSED = 8     # updates in a row that the guard may refuse


class Controls:
    """What a run goes on with beside its `TrainState`; saved where other runs keep their loader's
    position.

    Attributes:
        kl_coef: of the KL in rewards.
        num_idle: iterations in a row that nothing could be learned from.
    """

    def __init__(self, kl_coef: float):
        self.kl_coef, self.num_idle = kl_coef, 0

    def get_state(self) -> dict[str, float]:
        """Both, as plain data."""
        return dict(vars(self))

    def set_state(self, state: dict[str, float]) -> None:
        """Takes over what `get_state` gave."""
        self.kl_coef, self.num_idle = state["kl_coef"], state["num_idle"]


class OnPolicyLoop:
    """Alternates between sampling with the current parameters and updating them.

    Args:
        train_step: see `train.step.make_train_step`.
        section: see `configs.common.make_rl`.
        folder: gets `checkpoints/`, `rollouts/`, `metrics.jsonl` and `speed.jsonl`.
        evaluate: on what is trained, every `evaluate_every` iterations and after the last.
        pretraining: text that every update reads as well; None for none.
    """

    def __init__(self, train_step: TrainStep, gatherer: Gatherer, *, setup: Setup,
                 section: ConfigDict, folder: Path, control: KLControl,
                 evaluate: Evaluate | None = None, pretraining: Pretraining | None = None):
        self._train_step, self._gatherer, self._evaluate = train_step, gatherer, evaluate
        self._section, self._folder, self._setup = section, folder, setup
        self._control, self._controls = control, Controls(section.kl_coef)
        self._pretraining = pretraining
        self._num_answers = section.num_prompts * section.num_samples
        self._num_examples = num_examples(section, gatherer.algorithm)
        self._num_updates = section.num_epochs * section.num_minibatches
        self._num_steps = section.num_iterations * self._num_updates
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=section.run.keep_checkpoints,
                                        keep_every=section.run.keep_every)
        self._recorder = Recorder(
            folder, setup=setup, section=section, num_steps=self._num_steps,
            tokens_per_step=self._num_examples // section.num_minibatches * section.row_length
            * (1 + gatherer.algorithm.has_pairs + (pretraining is not None)))

    def run(self, abstract_state: TrainState, make_state: Callable[[], TrainState]) -> TrainState:
        """Trains to the last iteration.

        Raises:
            UserError: too many iterations or updates in a row came to nothing.
            SystemExit: a signal asked to stop, and everything is saved.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self._setup.mesh))
            stack.enter_context(self._checkpoints.settled())
            compilations = stack.enter_context(Compilations())
            stop = stack.enter_context(StopRequest())
            stack.enter_context(self._recorder)
            state = self._checkpoints.restore_latest(abstract_state, self._controls)
            if state is None:
                state = make_state()
            step = int(state.step)
            if jax.process_index() == 0:
                hold_from(self._folder, step)
            self._recorder.start(step)
            self._evaluate_or_leave(state, step, stop)
            while step < self._num_steps:
                state = self._iterate(state, *divmod(step, self._num_updates), stop)
                step = int(state.step)
                self._evaluate_or_leave(state, step, stop)
                if self._is_due(step, self._section.run.checkpoint_every):
                    self._save(state, required=step == self._num_steps)
            self._checkpoints.close()
            log(f"{self._section.out}: {compilations.line()}")
        return state

    def _iterate(self, state: TrainState, iteration: int, first: int,
                 stop: StopRequest) -> TrainState:
        """An iteration, from its update number `first` on."""
        try:
            experience = self._find_experience(state, iteration)
        except Interrupted:
            self._leave(state, stop)
        began = time.monotonic()
        if experience.is_usable:
            self._controls.num_idle = 0
            for update in range(first, self._num_updates):
                state = self._update(state, experience, iteration, update)
                if stop.is_stopping() and update + 1 < self._num_updates:
                    self._leave(state, stop)
        else:
            state = state.replace(step=state.step + self._num_updates)
            self._controls.num_idle += 1
        self._recorder.flush()
        step = (iteration + 1) * self._num_updates
        secs = {**experience.secs, "update_secs": time.monotonic() - began}
        self._report(iteration, step, experience, secs)
        self._controls.kl_coef = float(update_kl_coef(
            self._controls.kl_coef, experience.metrics["kl"], self._num_answers, self._control))
        if self._recorder.refused_in_row >= MAX_REFUSED:
            raise UserError(f"{self._section.out}: step {step}", f"{MAX_REFUSED} updates in a row "
                            "were refused, as loss or gradient were not finite",
                            "lower the learning rate")
        if stop.is_stopping():
            self._leave(state, stop)
        return state

    def _find_experience(self, state: TrainState, iteration: int) -> Experience:
        """The experience of an iteration: as it was written, or gathered and written now."""
        experience = read_experience(self._folder, iteration)
        if experience is not None:
            log(f"{self._section.out}: the answers of iteration {iteration + 1} are read from "
                f"{self._folder / 'rollouts'}")
            return experience
        if int(state.step) % self._num_updates:
            raise UserError(f"{self._folder}/rollouts", f"lacks the answers of iteration "
                            f"{iteration + 1}, amid whose updates the run stopped",
                            f"delete {self._folder}/checkpoints/{int(state.step)}")
        with self._recorder.off_the_clock():
            experience = self._gatherer.gather(state.params, iteration, self._controls.kl_coef)
            if jax.process_index() == 0:
                write_experience(self._folder, iteration, experience)
        return experience

    def _update(self, state: TrainState, experience: Experience, iteration: int,
                update: int) -> TrainState:
        picked = pick_minibatch(self._num_examples, self._section, iteration, update)
        batch = jax.tree.map(lambda leaf: leaf[picked], experience.batch)
        step = iteration * self._num_updates + update
        if self._pretraining is not None:
            batch = self._pretraining.add(batch, step)
        state, metrics = self._train_step(state, place_batch(batch, self._setup.mesh))
        self._recorder.report(step + 1, metrics, step + 1)
        return state

    def _report(self, iteration: int, step: int, experience: Experience,
                secs: dict[str, float]) -> None:
        """Writes the iteration's metrics and logs a line."""
        found, name = experience.metrics, self._section.out
        self._recorder.write(step, {"iteration": iteration + 1} | found)
        self._recorder.write_speed(step, secs)
        reward = "no finite reward"
        if "reward" in found:
            reward = f"reward {found['reward']:.3f}"
        if "reward_low" in found:
            reward += f" ({found['reward_low']:.3f} to {found['reward_high']:.3f})"
        log(f"{name}: iteration {iteration + 1}: {reward}, KL {found['kl']:.4f}, "
            f"{found['answer_tokens']:.1f} tokens, {found['ended_frac']:.0%} ended")
        if experience.is_usable:
            return
        log(f"{name}: iteration {iteration + 1} teaches nothing: no answer is better than another "
            f"({self._controls.num_idle} in a row)")
        if self._controls.num_idle >= self._section.max_idle:
            raise UserError(f"{name}: {self._controls.num_idle} iterations in a row",
                            "had no group whose answers are scored differently", "ask questions "
                            "that are sometimes answered well, raise num_samples or temperature, "
                            "or raise max_idle")

    def _is_due(self, step: int, every: int) -> bool:
        """Whether something is due after every so many iterations, and after the last."""
        iteration, update = divmod(step, self._num_updates)
        return not update and is_due(iteration, every, self._section.num_iterations)

    def _evaluate_or_leave(self, state: TrainState, step: int, stop: StopRequest) -> None:
        if (self._evaluate is None or step == 0
                or not self._is_due(step, self._section.run.evaluate_every)
                or self._recorder.has(step, "evaluated")):
            return
        try:
            with self._recorder.off_the_clock():
                values = evaluate_state(self._evaluate, state)
        except Interrupted:
            self._leave(state, stop)
        self._recorder.write(step, {"evaluated": 1} | values)

    def _leave(self, state: TrainState, stop: StopRequest) -> NoReturn:
        """Saves, and ends the process with the signal's status."""
        self._recorder.flush()
        self._save(state, required=True)
        self._checkpoints.close()
        stop.leave(int(state.step))

    def _save(self, state: TrainState, *, required: bool) -> None:
        with self._recorder.off_the_clock():
            self._recorder.sync()
            self._checkpoints.save(state, self._controls, required=required)
