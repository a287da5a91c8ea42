"""Stage: direct preference optimization against a frozen reference.

    python -m align.dpo --config=configs/quickstart.py --workdir=runs/quickstart

The reference is the model that DPO starts from. Its log-probabilities are computed once, by the
code that trains, so the first step's loss is ln 2 to the last bit that float32 allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.losses.preference import PreferenceBatch, dpo_loss, reference_logps
from align.sft import epochs
from core import entry
from core.errors import UserError
from core.progress import Progress, log
from data.batch import Batch, pack_examples, stack
from data.chat import ask, render
from data.tokenizer import Tokenizer, load_tokenizer
from eval.run import read_rows
from model.directory import context_tokens, load_model, save_model
from model.parallel.sharding import make_mesh
from train.distributed import initialize
from train.step import place_batch
from train.trainer import train
from train.watch import profile


def make_pair_rows(pairs: Sequence[Mapping[str, Any]], tokenizer: Tokenizer,
                   row_length: int) -> tuple[list[tuple[Batch, Batch]], int]:
    """Renders pairs, one row per answer; a pair with an answer longer than a row is left out.

    Returns:
        (chosen, rejected) rows, and the number of pairs left out.
    """
    rows = []
    for pair in pairs:
        sides = [pack_examples([render(ask(pair["question"], pair[side]), tokenizer)], row_length)
                 for side in ("chosen", "rejected")]
        if not any(num_too_long for _, num_too_long in sides):
            rows.append((sides[0][0][0], sides[1][0][0]))
    return rows, len(pairs) - len(rows)


def with_reference(rows: Sequence[tuple[Batch, Batch]], params, *, config, mesh,
                   batch_size: int) -> list[PreferenceBatch]:
    """Adds the reference's log-probabilities to every pair, in batches of the training's shape."""
    zero = np.float32(0.0)
    bare = [PreferenceBatch(chosen, rejected, zero, zero) for chosen, rejected in rows]
    done: list[PreferenceBatch] = []
    with jax.set_mesh(mesh), Progress("reference", len(bare), "pairs") as progress:
        for first in range(0, len(bare), batch_size):
            picked = bare[first:first + batch_size]
            filled = picked + [picked[-1]] * (batch_size - len(picked))
            chosen_B, rejected_B = jax.device_get(reference_logps(
                params, place_batch(stack(filled), mesh), config=config))
            done += [row.replace(reference_chosen_B=chosen_B[i], reference_rejected_B=rejected_B[i])
                     for i, row in enumerate(picked)]
            progress.update(len(done))
    return done


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains the SFT model on its own labelled answers."""
    initialize()
    section = config.dpo
    tokenizer_folder = parents["model"] / "tokenizer"
    mesh = make_mesh(config.mesh)
    params, model_config = load_model(parents["model"], mesh)
    pairs = read_rows(parents["pairs"] / "pairs.jsonl")
    rows, num_too_long = make_pair_rows(pairs, load_tokenizer(tokenizer_folder),
                                        section.row_length)
    if num_too_long:
        log(f"dpo: left out {num_too_long} of {len(pairs)} pairs that are longer than "
            f"{section.row_length} tokens")
    if len(rows) < section.batch_size:
        raise UserError(f"dpo.batch_size={section.batch_size}", f"there are only {len(rows)} pairs",
                        "sample more questions in `pairs` or set a smaller batch_size")
    rows = epochs(with_reference(rows, params, config=model_config, mesh=mesh,
                                 batch_size=section.batch_size), section)
    loss_fn = partial(dpo_loss, beta=section.beta, nll_coef=section.nll_coef)
    params, told = train(loss_fn, rows, make_params=lambda p: p, source=params, config=model_config,
                   mesh=mesh, section=section, folder=folder, rows_per_example=2)
    save_model(folder, params, model_config, tokenizer_folder, chat=True,
               context_tokens=context_tokens(parents["model"]))
    return {"pairs": len(pairs) - num_too_long, "too_long": num_too_long, "steps": len(rows),
            **told}


if __name__ == "__main__":
    profile.define_flag()
    entry.run_stage("dpo", build, parents=("model", "pairs"), every_process=True)
