"""Shared code of fine-tuning stages: open a model, train it, save the result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
from ml_collections import ConfigDict

from core.errors import UserError
from core.progress import log
from data.tokens.rows import batches as group_rows
from model.directory import load_params, read_description
from train.setup import Setup, make_setup
from train.step import LossFn
from train.trainer import Data, train
from train.watch.writers import check_writers


def open_setup(source: Path, section: ConfigDict, mesh: Mapping[str, int]) -> Setup:
    """The setup for fine-tuning a model directory, checked as far as it can be without data."""
    check_writers(section.run.writers)
    described = read_description(source)
    if section.row_length > described.context_tokens:
        log(f"warning: {section.out}.row_length={section.row_length}: {source.name} was trained on "
            f"rows of {described.context_tokens} tokens")
    return make_setup(described.config, section, mesh)


def make_batches(rows: list[Any], section: ConfigDict) -> grain.MapDataset:
    """Batches of `num_epochs` passes over rows, each shuffled differently.

    Where the rows do not fill the last batch, a further pass does, so that each is trained on at
    least `num_epochs` times.

    Raises:
        UserError: fewer rows than one batch.
    """
    if len(rows) < section.batch_size:
        raise UserError(f"{section.out}: {len(rows)} rows", "do not fill one batch of "
                        f"{section.batch_size}", "give more data or a smaller batch_size")
    source = grain.MapDataset.source(rows).seed(section.seed).shuffle()
    num_rows = len(rows) * section.num_epochs
    num_missing = -num_rows % section.batch_size
    if num_missing:
        log(f"{section.out}: {num_missing} of {len(rows)} rows are repeated to fill the last batch "
            f"of {section.batch_size}")
    passes = source.repeat(section.num_epochs + bool(num_missing))
    return group_rows(passes[:num_rows + num_missing], section.batch_size)


def fine_tune(loss_fn: LossFn, batches: grain.MapDataset, source: Path, *, setup: Setup,
              section: ConfigDict, folder: Path, rows_per_example: int = 1) -> dict[str, Any]:
    """Fine-tunes a model directory and writes the result, a chat model.

    Args:
        source: the model directory to start from; its parameters are read unless a checkpoint of
            this stage exists.
        folder: the model directory to write.

    Returns:
        `steps`, and the trainer's metrics.
    """
    data = Data(batches, rows_per_example, lambda num_batches: {
        "epochs": section.num_epochs * num_batches / len(batches)})
    trained, metrics = train(
        loss_fn, data, partial(load_params, source, setup.config, setup.mesh), setup=setup,
        section=section, folder=folder)
    trained.save(folder, setup.config, source / "tokenizer", chat=True,
                 context_tokens=read_description(source).context_tokens)
    return {"steps": len(batches), **metrics}
