"""The one trainer: pretraining, SFT and DPO differ in loss, batches and first parameters alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from core.errors import UserError
from core.progress import format_count, log
from model.attention.backends import describe
from model.families.decoder import abstract_params, num_params
from model.parallel.sharding import check_mesh
from train.checkpoints.reader import Branch
from train.loop import Loop
from train.optimizer.optimizers import eval_params, make_optimizer
from train.setup import Setup
from train.state import TrainState
from train.step import LossFn, TrainStep, make_state, make_train_step

# `evaluate(params) -> {name: value}`
Evaluate = Callable[[Any], Mapping[str, float]]


def train(loss_fn: LossFn, batches: grain.MapDataset, make_params: Callable[[], Any | Branch], *,
          setup: Setup, section: ConfigDict, folder: Path, evaluate: Evaluate | None = None,
          rows_per_example: int = 1) -> tuple[Any, dict[str, float]]:
    """Trains over all of `batches`, or goes on from the newest intact checkpoint in `folder`.

    Args:
        loss_fn: see `train.loss`.
        batches: one element per step, so that its length is the number of steps.
        make_params: makes the first parameters, where there is no checkpoint. They become part of
            the state without a copy, and the first step donates them. Or it names a checkpoint of
            another run, whose whole state is the first.
        section: the stage's config; `configs.common.make_training` has the fields read here.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`, `goodput.jsonl`.
        evaluate: run every `evaluate_every` steps and after the last.
        rows_per_example: rows of tokens in an element of a batch: 2 for pairs.

    Returns:
        The trained parameters, their running average where one is kept; and, for the stage's
        metrics, `goodput_frac` of the run.

    Raises:
        UserError: sizes that do not fit each other, before anything is compiled; or training
            went wrong more often than `section.rewind.max_retries`.
    """
    make_first, train_step = make_step(loss_fn, setup, section, num_steps=len(batches),
                                       rows_per_example=rows_per_example)
    tokens_per_step = rows_per_example * section.batch_size * section.row_length
    log(f"{section.out}: {format_count(num_params(setup.config))} parameters, {len(batches)} steps "
        f"of {format_count(tokens_per_step)} tokens, {section.optimizer.name}, "
        f"{setup.execution.compute_dtype}, {describe(*setup)}, "
        f"{setup.mesh.size} x {jax.devices()[0].device_kind}")
    loop = Loop(train_step, batches, setup=setup, section=section, folder=folder,
                tokens_per_step=tokens_per_step,
                evaluate=evaluate and (lambda state: evaluate(trained_params(state))))
    abstract_state = make_first(abstract_params(setup.config))

    def begin() -> TrainState:
        first = make_params()
        return first.restore(abstract_state) if isinstance(first, Branch) else make_first(first)

    state = loop.run(abstract_state, begin)
    return trained_params(state), {"goodput_frac": round(loop.goodput_frac(), 4)}


def make_step(loss_fn: LossFn, setup: Setup, section: ConfigDict, *, num_steps: int,
              rows_per_example: int = 1) -> tuple[Callable[[Any], TrainState], TrainStep]:
    """The step of a trainer's section; compiles nothing yet.

    Returns:
        A function from parameters, or their shapes, to the first state; and the step.

    Raises:
        UserError: sizes that do not fit each other.
    """
    num_microbatches = section.run.num_microbatches
    if section.batch_size % num_microbatches:
        raise UserError(f"{section.out}: batch_size={section.batch_size}",
                        f"is not divisible by run.num_microbatches={num_microbatches}",
                        "change one of them")
    check_mesh(*setup, row_length=section.row_length,
               batch_size=rows_per_example * section.batch_size // num_microbatches)
    optimizer = make_optimizer(section.optimizer, num_steps)
    make_first = partial(make_state, optimizer=optimizer, key=jax.random.key(section.seed),
                         mesh=setup.mesh, guard_window=section.guard.window,
                         keep_ema=section.ema_decay > 0)
    loss_fn = partial(loss_fn, config=setup.config, execution=setup.execution)
    return make_first, make_train_step(
        loss_fn, optimizer, make_first(abstract_params(setup.config)), setup.mesh,
        num_microbatches=num_microbatches, guard_sigmas=section.guard.sigmas,
        ema_decay=section.ema_decay, diagnostics=section.run.diagnostics)


def trained_params(state: TrainState) -> Any:
    """The parameters to evaluate and to keep: the running average, if there is one."""
    return eval_params(state.opt_state, state.params) if state.ema is None else state.ema
