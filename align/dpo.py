"""Stage: direct preference optimization against a frozen reference.

    python -m align.dpo --config=configs/quickstart.py --workdir=runs/quickstart

The reference is the model that DPO starts from. Its log-probabilities are computed once, by the
same code as in training, so the first step's loss is ln 2 to float32 precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.finetune import fine_tune, freeze, make_batches, open_setup, open_tokenizer
from align.losses.preference import PreferenceBatch, dpo_loss, reference_logps
from core.entry import Stage, run_stage
from core.progress import Progress, log
from data.batch import Batch, pack_examples, stack
from data.chat import Conversation, Message, render
from data.preferences import Preference, read_preferences
from data.tokenizers.tokenizer import Tokenizer
from model.directory import load_params
from train.distributed import initialize
from train.setup import Setup
from train.step import place_batch
from train.trainer import make_step
from train.watch import profile

# Rows of a pair: (chosen, rejected).
PairRows = tuple[Batch, Batch]


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains a model on preferences between answers."""
    initialize()
    section, source = config.dpo, parents["model"]
    setup = open_setup(source, section, config.mesh)
    preferences = read_preferences(parents["pairs"] / "pairs.jsonl")
    rows, counts = make_pair_rows(preferences, open_tokenizer(source, section),
                                  section.row_length)
    _log_counts(counts, len(rows), len(preferences), section)
    # Compiles nothing, and refuses what does not fit before the reference is.
    make_step(dpo_loss, setup, section, rows_per_example=2,
              num_steps=len(make_batches(rows, section)), frozen=freeze(setup, section))
    # The reference's parameters are freed before those to train are loaded.
    scored = with_reference(rows, load_params(source, setup.config, setup.mesh), setup=setup,
                            batch_size=section.batch_size)
    loss_fn = partial(dpo_loss, beta=section.beta, nll_coef=section.nll_coef)
    metrics = fine_tune(loss_fn, make_batches(scored, section), source, setup=setup,
                        section=section, folder=folder, rows_per_example=2)
    return {"pairs": len(rows), **counts, **metrics}


def make_pair_rows(preferences: Sequence[Preference], tokenizer: Tokenizer,
                   row_length: int) -> tuple[list[PairRows], dict[str, int]]:
    """Renders pairs, one row per answer; excludes those that are too long or teach nothing.

    Of an answer that was cut at a limit the end is not trained on.

    Returns:
        (chosen, rejected) rows; and counts: `too_long`, pairs excluded as an answer is longer than
        a row; `equal`, those excluded as both answers are the same; `tied`, preferences without a
        pair, as all ranks are equal; `empty_chosen`, pairs whose preferred answer is empty.
    """
    def render_row(preference: Preference, index: int) -> tuple[list[Batch], int]:
        response = Message("assistant", preference.responses[index])
        is_cut = "length" in preference.finishes[index:index + 1]
        whole = Conversation((*preference.prompt.messages, response))
        return pack_examples([render(whole, tokenizer, is_cut=is_cut)], row_length)

    rows, counts = [], dict.fromkeys(("too_long", "equal", "tied", "empty_chosen"), 0)
    for preference in preferences:
        pairs = preference.pairs()
        counts["tied"] += not pairs
        for pair in pairs:
            sides = [render_row(preference, index) for index in pair]
            chosen, rejected = (preference.responses[index] for index in pair)
            if chosen == rejected:
                counts["equal"] += 1
            elif any(num_too_long for _, num_too_long in sides):
                counts["too_long"] += 1
            else:
                rows.append((sides[0][0][0], sides[1][0][0]))
                counts["empty_chosen"] += not chosen.strip()
    return rows, counts


def _log_counts(counts: Mapping[str, int], num_rows: int, num_preferences: int,
                section: ConfigDict) -> None:
    num_pairs = num_rows + counts["too_long"] + counts["equal"]
    lines = {"too_long": f"left out of {num_pairs} pairs: longer than {section.row_length} tokens",
             "equal": f"left out of {num_pairs} pairs: both answers are the same",
             "tied": f"of {num_preferences} preferences have no pair: all ranks are equal",
             "empty_chosen": f"of {num_rows} pairs prefer an empty answer"}
    for name, line in lines.items():
        if counts[name]:
            log(f"{section.out}: {counts[name]} {line}")


def with_reference(rows: Sequence[PairRows], params: Any, *, setup: Setup,
                   batch_size: int) -> list[PreferenceBatch]:
    """Adds the reference's log-probabilities to every pair, in batches of training's shape."""
    zero = np.float32(0.0)
    bare = [PreferenceBatch(chosen, rejected, zero, zero) for chosen, rejected in rows]
    done: list[PreferenceBatch] = []
    with jax.set_mesh(setup.mesh), Progress("reference", len(bare), "pairs") as progress:
        for first in range(0, len(bare), batch_size):
            picked = bare[first:first + batch_size]
            filled = picked + [picked[-1]] * (batch_size - len(picked))
            chosen_B, rejected_B = jax.device_get(reference_logps(
                params, place_batch(stack(filled), setup.mesh), config=setup.config,
                execution=setup.execution))
            done += [row.replace(reference_chosen_B=chosen_B[i], reference_rejected_B=rejected_B[i])
                     for i, row in enumerate(picked)]
            progress.update(len(done))
    return done


STAGE = Stage("dpo", build, parents=("model", "pairs"), every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
