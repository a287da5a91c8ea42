"""The one trainer: pretraining, SFT and DPO differ in loss, batches and first parameters alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
from ml_collections import ConfigDict

from core.errors import UserError
from core.progress import format_count, log
from model.attention.backends import describe
from model.config import ModelConfig
from model.directory import save_model
from model.families.registry import abstract_params, num_params
from model.parallel.sharding import check_mesh
from train.best import Best
from train.checkpoints.reader import Branch
from train.loop import Evaluation, Loop
from train.optimizer.optimizers import eval_params, learning_rates, make_optimizer
from train.setup import Setup
from train.state import TrainState
from train.step import LossFn, TrainStep, make_state, make_train_step
from train.watch.diagnostics import diagnose

# `evaluate(params) -> {name: value}`: numbers, or texts.
Evaluate = Callable[[Any], Mapping[str, Any]]


class Data(NamedTuple):
    """What is trained on.

    Attributes:
        batches: one element per step, so that its length is the number of steps.
        rows_per_example: rows of tokens in an element of a batch: 2 for pairs.
        epochs: `epochs(num_batches) -> {name: passes}`, over each part of the data after that many
            batches; for the metrics.
    """

    batches: grain.MapDataset
    rows_per_example: int = 1
    epochs: Callable[[int], Mapping[str, float]] = lambda num_batches: {}


class Frozen(NamedTuple):
    """What a training leaves as it is, where it trains other parameters than the model's own.

    Attributes:
        params: an argument of every step, which the loss function gets as `frozen`; no part of the
            state, hence neither donated nor averaged nor saved.
        trained: shapes of the parameters that are trained.
    """

    params: Any
    trained: Any


class Trained(NamedTuple):
    """What a training gives.

    Attributes:
        params: the parameters to keep: their running average, where one is kept.
        raw: beside a running average, the parameters as the last step left them; else None.
    """

    params: Any
    raw: Any

    def save(self, folder: Path, config: ModelConfig, tokenizer: Path, *, chat: bool,
             context_tokens: int) -> None:
        """Writes a model directory; with an average, the raw parameters as `raw/`, another one.

        Arguments and errors are those of `model.directory.save_model`.
        """
        save = partial(save_model, config=config, tokenizer=tokenizer, chat=chat,
                       context_tokens=context_tokens)
        save(folder, self.params)
        if self.raw is None:
            return
        save(folder / "raw", self.raw)
        if jax.process_index() == 0:    # their origin is the same
            shutil.copy(folder / "lineage.json", folder / "raw")


def train(loss_fn: LossFn, data: Data, make_params: Callable[[], Any | Branch], *, setup: Setup,
          section: ConfigDict, folder: Path, evaluate: Evaluate | None = None,
          frozen: Frozen | None = None) -> tuple[Trained, dict[str, float]]:
    """Trains over all batches, or goes on from the newest intact checkpoint in `folder`.

    Args:
        loss_fn: see `train.loss`.
        make_params: makes the first parameters, where there is no checkpoint. They become part of
            the state without a copy, and the first step donates them. Or it names a checkpoint of
            another run, whose whole state is the first.
        section: the stage's config; `configs.common.make_training` has the fields read here.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`, `goodput.jsonl`.
        evaluate: run every `evaluate_every` steps and after the last; beside a running average,
            on the raw parameters too. With `section.best.measure` the parameters of the best
            evaluation are the result.
        frozen: None trains the model's own parameters.

    Returns:
        The trained parameters; and, for the stage's metrics, `goodput_frac` of the run and, where
        the best parameters are kept, `best_step`.

    Raises:
        UserError: sizes that do not fit each other, before anything is compiled; or training
            went wrong more often than `section.rewind.max_retries`.
    """
    batches = data.batches
    make_first, train_step = make_step(loss_fn, setup, section, num_steps=len(batches),
                                       rows_per_example=data.rows_per_example, frozen=frozen)
    shapes = trained_shapes(setup.config, frozen)
    if frozen is not None:
        train_step = partial(train_step, frozen=frozen.params)
    tokens_per_step = data.rows_per_example * section.batch_size * section.row_length
    num_trained = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    of_all = "" if frozen is None else f"of {format_count(num_params(setup.config))} "
    log(f"{section.out}: {format_count(num_trained)} {of_all}parameters, {len(batches)} steps "
        f"of {format_count(tokens_per_step)} tokens, {section.optimizer.name}, "
        f"{setup.execution.compute_dtype}, {describe(*setup)}, "
        f"{setup.mesh.size} x {jax.devices()[0].device_kind}")
    best = Best(section, folder) if section.best.measure else None
    loop = Loop(train_step, batches, setup=setup, section=section, folder=folder,
                tokens_per_step=tokens_per_step, epochs=data.epochs,
                evaluation=make_evaluation(evaluate, best, section))
    abstract_state = make_first(shapes)

    def begin() -> TrainState:
        first = make_params()
        return first.restore(abstract_state) if isinstance(first, Branch) else make_first(first)

    state = loop.run(abstract_state, begin)
    metrics = {"goodput_frac": round(loop.goodput_frac(), 4)}
    if best is None:
        return trained_params(state), metrics
    del state
    step, params = best.load(shapes, setup.mesh)
    log(f"{section.out}: kept the parameters of step {step}, the best by {section.best.measure}")
    return Trained(params, None), metrics | {"best_step": step}


def make_step(loss_fn: LossFn, setup: Setup, section: ConfigDict, *, num_steps: int,
              rows_per_example: int = 1, frozen: Frozen | None = None
              ) -> tuple[Callable[[Any], TrainState], TrainStep]:
    """The step of a trainer's section; compiles nothing yet.

    Args:
        frozen: of `train`; its `params` are not used.

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
        loss_fn, optimizer, make_first(trained_shapes(setup.config, frozen)), setup.mesh,
        num_microbatches=num_microbatches, guard_sigmas=section.guard.sigmas,
        ema_decay=section.ema_decay,
        observe=partial(observe_step, setup.config, section, num_steps))


def trained_shapes(config: ModelConfig, frozen: Frozen | None) -> Any:
    """Shapes of the parameters that are trained."""
    return abstract_params(config) if frozen is None else frozen.trained


def observe_step(config: ModelConfig, section: ConfigDict, num_steps: int, state: TrainState,
                 gradient: Any, update: Any) -> dict[str, jax.Array]:
    """Metrics beside the loss: learning rates and, with `run.diagnostics`, norms by parameter."""
    rates = learning_rates(section.optimizer, num_steps, state.guard.num_accepted,
                           state.params)
    if not section.run.diagnostics:
        return rates
    return rates | diagnose(config, state.params, gradient, update)


def trained_params(state: TrainState) -> Trained:
    """The parameters to keep, and the raw ones beside an average."""
    raw = eval_params(state.opt_state, state.params)
    return Trained(raw, None) if state.ema is None else Trained(state.ema, raw)


def make_evaluation(evaluate: Evaluate | None, best: Best | None,
                    section: ConfigDict) -> Evaluation | None:
    """The evaluation of a run, which keeps its best parameters where these are wanted.

    Raises:
        UserError: the best is to be kept of a run that evaluates nothing.
    """
    if evaluate is None and best is not None:
        raise UserError(f"{section.out}.best.measure={section.best.measure!r}",
                        "this run evaluates nothing", 'set it to ""')
    if evaluate is None:
        return None

    def run(state: TrainState) -> dict[str, Any]:
        values = evaluate_state(evaluate, state)
        if best is not None:
            best.consider(int(state.step), values, trained_params(state).params)
        return values

    return Evaluation(run, best.is_over if best is not None else lambda step: False)


def evaluate_state(evaluate: Evaluate, state: TrainState) -> dict[str, Any]:
    """Evaluates the parameters to keep and, as `raw_NAME`, the raw ones beside an average."""
    trained = trained_params(state)
    metrics = dict(evaluate(trained.params))
    if trained.raw is not None:
        metrics |= {f"raw_{name}": value for name, value in evaluate(trained.raw).items()}
    return metrics
