"""Stage: pretrains a model, with an annealing phase on the best data at the end.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quickstart
    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.pretrain.out=longer --config.pretrain.resume_from=base \\
        --config.pretrain.num_steps=1600
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from core.artifacts import read_json
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.batch import Batch
from data.domains import by_domain
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.corruption import Corruption, corrupt
from data.tokens.mixture import mixture, plan_mixture
from data.tokens.rows import batches as group_rows
from data.tokens.rows import first_rows
from eval.measures.corrupted import CorruptedPages
from eval.measures.items import Asking, measure_task
from eval.measures.likelihood import bits_per_byte, has_heldout
from eval.respond.loaded import LoadedModel
from eval.tasks.registry import open_tasks
from model.directory import load_params
from model.families.registry import Params, abstract_params, init, num_params
from model.mup import is_on, mup_of
from model.parallel.sharding import param_shardings
from train.checkpoints.reader import Branch
from train.distributed import initialize
from train.loss import Coefficients, next_token_loss
from train.objective import check_objective, open_corruption, text_length
from train.optimizer.optimizers import scale_optimizer
from train.reading import NAME, STREAMS, Phase, Reading, write_reading
from train.setup import Setup, make_setup
from train.signals import leave_if_stopping
from train.start import Start, open_start, source_of
from train.trainer import Data, make_step, train
from train.watch import profile
from train.watch.metrics import read_metrics
from train.watch.writers import check_writers

ROWS = "rows"       # in the artifact while it is built: what a packing derives from the tokens


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains from the start that the config names, or the newest checkpoint in `folder`."""
    initialize()
    section, tokens = config.pretrain, parents["tokens"]
    check_writers(section.run.writers)
    start = open_start(config, parents, folder)
    if is_on(mup_of(config.model)):
        section = ConfigDict(dict(section.items()) | dict(optimizer=scale_optimizer(
            section.optimizer, start.config, mup_of(config.model))))
    setup = make_setup(start.config, section, config.mesh)
    check_objective(section, setup)
    corruption = open_corruption(section, load_tokenizer(tokens / "tokenizer"))
    reading, loss_fn = plan_reading(section, tokens, start), make_loss(section)
    if start.branch is not None and not (folder / NAME).exists():
        make_state, _ = make_step(loss_fn, setup, section, num_steps=section.num_steps)
        start.branch.check(make_state(abstract_params(setup.config)))
    data = Data(make_batches(section, tokens, reading, folder / ROWS, corruption),
                epochs=make_epochs(reading, tokens))
    trained, metrics = train(
        loss_fn, data, partial(make_first, start, reading, setup, section.seed, folder),
        setup=setup, section=section, folder=folder,
        evaluate=make_evaluate(section, setup, parents, corruption))
    trained.save(folder, start.config, tokens / "tokenizer", chat=False,
                 context_tokens=section.row_length)
    if not jax.process_index():
        shutil.rmtree(folder / ROWS, ignore_errors=True)
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "evaluated" in row][-1]
    return {"params": num_params(start.config), "steps": section.num_steps,
            "tokens": reading.tokens_at(section.num_steps),
            **metrics, **{name: value for name, value in last.items()
                          if name not in ("step", "evaluated")}}


def show_rows(config: ConfigDict, parents: Mapping[str, Path],
              num: int) -> tuple[dict[str, Batch], Tokenizer]:
    """The first rows of the run by their names, and their tokenizer; for `data.inspect batch`."""
    section, tokens = config.pretrain, parents["tokens"]
    tokenizer = load_tokenizer(tokens / "tokenizer")
    # As a rule the run's folder; where it has begun, it goes on from the step recorded there.
    start = open_start(config, parents, tokens.parent / section.out)
    reading = plan_reading(section, tokens, start)
    corruption = open_corruption(section, tokenizer)
    return first_rows(make_batches(section, tokens, reading, corruption=corruption), num), tokenizer


def make_loss(section: ConfigDict) -> Callable:
    """The loss of pretraining, with the coefficients of its section."""
    return partial(next_token_loss, coefs=Coefficients(
        section.z_loss_coef, section.balance_coef, section.router_z_coef))


def make_first(start: Start, reading: Reading, setup: Setup, seed: int,
               folder: Path) -> Params | Branch:
    """The first parameters, in their place on the mesh, or the checkpoint that holds the state."""
    if jax.process_index() == 0:
        write_reading(folder, reading)
    if start.branch is not None:
        return start.branch
    if start.source is not None:
        return load_params(start.source, setup.config, setup.mesh)
    shardings = param_shardings(abstract_params(setup.config), setup.mesh)
    with jax.set_mesh(setup.mesh):
        return jax.jit(partial(init, setup.config), out_shardings=shardings)(jax.random.key(seed))


def make_batches(section: ConfigDict, tokens: Path, reading: Reading,
                 stored: Path | None = None,
                 corruption: Corruption | None = None) -> grain.MapDataset:
    """All batches of the run, phase after phase; batch i is that of step i + 1.

    Those of the steps before the first are read only when a run skips past its last batch.

    Args:
        stored: folder for what a packing derives from the tokens; None holds it in memory.
        corruption: of the objective, drawn anew for each row of the run.
    """
    earlier = [dataclasses.replace(phase, steps=reading.first_step)
               for phase in reading.phases[:1]]
    parts = [mixture(tokens, phase.weights, text_length(section),
                     num_rows=phase.steps * section.batch_size, packing=section.packing,
                     seed=section.seed + 1000 * STREAMS.index(phase.stream),
                     drawn=drawn.get(phase.stream), stored=stored)
             for drawn, phases in (({}, earlier), (reading.drawn, reading.phases))
             for phase in phases if phase.steps]
    rows = grain.MapDataset.concatenate(parts)
    if corruption is not None:
        rows = corrupt(rows, corruption, section.seed)
    return group_rows(rows, section.batch_size)


def make_epochs(reading: Reading, tokens: Path) -> Callable[[int], dict[str, float]]:
    """`epochs(index) -> {"tokens": count, "epochs/DOMAIN": passes}`: tokens of text until batch
    `index`, and tokens drawn from each domain over those there are."""
    described = read_json(tokens / "tokens.json")["domains"]

    def epochs(index: int) -> dict[str, float]:
        rows: Counter[str] = Counter()
        for drawn in reading.drawn_at(index).values():
            rows.update({name: entry["rows"] for name, entry in drawn.items()})
        return {"tokens": reading.tokens_at(index)} | {
            f"epochs/{name}": count * reading.source["row_length"] / described[name]["tokens"]
            for name, count in rows.items()}

    return epochs


def plan_reading(section: ConfigDict, tokens: Path, start: Start,
                 report: Callable[[str], None] = log) -> Reading:
    """What the run reads, from its first step on; `report` gets what `plan_phases` notes."""
    return Reading(source_of(section, tokens), read_json(tokens / "tokens.json")["tokenizer"],
                   dataclasses.asdict(start.config), section.batch_size, start.first_step,
                   start.tokens_before, start.drawn,
                   tuple(plan_phases(section, tokens, start, report)))


def plan_phases(section: ConfigDict, tokens: Path, start: Start,
                report: Callable[[str], None] = log) -> list[Phase]:
    """The phases after the first step: the mixture, then annealing on the best data.

    The first phase's weights are those of `mixture` or, when it gives none, follow from the
    domains' sizes and `temperature`. `upweight` and `max_epochs` apply to both phases; what a
    domain gave before counts. `report` gets a line for each departure.

    Raises:
        UserError: a share is of a domain that the tokens lack; or as
            `data.tokens.mixture.plan_mixture`.
    """
    described = read_json(tokens / "tokens.json")["domains"]
    sizes = {name: domain["tokens"] for name, domain in described.items() if name != "heldout"}
    natural = {name: float(size) ** section.temperature for name, size in sizes.items()
               if name != "best"}
    anneal_steps = round(section.anneal_frac * section.num_steps)
    row_tokens = text_length(section)
    by_hand, annealed = (
        {name: share for name, share in by_domain(shares).items() if share or name in sizes}
        for shares in (section.mixture, section.anneal_mixture))
    _check_shares("mixture", by_hand, sizes)
    if anneal_steps:
        _check_shares("anneal_mixture", annealed, sizes)
    phases = [(section.num_steps - anneal_steps, by_hand if any(by_hand.values()) else natural),
              (anneal_steps, annealed)]
    planned, done, used = [], start.first_step, dict.fromkeys(sizes, 0)
    for drawn in start.drawn.values():
        for name, entry in drawn.items():
            used[name] += entry["rows"] * row_tokens
    for stream, (steps, weights) in zip(STREAMS, phases):
        steps, done = max(steps - done, 0), max(done - steps, 0)
        if not steps:
            continue
        named = {name: size for name, size in sizes.items() if name != "best" or name in weights}
        plan = plan_mixture(
            named, total_tokens=steps * section.batch_size * row_tokens, weights=weights,
            upweight=by_domain(section.upweight), max_epochs=section.max_epochs or math.inf,
            used_tokens={name: used[name] for name in named})
        for warning in plan.warnings:
            report(f"pretrain: {warning}")
        used = {name: count + plan.tokens.get(name, 0) for name, count in used.items()}
        planned.append(Phase(stream, steps, plan.weights))
    return planned


def _check_shares(field: str, shares: Mapping[str, float], domains: Iterable[str]) -> None:
    if missing := sorted(shares.keys() - {*domains}):
        raise UserError(f"pretrain.{field}.{missing[0]}={shares[missing[0]]}",
                        f"the tokens hold only {', '.join(sorted(domains))}",
                        f"give one of these a share, and set --config.pretrain.{field}."
                        f"{missing[0]}=0")
    if field == "anneal_mixture" and not any(shares.values()):
        raise UserError("pretrain.anneal_mixture", "gives no domain a share",
                        f"give one of {', '.join(sorted(domains))} a share, or set "
                        "--config.pretrain.anneal_frac=0")


def make_evaluate(section: ConfigDict, setup: Setup, parents: Mapping[str, Path],
                  corruption: Corruption | None = None) -> Callable[[Params], dict[str, float]]:
    """What is measured while training: held-out bits per byte, and the tasks of `run.tasks`.

    Their questions are of the training split: the test split is for finished models. With a
    corruption it is instead `heldout_loss_nats`, over the hidden tokens of the held-out pages,
    beside a unigram model's `heldout_unigram_nats`, and `heldout_masked_acc` for masked ones.
    Without held-out pages there is none of these, and the log says so.
    """
    tokens, row_length = parents["tokens"], section.row_length
    tokenizer = load_tokenizer(tokens / "tokenizer")
    tasks = open_tasks(section.run.tasks, parents.get("corpus"))
    holds_out = has_heldout(tokens)
    if not holds_out:
        log("pretrain: the corpus holds no page out: no "
            + ("heldout_bpb" if corruption is None else "heldout_loss_nats"))
    pages = (CorruptedPages(tokens, corruption, section.batch_size)
             if corruption is not None and holds_out else None)

    asking = Asking(section.seed, batch_size=section.batch_size,
                    batch_tokens=row_length * section.batch_size, split="train")

    def evaluate(params: Params) -> dict[str, float]:
        model = LoadedModel(params, setup.config, setup.execution, tokenizer, chat=False,
                            context_tokens=row_length, between_batches=leave_if_stopping)
        if pages is not None:
            return _restored(pages.measure(model), section.objective)
        metrics = ({"heldout_bpb": bits_per_byte(
            model, tokens, row_length=row_length, batch_size=section.batch_size)}
                   if holds_out and corruption is None else {})
        for task, count in tasks:
            _, found = measure_task(model, task, count, asking)
            metrics[f"{task.name}_acc"] = found["acc"]
        return metrics

    return evaluate


def _restored(measured: Mapping[str, float], objective: str) -> dict[str, float]:
    """The metrics by their names; only masked tokens have an accuracy."""
    accuracy = {"heldout_masked_acc": measured["acc"]} if objective == "masked" else {}
    return {"heldout_loss_nats": measured["loss_nats"],
            "heldout_unigram_nats": measured["unigram_nats"]} | accuracy


STAGE = Stage("pretrain", build, parents=("tokens", "corpus", "init_from", "resume_from"),
              unfinished=("resume_from",), sections=("model",), every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
