"""Stage: pretrains a decoder, with an annealing phase on the best data at the end.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from core import entry
from core.artifacts import read_json
from core.progress import log
from data.tokenizer import load_tokenizer
from data.tokens.mixture import mixture, plan_mixture
from data.tokens.rows import batches
from eval.measures.choices import score_choices
from eval.measures.likelihood import bits_per_byte
from eval.statistics import mean_and_stderr
from eval.tasks.documentation import load_documentation
from model.config import ModelConfig, make_model_config
from model.directory import save_model
from model.families.decoder import init, num_params
from model.parallel.sharding import make_mesh
from train.distributed import initialize
from train.loss import next_token_loss
from train.trainer import train
from train.watch import profile
from train.watch.metrics import read_metrics


def plan_phases(section: ConfigDict, tokens: Path) -> list[tuple[int, dict[str, float]]]:
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
    by_hand = section.mixture.to_dict()
    phases = [(section.num_steps - anneal_steps, by_hand if any(by_hand.values()) else natural),
              (anneal_steps, section.anneal_mixture.to_dict())]
    planned, used = [], dict.fromkeys(sizes, 0)
    for steps, weights in phases:
        if not steps:
            continue
        named = {name: size for name, size in sizes.items() if name != "best" or name in weights}
        plan = plan_mixture(
            named, total_tokens=steps * section.batch_size * section.row_length, weights=weights,
            upweight=section.upweight.to_dict(), max_epochs=section.max_epochs or math.inf,
            used_tokens={name: used[name] for name in named})
        for warning in plan.warnings:
            log(f"pretrain: {warning}")
        used = {name: count + plan.tokens.get(name, 0) for name, count in used.items()}
        planned.append((steps, plan.weights))
    return planned


def make_rows(section: ConfigDict, tokens: Path) -> grain.MapDataset:
    """All batches of the run, phase after phase."""
    parts = [mixture(tokens, weights, section.row_length, num_rows=steps * section.batch_size,
                     seed=section.seed + 1000 * i, packing=section.packing)
             for i, (steps, weights) in enumerate(plan_phases(section, tokens))]
    return batches(grain.MapDataset.concatenate(parts), section.batch_size)


def make_evaluate(section: ConfigDict, model_config: ModelConfig,
                  parents: Mapping[str, Path]) -> Callable[[Any], dict[str, float]]:
    """What is measured while training: held-out bits per byte and, if asked, a small task.

    The task's questions are of the training split: the test split is for finished models.
    """
    tokens, batching = parents["tokens"], {"row_length": section.row_length,
                                           "batch_size": section.batch_size}
    questions = []
    if section.num_choices:
        questions = load_documentation(parents["corpus"]).choices("train", section.num_choices,
                                                                  section.seed)
        tokenizer = load_tokenizer(tokens / "tokenizer")

    def evaluate(params):
        metrics = {"heldout_bpb": bits_per_byte(params, model_config, tokens, **batching)}
        if questions:
            scores = score_choices(params, model_config, tokenizer, questions, chat=False,
                                   **batching)
            metrics["choices_acc"] = mean_and_stderr([s.is_right_per_byte for s in scores])[0]
        return metrics

    return evaluate


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains from scratch, or goes on from the newest checkpoint in `folder`."""
    initialize()
    section, tokens = config.pretrain, parents["tokens"]
    model_config = make_model_config(config.model, read_json(tokens / "tokens.json")["vocab_size"])
    mesh = make_mesh(config.mesh)
    loss_fn = partial(next_token_loss, z_loss_coef=section.z_loss_coef,
                      balance_coef=section.balance_coef, router_z_coef=section.router_z_coef)
    params, told = train(
        loss_fn, make_rows(section, tokens), make_params=partial(init, model_config),
        source=jax.random.key(section.seed), config=model_config, mesh=mesh, section=section,
        folder=folder, evaluate=make_evaluate(section, model_config, parents))
    save_model(folder, params, model_config, tokens / "tokenizer", chat=False,
               context_tokens=section.row_length)
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "heldout_bpb" in row][-1]
    return {"params": num_params(model_config), "steps": section.num_steps,
            "tokens": section.num_steps * section.batch_size * section.row_length,
            **told, **{name: value for name, value in last.items()
                       if name not in ("step", "evaluated")}}


if __name__ == "__main__":
    profile.define_flag()
    entry.run_stage("pretrain", build, parents=("tokens", "corpus"), sections=("model",),
                    every_process=True)
