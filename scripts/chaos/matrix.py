"""The crash matrix: real runs, killed and damaged in every way, against one that was left alone.

    python -m scripts.chaos.matrix [--trials=10] [--only=kill,damage_shards] [--workdir=DIR]

The last line sums up: committed steps lost, runs that ended bit for bit as the undisturbed one,
corruptions planted and noticed, and the most steps that were redone: at most the interval between
two saves and, where a save was under way in the background, the steps since its begin as well. A
corruption counts as unnoticed also where it lies in a file that decides nothing; that the run is
the same to the bit is demanded of all. Status 1 when anything is not as it should be.
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

NEED_ROOT = ("fill_disk", "forbid_writing")     # they mount


def make_faults(trials: int) -> dict[str, Callable[[Stage], Outcome]]:
    """Every fault of the matrix by name."""
    return {
        "kill": partial(chaos_faults.kill, trials=trials),
        "kill_amid_save": partial(chaos_faults.kill, trials=max(trials // 2, 1), amid_save=True),
        "terminate": partial(chaos_faults.terminate, trials=max(trials // 3, 2)),
        **{name: getattr(chaos_faults, name) for name in (
            "terminate_twice", "flip_files", "cut_files", "damage_shards", "fill_disk",
            "limit_files", "forbid_writing", "spoil_batch", "kill_reader")}}


def play(stage: Stage, faults: dict[str, Callable[[Stage], Outcome]]) -> dict[str, Outcome]:
    """Plays the faults, one after the other."""
    outcomes = {}
    for name, fault in faults.items():
        if name in NEED_ROOT and not chaos_faults.is_root():
            log(f"{name}: left out, for only root can mount")
            continue
        began = time.monotonic()
        outcomes[name] = found = fault(stage)
        log(f"{name:16} {found.trials:3} times, {found.identical}/{found.runs} runs identical, "
            f"{found.detected}/{found.planted} corruptions noticed, {found.lost} steps lost, at "
            f"most {found.redone} redone ({found.redone_amid_save} amid a save), "
            f"{format_secs(time.monotonic() - began)}"
            + "".join(f"\n  FAULT {fault}" for fault in found.faults))
    return outcomes


def main() -> dict[str, Any]:
    """Reads the flags, plays, sums up."""
    faults = make_faults(flags.FLAGS.trials)
    names = flags.FLAGS.only or list(faults)
    if unknown := set(names) - set(faults):
        raise UserError(f"--only={min(unknown)}", "is no fault",
                        f"choose among {', '.join(faults)}")
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
    flags.DEFINE_list("only", [], "Faults to play; all of them if empty.")
    flags.DEFINE_string("workdir", None, "Folder for the runs; the system's scratch one if none.")
    entry.run(main, status=lambda result: int(bool(result["faults"])))
