"""Stage: pretrains a decoder, with an annealing phase on the best data at the end.

    python -m train.pretrain --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from ml_collections import ConfigDict

from core import entry
from core.artifacts import read_json
from core.progress import format_count, log
from data.tokens.mixture import mixture, plan_mixture
from data.tokens.rows import batches
from eval.bits_per_byte import bits_per_byte
from model.config import make_model_config
from model.directory import save_model
from model.sharding import make_mesh
from model.transformer import init, num_params
from train.loop import fit
from train.loss import next_token_loss
from train.metrics import read_metrics
from train.optimizer import make_optimizer
from train.step import init_state, make_train_step


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


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains from scratch, or goes on from the newest checkpoint in `folder`."""
    section, tokens = config.pretrain, parents["tokens"]
    model_config = make_model_config(config.model, read_json(tokens / "tokens.json")["vocab_size"])
    mesh = make_mesh(config.mesh)
    tokens_per_step = section.batch_size * section.row_length
    log(f"pretrain: {format_count(num_params(model_config))} parameters, {section.num_steps} steps "
        f"of {format_count(tokens_per_step)} tokens, XLA attention, "
        f"{mesh.size} x {jax.devices()[0].device_kind}")

    init_key, run_key = jax.random.split(jax.random.key(section.seed))
    optimizer = make_optimizer(section.optimizer, section.num_steps)
    state = init_state(partial(init, model_config), init_key, optimizer, run_key, mesh)
    train_step = make_train_step(
        next_token_loss, optimizer, config=model_config, mesh=mesh, state=state,
        batch_size=section.batch_size, num_microbatches=section.num_microbatches)

    def evaluate(params):
        return {"heldout_bpb": bits_per_byte(params, model_config, tokens,
                                             row_length=section.row_length,
                                             batch_size=section.batch_size)}

    state = fit(state, train_step, make_rows(section, tokens), folder=folder, mesh=mesh,
                section=section, tokens_per_step=tokens_per_step, evaluate=evaluate)
    save_model(folder, state.params, model_config, tokens / "tokenizer", chat=False,
               context_tokens=section.row_length)
    measured = [row for row in read_metrics(folder / "metrics.jsonl") if "heldout_bpb" in row]
    return {"params": num_params(model_config), "steps": section.num_steps,
            "tokens": section.num_steps * tokens_per_step,
            "heldout_bpb": measured[-1]["heldout_bpb"]}


if __name__ == "__main__":
    entry.run_stage("pretrain", build, parents=("tokens",), sections=("model",))
