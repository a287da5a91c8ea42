"""A token folder that is only described, and runs of a ladder that are written, not trained."""

import dataclasses
import json
from pathlib import Path

from core.artifacts import make_lineage, write_json
from core.entry import run_next
from train.reading import write_reading


def write_tokens(workdir: Path, **domains: int) -> None:
    """Writes `tokens` with a vocabulary of the dial on CPUs, and so many tokens in its domains."""
    folder = workdir / "tokens"
    folder.mkdir(parents=True)
    write_json(folder / "tokens.json", {
        "vocab_size": 2048, "tokenizer": "planted",
        "domains": {name: {"tokens": count} for name, count in domains.items()}})
    write_json(folder / "lineage.json", make_lineage(stage="pack", config={}, inputs={}, code=""))


def plant(stage, run, loss: float, secs_of_step: float = 1.0) -> None:
    """Finishes a planned run with a loss, by the stage's own rules of artifacts.

    Args:
        stage: of pretraining.
        secs_of_step: of a step, as its record of time says; the rest takes 5 seconds.
    """
    num_steps = run.config.pretrain.num_steps

    def build(config, parents, folder):
        write_reading(folder, run.reading)
        row = {"step": num_steps, "heldout_bpb": loss, "evaluated": True}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        attempt = {"began": 0.0, "resumed": 0, "last": num_steps,
                   "secs": {"step": num_steps * secs_of_step, "startup": 3.0, "evaluate": 2.0}}
        (folder / "goodput.jsonl").write_text(json.dumps(attempt) + "\n")
        return {"heldout_bpb": loss}

    run_next(dataclasses.replace(stage, build=build), run.config, run.point.folder, rebuild=False)
