"""Training of a model with a scalar head: whole, or the head beside an adapter of the body."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from align.finetune import UNTOUCHED, evaluated_values, make_adapter, merge, note_untouched
from align.heldout import Evaluate
from core.errors import UserError
from core.progress import log
from data.templates.named import taught_folder
from model.adapters.lora import abstract_lora, apply_lora, cast_frozen, read_lora
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.families.registry import Params, abstract_params
from model.heads.scalar import NAMES, init_scalar_head
from model.parallel.sharding import num_batch_shards, param_shardings
from train.setup import Setup, make_setup
from train.step import LossFn
from train.trainer import Data, Frozen, Trained, train
from train.watch.writers import check_writers


def with_scalar_head(config: ModelConfig) -> ModelConfig:
    """The architecture with a scalar head in the place of its own."""
    return dataclasses.replace(config, score_head=True, masked_head=False, head_bias=False)


def open_scalar_setup(source: Path, section: ConfigDict, mesh: Mapping[str, int]) -> Setup:
    """The setup for training a scalar head on a model directory.

    Raises:
        UserError: it is a model of a family without such a head, or the batch does not fit the
            mesh.
    """
    check_writers(section.run.writers)
    described = read_description(source)
    if section.row_length > described.context_tokens:
        log(f"warning: {section.out}.row_length={section.row_length}: {source.name} was trained on "
            f"rows of {described.context_tokens} tokens")
    setup = make_setup(with_scalar_head(described.config), section, mesh)
    limit = setup.config.max_positions
    if limit and section.row_length > limit:
        raise UserError(f"{section.out}.row_length={section.row_length}", f"exceeds the {limit} "
                        f"positions of {source.name}", "lower it")
    shards = num_batch_shards(setup.mesh)
    if section.batch_size % (shards * section.run.num_microbatches):
        raise UserError(f"{section.out}.batch_size={section.batch_size}", f"is not divisible by "
                        f"{shards} data shards x {section.run.num_microbatches} microbatches",
                        "change it, run.num_microbatches or --config.mesh")
    return setup


def load_with_head(source: Path, setup: Setup, seed: int) -> Params:
    """Parameters of a model directory with a scalar head, a fresh one unless it has one."""
    described = read_description(source)
    params = load_params(source, described.config, setup.mesh)
    if described.config.score_head:
        return params
    kept = {name: leaf for name, leaf in params.items() if name in abstract_params(setup.config)}
    make = partial(init_scalar_head, setup.config)
    head = jax.eval_shape(make, jax.random.key(seed))
    with jax.set_mesh(setup.mesh):
        return kept | jax.jit(make, out_shardings=param_shardings(head, setup.mesh))(
            jax.random.key(seed))


def train_scalar(loss_fn: LossFn, data: Data, source: Path, *, setup: Setup, section: ConfigDict,
                 folder: Path, evaluate: Evaluate | None,
                 finish: Callable[[Params], Params]) -> tuple[Params, dict[str, Any]]:
    """Trains a scalar head and the body below it, and writes the model directory.

    With `section.lora.rank` the head is trained beside an adapter of the frozen body.

    Args:
        finish: makes of the trained parameters those to save.

    Returns:
        The parameters that are saved; and as `align.finetune.fine_tune`, where the untouched
        model is measured if it has a scalar head already.
    """
    load, lora = partial(load_with_head, source, setup, section.seed), read_lora(section.lora)
    # A fresh head orders nothing: that is not worth a pass over what is held out.
    is_fresh = evaluate is not None and not read_description(source).config.score_head
    untouched = partial(note_untouched, (lambda params: {}) if is_fresh else evaluate,
                        folder / UNTOUCHED)
    if lora is None:
        trained, metrics = train(loss_fn, data, lambda: untouched(load()), setup=setup,
                                 section=section, folder=folder, evaluate=evaluate)
    else:
        body = cast_frozen(load(), setup.execution)
        head = {name: body.pop(name) for name in NAMES}
        frozen = Frozen(body, abstract_lora(setup.config, lora)
                        | {name: abstract_params(setup.config)[name] for name in NAMES})

        def whole(tree: Any, body: Params) -> Params:
            return apply_lora(body | _head_of(tree), _adapter_of(tree), lora)

        def loss(tree: Any, batch: Any, *, frozen: Params, **settings: Any) -> Any:
            return loss_fn(whole(tree, frozen), batch, **settings)

        def begin() -> Any:
            untouched(body | head)
            return make_adapter(setup, section) | head

        tuned, metrics = train(
            loss, data, begin, setup=setup, section=section, folder=folder, frozen=frozen,
            evaluate=evaluate and (lambda tree: evaluate(whole(tree, body))))
        del frozen, body
        trained = Trained(*(tree and merge(load() | _head_of(tree), _adapter_of(tree), setup, lora)
                            for tree in tuned))
    trained = Trained(*(params and finish(params) for params in trained))
    with taught_folder(source / "tokenizer", section.template) as tokenizer:
        trained.save(folder, setup.config, tokenizer, chat=True,
                     context_tokens=read_description(source).context_tokens)
    return trained.params, {"steps": len(data.batches), **metrics,
                            **evaluated_values(folder, metrics.get("best_step"))}


def _head_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tree[name] for name in NAMES}


def _adapter_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in tree.items() if name not in NAMES}
