"""The one trainer: pretraining, SFT and DPO differ in loss, rows and first parameters, not here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh

from core.progress import format_count, log
from model.attention.backends import describe
from model.config import ModelConfig
from model.families.decoder import num_params
from model.parallel.sharding import check_mesh
from train.loop import Loop
from train.optimizer.optimizers import eval_params, make_optimizer
from train.state import TrainState
from train.step import LossFn, init_state, make_abstract_state, make_train_step


def train(loss_fn: LossFn, rows: grain.MapDataset, *, make_params: Callable[[Any], Any],
          source: Any, config: ModelConfig, mesh: Mesh, section: Any, folder: Path,
          evaluate: Callable[[Any], Mapping[str, float]] | None = None,
          rows_per_example: int = 1) -> tuple[Any, dict[str, float]]:
    """Trains over all batches of `rows`, or goes on from the newest intact checkpoint in `folder`.

    Args:
        loss_fn: see `train.loss`.
        rows: one element per step, so that its length is the number of steps.
        make_params: the first parameters from `source`, as in `train.step.init_state`.
        section: the stage's config; `configs.common.make_training` has the fields read here.
        folder: gets `checkpoints/`, `metrics.jsonl`, `speed.jsonl`, `goodput.jsonl`.
        evaluate: `params -> metrics`, run every `evaluate_every` steps and after the last.
        rows_per_example: rows of tokens in an element of the batch: 2 for pairs.

    Returns:
        The trained parameters, their running average where one is kept; and, for the stage's
        metrics, `goodput_frac` of the run.

    Raises:
        UserError: sizes that do not fit each other, before anything is compiled; or training
            went wrong more often than `section.rewind.max_retries`.
    """
    check_mesh(config, mesh, row_length=section.row_length,
               batch_size=rows_per_example * section.batch_size // section.num_microbatches)
    tokens_per_step = rows_per_example * section.batch_size * section.row_length
    optimizer = make_optimizer(section.optimizer, len(rows))
    log(f"{section.out}: {format_count(num_params(config))} parameters, {len(rows)} steps of "
        f"{format_count(tokens_per_step)} tokens, {section.optimizer.name}, "
        f"{config.compute_dtype}, {describe(config, mesh)}, "
        f"{mesh.size} x {jax.devices()[0].device_kind}")
    recipe = (make_params, source, optimizer, jax.random.key(section.seed), mesh)
    settings = {"guard_window": section.guard.window, "keep_ema": section.ema_decay > 0}
    state = make_abstract_state(*recipe, **settings)
    train_step = make_train_step(
        loss_fn, optimizer, config=config, mesh=mesh, state=state, batch_size=section.batch_size,
        num_microbatches=section.num_microbatches, guard_sigmas=section.guard.sigmas,
        ema_decay=section.ema_decay, diagnostics=section.diagnostics)
    loop = Loop(train_step, rows, folder=folder, mesh=mesh, section=section, config=config,
                tokens_per_step=tokens_per_step,
                evaluate=evaluate and (lambda state: evaluate(trained_params(state))))
    loop.check(state)
    state = loop.run(init_state(*recipe, **settings))
    return trained_params(state), {"goodput_frac": round(loop.goodput_frac(), 4)}


def trained_params(state: TrainState) -> Any:
    """The parameters to evaluate and to keep: the running average, if there is one."""
    return eval_params(state.opt_state, state.params) if state.ema is None else state.ema
