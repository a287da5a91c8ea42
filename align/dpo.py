"""Stage: a preference loss on pairs or labelled answers, against a frozen reference or without one.

    python -m align.dpo --config=configs/quickstart.py --workdir=runs/quickstart
    python -m align.dpo --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.dpo.loss=simpo --config.dpo.inputs=pairs.jsonl --config.dpo.pairs=

Losses are those of `align.losses.preference`. The reference is the model that the stage starts
from; its log-probabilities are computed once and kept in `reference/` of the workdir, by the same
code as in training, so that the first step's DPO loss is ln 2 to float32 precision.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
from ml_collections import ConfigDict

from align.describe import log_statistics
from align.finetune import fine_tune, freeze, make_batches, open_setup, open_tokenizer
from align.heldout import heldout_means
from align.losses.preference import LOSSES, preference_loss, read_settings
from align.preference_rows import (
    LabelledRows,
    PairRows,
    Renderer,
    check_batches,
    heldout_batches,
    longer_is_chosen,
    with_token_shares,
    write_rows,
)
from align.reference import find_reference
from align.sources import fingerprint_inputs, open_preferences
from core.entry import Stage, run_stage
from core.errors import UserError
from data.batch import Batch
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import Labelled, Preference
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import HELDOUT, TRAIN, Examples, lay_out_examples
from train.distributed import initialize
from train.trainer import make_step
from train.watch import profile

NUM_SHOWN = 1000        # preferences that `show_rows` renders at most


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains a model on preferences between answers, or on labelled ones."""
    initialize()
    section, source = config.dpo, parents["model"]
    settings = read_settings(section)
    labels = LOSSES[settings.loss].labels
    check_batches(section, labels)
    setup = open_setup(source, section, config.mesh)
    loss_fn = partial(preference_loss, settings=settings)
    faults = Faults(section.out, section.faulty)
    renderer = Renderer(open_tokenizer(source, section), section.row_length, section.overlong,
                        faults, section.out)
    rendered = folder / "rows"
    described = write_rows(rendered, lambda: open_items(section, parents, faults, labels), renderer,
                           heldout_frac=section.heldout_frac, labels=labels)
    log_statistics(section.out, described["statistics"])
    kind = LabelledRows if labels else PairRows
    rows = {part: kind(Examples(rendered, part), section.row_length)
            for part in _parts(described, section)}
    batches = with_token_shares(make_batches(rows[TRAIN], section))
    # Compiles nothing, and refuses what does not fit before the reference is computed.
    make_step(loss_fn, setup, section, rows_per_example=2, num_steps=len(batches),
              frozen=freeze(setup, section))
    if settings.needs_reference:
        found = find_reference(folder.parent, source, rendered, rows, setup=setup, section=section)
        for part, logps in found.items():
            rows[part].reference = logps
    evaluate = heldout_means(loss_fn, partial(heldout_batches, rows[HELDOUT], section.batch_size),
                             setup) if HELDOUT in rows else None
    metrics = fine_tune(loss_fn, batches, source, setup=setup, section=section, folder=folder,
                        rows_per_example=2, evaluate=evaluate)
    if settings.needs_reference:    # equal to itself: all its margins are ties
        metrics.pop("untouched_heldout_accuracy", None)
    if HELDOUT in rows:
        metrics["heldout_pairs"] = len(rows[HELDOUT])
        if not labels:
            metrics["heldout_longer_accuracy"] = longer_is_chosen(rows[HELDOUT].examples)
    return {**described["statistics"], "left_out": described["left_out"], **metrics}


def show_rows(config: ConfigDict, parents: Mapping[str, Path],
              num: int) -> tuple[dict[str, Batch], Tokenizer]:
    """Both rows of `num` of the first pairs by their names, and the tokenizer; for
    `data.inspect batch`. Of labelled answers the second row is the mismatched one."""
    section = config.dpo
    labels, tokenizer = LOSSES[section.loss].labels, open_tokenizer(parents["model"], section)
    faults = Faults(section.out, section.faulty)
    renderer = Renderer(tokenizer, section.row_length, section.overlong, faults, section.out)
    with tempfile.TemporaryDirectory() as name:
        described = write_rows(Path(name) / "rows", lambda: itertools.islice(
            open_items(section, parents, faults, labels), NUM_SHOWN), renderer,
            heldout_frac=section.heldout_frac, labels=labels)
        _parts(described, section)
        examples = Examples(Path(name) / "rows")
        shuffled = grain.MapDataset.source(range(len(examples))).seed(section.seed).shuffle()
        rows = {}
        for number, index in enumerate(itertools.islice(shuffled, num), start=1):
            sides = ("answer", "mismatched answer") if labels else ("chosen", "rejected")
            for side, example in zip(sides, examples[int(index)]):
                rows[f"pair {number}, {side}"] = lay_out_examples([example], section.row_length)
    return rows, tokenizer


def open_items(section: ConfigDict, parents: Mapping[str, Path], faults: Faults,
               labels: bool) -> Iterator[Preference | Labelled]:
    """The preferences of the parent `pairs`, if there is one, then the contents of all inputs."""
    if "pairs" in parents:
        yield from read_examples(parents["pairs"] / "pairs.jsonl", "preferences", faults=faults)
    yield from open_preferences(section, faults, "labels" if labels else "preferences")


def _parts(described: Mapping[str, Any], section: ConfigDict) -> list[str]:
    """The parts of the rows: `train` and, where some are held out, `heldout`."""
    parts = [TRAIN, HELDOUT] if section.heldout_frac else [TRAIN]
    for part in parts:
        if part not in described["parts"]:
            raise UserError(f"{section.out}: pairs, inputs", f"give nothing for {part}: left out "
                            f"{described['left_out']}",
                            "name files in inputs, or change heldout_frac or row_length")
    return parts


STAGE = Stage("dpo", build, parents=("model", "pairs"),
              inputs=lambda config: fingerprint_inputs(config.dpo), every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
