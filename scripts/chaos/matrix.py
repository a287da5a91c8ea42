"""The crash matrix: real runs with injected faults, compared with an undisturbed one.

    python -m scripts.chaos.matrix [--trials=10] [--only=kill,damage_shards] [--workdir=DIR]

The last line sums up: committed steps lost, runs that ended bit for bit as the undisturbed one,
corruptions injected and detected, and the most steps that were repeated: at most the interval
between two saves and, if a save was in progress in the background, the steps since its begin as
well. Corruptions of files without effect count as undetected too; every run must be identical to
the bit. Status 1 if an expectation is violated.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.progress import format_secs, log
from scripts.chaos import faults as chaos_faults
from scripts.chaos.faults import Outcome, Stage
from scripts.chaos.process import CHECKPOINT_EVERY

NEED_ROOT = ("fill_disk", "forbid_writing")     # they mount folders


def make_faults(trials: int, flips: int = 0) -> dict[str, Callable[[Stage], Outcome]]:
    """Every fault of the matrix by name.

    Args:
        trials: random kills.
        flips: see `flip_files`.
    """
    return {
        "kill": partial(chaos_faults.kill, trials=trials),
        "kill_amid_save": partial(chaos_faults.kill, trials=max(trials // 2, 1), amid_save=True),
        "terminate": partial(chaos_faults.terminate, trials=max(trials // 3, 2)),
        "flip_files": partial(chaos_faults.flip_files, trials=flips),
        **{name: getattr(chaos_faults, name) for name in (
            "terminate_twice", "cut_files", "damage_shards", "fill_disk", "limit_files",
            "forbid_writing", "spoil_batch", "kill_reader")}}


def play(stage: Stage, faults: dict[str, Callable[[Stage], Outcome]]) -> dict[str, Outcome]:
    """Runs the faults, one after the other."""
    outcomes = {}
    for name, fault in faults.items():
        if name in NEED_ROOT and not chaos_faults.is_root():
            log(f"{name}: skipped, as only root can mount")
            continue
        began = time.monotonic()
        outcomes[name] = outcome = fault(stage)
        log(f"{name:16} {outcome.trials:3} times, {outcome.identical}/{outcome.runs} runs "
            f"identical, {outcome.detected}/{outcome.planted} corruptions detected, "
            f"{outcome.lost} steps lost, at most {outcome.redone} repeated "
            f"({outcome.redone_amid_save} during a save), "
            f"{format_secs(time.monotonic() - began)}"
            + "".join(f"\n  FAULT {fault}" for fault in outcome.faults))
    return outcomes


def main() -> dict[str, Any]:
    """Reads the flags, runs the faults, sums up."""
    faults = make_faults(flags.FLAGS.trials)
    names = flags.FLAGS.only or list(faults)
    if unknown := set(names) - set(faults):
        raise UserError(f"--only={min(unknown)}", "is no fault",
                        f"choose among {', '.join(faults)}")
    if flags.FLAGS.workdir:
        Path(flags.FLAGS.workdir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=flags.FLAGS.workdir) as scratch:
        outcomes = play(Stage(Path(scratch)), {name: faults[name] for name in names})
    total = {field: sum(getattr(outcome, field) for outcome in outcomes.values())
             for field in ("trials", "lost", "runs", "identical", "planted", "detected")}
    return total | {"checkpoint_every": CHECKPOINT_EVERY,
                    "redone": max(outcome.redone for outcome in outcomes.values()),
                    "redone_amid_save": max(outcome.redone_amid_save
                                            for outcome in outcomes.values()),
                    "faults": [fault for outcome in outcomes.values() for fault in outcome.faults],
                    "by_fault": {name: dataclasses.asdict(outcome)
                                 for name, outcome in outcomes.items()}}


if __name__ == "__main__":
    flags.DEFINE_integer("trials", 10, "Random kills.", lower_bound=1)
    flags.DEFINE_list("only", [], "Faults to inject; all of them if empty.")
    flags.DEFINE_string("workdir", None, "Folder for the runs; by default a temporary one.")
    entry.run(main, status=lambda result: int(bool(result["faults"])))
