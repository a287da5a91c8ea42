"""Stage: pretrains a decoder, with an annealing phase on the best data at the end.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from core.artifacts import read_json
from core.entry import Stage, run_stage
from core.progress import log
from data.domains import by_domain
from data.tokenizer import load_tokenizer
from data.tokens.mixture import mixture, plan_mixture, rows_drawn
from data.tokens.rows import batches as group_rows
from eval.measures.likelihood import bits_per_byte, has_heldout
from eval.measures.questions import score_questions
from eval.respond.loaded import LoadedModel
from eval.tasks.registry import open_tasks
from model.config import make_model_config
from model.families.decoder import Params, abstract_params, init, num_params
from model.parallel.sharding import param_shardings
from train.distributed import initialize
from train.loss import next_token_loss
from train.setup import Setup, make_setup
from train.signals import leave_if_stopping
from train.trainer import Data, train
from train.watch import profile
from train.watch.metrics import read_metrics
from train.watch.writers import check_writers

Phases = list[tuple[int, dict[str, float]]]     # steps and domain weights

ROWS = "rows"       # in the artifact while it is built: what a packing derives from the tokens


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains from scratch, or goes on from the newest checkpoint in `folder`."""
    initialize()
    section, tokens = config.pretrain, parents["tokens"]
    check_writers(section.run.writers)
    model_config = make_model_config(config.model, read_json(tokens / "tokens.json")["vocab_size"])
    setup = make_setup(model_config, section, config.mesh)
    phases = plan_phases(section, tokens)
    data = Data(make_batches(section, tokens, phases, folder / ROWS),
                epochs=make_epochs(section, tokens, phases))
    trained, metrics = train(
        make_loss(section), data,
        partial(init_params, setup, section.seed), setup=setup, section=section, folder=folder,
        evaluate=make_evaluate(section, setup, parents))
    trained.save(folder, model_config, tokens / "tokenizer", chat=False,
                 context_tokens=section.row_length)
    if not jax.process_index():
        shutil.rmtree(folder / ROWS, ignore_errors=True)
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "evaluated" in row][-1]
    return {"params": num_params(model_config), "steps": section.num_steps,
            "tokens": section.num_steps * section.batch_size * section.row_length,
            **metrics, **{name: value for name, value in last.items()
                          if name not in ("step", "evaluated")}}


def make_loss(section: ConfigDict) -> Callable:
    """The loss of pretraining, with the coefficients of its section."""
    return partial(next_token_loss, z_loss_coef=section.z_loss_coef,
                   balance_coef=section.balance_coef, router_z_coef=section.router_z_coef)


def init_params(setup: Setup, seed: int) -> Params:
    """Fresh parameters, made in their place on the mesh."""
    shardings = param_shardings(abstract_params(setup.config), setup.mesh)
    with jax.set_mesh(setup.mesh):
        return jax.jit(partial(init, setup.config), out_shardings=shardings)(jax.random.key(seed))


def make_batches(section: ConfigDict, tokens: Path, phases: Phases,
                 stored: Path) -> grain.MapDataset:
    """All batches of the run, phase after phase.

    Args:
        stored: folder for what a packing derives from the tokens.
    """
    parts = [mixture(tokens, weights, section.row_length, num_rows=steps * section.batch_size,
                     seed=section.seed + 1000 * i, packing=section.packing, stored=stored)
             for i, (steps, weights) in enumerate(phases)]
    return group_rows(grain.MapDataset.concatenate(parts), section.batch_size)


def make_epochs(section: ConfigDict, tokens: Path,
                phases: Phases) -> Callable[[int], dict[str, float]]:
    """`epochs(num_batches) -> {"epochs/DOMAIN": passes}`: tokens drawn over those there are."""
    described = read_json(tokens / "tokens.json")["domains"]
    lengths = [(steps * section.batch_size, weights) for steps, weights in phases]

    def epochs(num_batches: int) -> dict[str, float]:
        rows = rows_drawn(lengths, num_batches * section.batch_size)
        return {f"epochs/{name}": count * section.row_length / described[name]["tokens"]
                for name, count in rows.items()}

    return epochs


def plan_phases(section: ConfigDict, tokens: Path) -> Phases:
    """Steps and domain weights of the run's phases: the mixture, then annealing on the best data.

    The first phase's weights are those of `mixture` or, when it gives none, follow from the
    domains' sizes and `temperature`. `upweight` and `max_epochs` apply to both phases; what a
    domain gave in the first counts in the second. Departures are logged.

    Raises:
        UserError: as `data.tokens.mixture.plan_mixture`.
    """
    described = read_json(tokens / "tokens.json")["domains"]
    sizes = {name: domain["tokens"] for name, domain in described.items() if name != "heldout"}
    natural = {name: float(size) ** section.temperature for name, size in sizes.items()
               if name != "best"}
    anneal_steps = round(section.anneal_frac * section.num_steps)
    by_hand, annealed = (
        {name: share for name, share in by_domain(shares).items() if share or name in sizes}
        for shares in (section.mixture, section.anneal_mixture))
    phases = [(section.num_steps - anneal_steps, by_hand if any(by_hand.values()) else natural),
              (anneal_steps, annealed)]
    planned, used = [], dict.fromkeys(sizes, 0)
    for steps, weights in phases:
        if not steps:
            continue
        named = {name: size for name, size in sizes.items() if name != "best" or name in weights}
        plan = plan_mixture(
            named, total_tokens=steps * section.batch_size * section.row_length, weights=weights,
            upweight=by_domain(section.upweight), max_epochs=section.max_epochs or math.inf,
            used_tokens={name: used[name] for name in named})
        for warning in plan.warnings:
            log(f"pretrain: {warning}")
        used = {name: count + plan.tokens.get(name, 0) for name, count in used.items()}
        planned.append((steps, plan.weights))
    return planned


def make_evaluate(section: ConfigDict, setup: Setup,
                  parents: Mapping[str, Path]) -> Callable[[Params], dict[str, float]]:
    """What is measured while training: held-out bits per byte, and the tasks of `run.tasks`.

    Their questions are of the training split: the test split is for finished models. Without
    held-out pages there is no `heldout_bpb`, and the log says so.
    """
    tokens, row_length = parents["tokens"], section.row_length
    tokenizer = load_tokenizer(tokens / "tokenizer")
    tasks = open_tasks(section.run.tasks, parents.get("corpus"))
    holds_out = has_heldout(tokens)
    if not holds_out:
        log("pretrain: the corpus holds no page out: no heldout_bpb")

    def evaluate(params: Params) -> dict[str, float]:
        model = LoadedModel(params, setup.config, setup.execution, tokenizer, chat=False,
                            context_tokens=row_length, between_batches=leave_if_stopping)
        sizes = {"row_length": row_length, "batch_size": section.batch_size}
        metrics = {"heldout_bpb": bits_per_byte(model, tokens, **sizes)} if holds_out else {}
        for task, count in tasks:
            metrics[f"{task.name}_acc"] = score_questions(
                model, task, split="train", count=count, seed=section.seed, **sizes)
        return metrics

    return evaluate


STAGE = Stage("pretrain", build, parents=("tokens", "corpus"), sections=("model",),
              every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
