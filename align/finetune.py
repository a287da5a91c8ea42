"""Shared code of fine-tuning stages: open a model, train it, save the result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from align.heldout import Evaluate
from core.artifacts import read_json, write_json
from core.errors import UserError
from core.progress import log
from data.chat import check_teaches
from data.domains import POOLS, by_domain
from data.templates.named import taught_folder, with_template
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.mixture import mixture
from data.tokens.rows import batches as group_rows
from model.adapters.lora import (
    Adapter,
    Lora,
    abstract_lora,
    apply_lora,
    cast_frozen,
    init_lora,
    merge_lora,
    read_lora,
    save_lora,
)
from model.directory import load_params, read_description
from model.families.registry import Params, check_generates
from model.parallel.sharding import param_shardings
from train.setup import Setup, make_setup
from train.step import LossFn
from train.trainer import Data, Frozen, Trained, train
from train.watch.metrics import read_metrics
from train.watch.writers import check_writers

UNTOUCHED = "untouched.json"    # in the artifact: what the model was measured at before training


def open_setup(source: Path, section: ConfigDict, mesh: Mapping[str, int]) -> Setup:
    """The setup for fine-tuning a model directory, checked as far as it can be without data."""
    check_writers(section.run.writers)
    described = read_description(source)
    check_generates(described.config, str(source))
    if section.row_length > described.context_tokens:
        log(f"warning: {section.out}.row_length={section.row_length}: {source.name} was trained on "
            f"rows of {described.context_tokens} tokens")
    setup = make_setup(described.config, section, mesh)
    freeze(setup, section)
    return setup


def open_tokenizer(source: Path, section: ConfigDict) -> Tokenizer:
    """The tokenizer of a model directory, with the template that a section names.

    Raises:
        UserError: there is no such template, or none with which answers can be taught.
    """
    tokenizer = with_template(load_tokenizer(source / "tokenizer"), section.template)
    check_teaches(tokenizer)
    return tokenizer


def make_passes(rows: Any, section: ConfigDict, num_passes: int) -> grain.MapDataset:
    """Passes over rows, each shuffled differently.

    Args:
        rows: anything of a length whose elements are read by their number.

    Raises:
        UserError: fewer rows than one batch.
    """
    if len(rows) < section.batch_size:
        raise UserError(f"{section.out}: {len(rows)} rows", "do not fill one batch of "
                        f"{section.batch_size}", "give more data or a smaller batch_size")
    return grain.MapDataset.source(rows).seed(section.seed).shuffle().repeat(num_passes)


def make_batches(rows: Any, section: ConfigDict) -> grain.MapDataset:
    """Batches of `num_epochs` of `make_passes`.

    Where the rows do not fill the last batch, a further pass does, so that each is trained on at
    least `num_epochs` times.
    """
    num_rows = len(rows) * section.num_epochs
    num_missing = -num_rows % section.batch_size
    if num_missing:
        log(f"{section.out}: {num_missing} of {len(rows)} rows are repeated to fill the last batch "
            f"of {section.batch_size}")
    passes = make_passes(rows, section, section.num_epochs + bool(num_missing))
    return group_rows(passes[:num_rows + num_missing], section.batch_size)


def pretraining_rows(section: ConfigDict, folder: Path, num_rows: int) -> grain.MapDataset:
    """Rows of pretraining text, whose order follows from the seed.

    Args:
        section: `mixture` gives the shares of domains; where all are 0 they follow the sizes.
        folder: of tokens.

    Raises:
        UserError: a domain is not among the tokens.
    """
    domains = read_json(folder / "tokens.json")["domains"]
    shares = {name: share for name, share in by_domain(section.mixture).items() if share} or {
        name: float(domain["tokens"]) for name, domain in domains.items() if name not in POOLS}
    return mixture(folder, shares, section.row_length, num_rows=num_rows, seed=section.seed)


def fine_tune(loss_fn: LossFn, batches: grain.MapDataset, source: Path, *, setup: Setup,
              section: ConfigDict, folder: Path, rows_per_example: int = 1,
              evaluate: Evaluate | None = None) -> dict[str, Any]:
    """Fine-tunes a model directory and writes the result, a chat model.

    With `section.lora.rank` an adapter is trained beside the model's frozen parameters. The result
    is the model that both make, and the adapter by itself in `adapter/`; with a running average
    its raw one in `raw/adapter/`. The template of `section.template` becomes that of the result's
    tokenizer, so whoever opens the model asks it as it was taught.

    Args:
        source: the model directory to start from; its parameters are read unless a checkpoint of
            this stage exists, or they are frozen.
        folder: the model directory to write.
        evaluate: run on the model's parameters, an adapter included, before the first step, every
            `run.evaluate_every` steps and after the last.

    Returns:
        `steps`, the trainer's metrics, and of the numbers that `evaluate` gives those of the
        untouched model, as `untouched_NAME`, and of the result.
    """
    data = Data(batches, rows_per_example, lambda num_batches: {
        "epochs": section.num_epochs * num_batches / len(batches)})
    if evaluate is None:
        log(f"{section.out}: nothing is held out, so nothing is evaluated; heldout_frac does it")
    load, lora = partial(load_params, source, setup.config, setup.mesh), read_lora(section.lora)
    untouched = partial(note_untouched, evaluate, folder / UNTOUCHED)
    if lora is None:
        trained, metrics = train(loss_fn, data, lambda: untouched(load()), setup=setup,
                                 section=section, folder=folder, evaluate=evaluate)
    else:
        frozen = freeze(setup, section, load())

        def begin() -> Adapter:
            untouched(frozen.params)
            return make_adapter(setup, section)

        trained, metrics = train(
            with_adapter(loss_fn, lora), data, begin, setup=setup, section=section, folder=folder,
            frozen=frozen, evaluate=evaluate and (
                lambda adapter: evaluate(apply_lora(frozen.params, adapter, lora))))
        del frozen
    save_tuned(trained, source, setup=setup, section=section, folder=folder)
    return {"steps": len(batches), **metrics, **evaluated_values(folder, metrics.get("best_step"))}


def save_tuned(trained: Trained, source: Path, *, setup: Setup, section: ConfigDict,
               folder: Path) -> None:
    """Writes the model directory of a fine-tuned chat model.

    Args:
        trained: all parameters or, by `section.lora`, an adapter, which is written as well.
    """
    lora = read_lora(section.lora)
    if lora is not None:
        for place, tree in (("adapter", trained.params), ("raw/adapter", trained.raw)):
            if tree is not None:
                save_lora(folder / place, tree, lora, source)
        trained = Trained(*(tree and merge(load_params(source, setup.config, setup.mesh), tree,
                                           setup, lora) for tree in trained))
    with taught_folder(source / "tokenizer", section.template) as tokenizer:
        trained.save(folder, setup.config, tokenizer, chat=True,
                     context_tokens=read_description(source).context_tokens)


def note_untouched(evaluate: Evaluate | None, path: Path, params: Params) -> Params:
    """Evaluates the parameters that training starts from, which it returns."""
    if evaluate is not None:
        values = evaluate(params)
        if jax.process_index() == 0:
            write_json(path, values)
    return params


def evaluated_values(folder: Path, best_step: int | None) -> dict[str, float]:
    """Numbers of the evaluations: of the untouched model, and of the one that is kept."""
    if not (folder / UNTOUCHED).exists():
        return {}
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "evaluated" in row]
    kept = next((row for row in rows if row["step"] == best_step), rows[-1])
    before = {f"untouched_{name}": value for name, value in read_json(folder / UNTOUCHED).items()}
    return {name: value for name, value in (before | kept).items()
            if not isinstance(value, str) and name not in ("step", "evaluated")}


def freeze(setup: Setup, section: ConfigDict, params: Params | None = None) -> Frozen | None:
    """What fine-tuning with `section.lora` does not train; None where it trains all parameters.

    Args:
        params: the model's; the weights among them are cast to the compute dtype once. None where
            only the shapes are needed.
    """
    lora = read_lora(section.lora)
    if lora is None:
        return None
    if params is not None:
        params = cast_frozen(params, setup.execution)
    return Frozen(params, abstract_lora(setup.config, lora))


def with_adapter(loss_fn: LossFn, lora: Lora) -> LossFn:
    """The loss as a function of an adapter, beside the frozen parameters."""
    def loss(adapter, batch, *, frozen, **settings):
        return loss_fn(apply_lora(frozen, adapter, lora), batch, **settings)

    return loss


def make_adapter(setup: Setup, section: ConfigDict) -> Adapter:
    """The first adapter, in its place on the mesh."""
    lora = read_lora(section.lora)
    shardings = param_shardings(abstract_lora(setup.config, lora), setup.mesh)
    with jax.set_mesh(setup.mesh):
        return jax.jit(partial(init_lora, setup.config, lora), out_shardings=shardings)(
            jax.random.key(section.seed))


def merge(params: Params, adapter: Adapter, setup: Setup, lora: Lora) -> Params:
    """`merge_lora` in the place of the parameters, which are used up."""
    shardings = param_shardings(params, setup.mesh)
    with jax.set_mesh(setup.mesh):
        return jax.jit(partial(merge_lora, lora=lora), donate_argnums=0,
                       out_shardings=shardings)(params, adapter)
