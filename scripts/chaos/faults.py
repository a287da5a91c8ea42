"""Faults of a run, one function each, on real processes.

Each injects its fault, lets the run finish, and compares it with the undisturbed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.entry import EXIT_IO_ERROR
from scripts.chaos.process import CHECKPOINT_EVERY, TINY, Run, differences, final_bits, make_tokens

MIDDLE = 2 * CHECKPOINT_EVERY + 1   # a step at which two checkpoints should be on disk
FLIPS = 24


@dataclasses.dataclass
class Outcome:
    """The result of a fault.

    Attributes:
        trials: times that it was injected.
        lost: committed steps from which the next process should have continued, but did not.
        redone: most finished steps that had to be repeated after one of the faults.
        redone_amid_save: the same if a save was in progress in the background, which adds the
            steps since it began.
        identical: runs that ended bit for bit as the undisturbed one did.
        runs: total number of runs.
        planted, detected: corruptions, and those of them that were logged.
        faults: violated expectations.
    """

    trials: int = 0
    lost: int = 0
    redone: int = 0
    redone_amid_save: int = 0
    identical: int = 0
    runs: int = 0
    planted: int = 0
    detected: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)

    def count_redone(self, run: Run) -> int:
        """Counts the steps to be repeated after a kill; returns the newest step on disk."""
        newest = max(run.committed(), default=0)
        redone = run.reported() - newest
        if run.is_saving():     # unfinished files are left
            self.redone_amid_save = max(self.redone_amid_save, redone)
            # A save waits for the previous one.
            self.expect(redone <= 2 * CHECKPOINT_EVERY, f"{redone} steps must be repeated")
        else:
            self.redone = max(self.redone, redone)
            self.expect(redone <= CHECKPOINT_EVERY, f"{redone} steps must be repeated")
        return newest

    def expect(self, condition: bool, what: str) -> None:
        """Records a violated expectation."""
        if not condition:
            self.faults.append(what)


class Stage:
    """Inputs of the faults: a token folder, and the results of the undisturbed run."""

    def __init__(self, workdir: Path, seed: int = 0):
        self._workdir, self.random = workdir, random.Random(seed)
        self._tokens = make_tokens(workdir / "road")
        self.undisturbed = self.new("undisturbed")
        self.undisturbed.finish()
        self.bits = final_bits(self.undisturbed)

    def new(self, name: str, *, module: str = "train.pretrain", tokens: Path | None = None,
            **flags: Any) -> Run:
        """A run that is not yet started, in a folder of that name."""
        parents = {"tokens": tokens or self._tokens, "corpus": self._tokens.parent / "corpus"}
        return Run(self._workdir / name, TINY | parents, module=module, **flags)

    def stopped(self, name: str) -> Run:
        """A run that was killed after its second checkpoint."""
        run = self.new(name)
        run.send_when(lambda: run.reported() >= MIDDLE and len(run.committed()) == 2,
                      signal.SIGKILL)
        return run

    def copy_of_tokens(self, name: str) -> Path:
        """A copy of the token folder, to be damaged."""
        return shutil.copytree(self._tokens, self._workdir / name)

    def conclude(self, run: Run, outcome: Outcome) -> None:
        """Lets the run finish, and compares it with the undisturbed one."""
        run.finish()
        different = differences(self.bits, final_bits(run))
        outcome.runs += 1
        outcome.identical += not different
        outcome.expect(not different, f"{run.workdir.name}: other bits in {different[:3]}")


def kill(stage: Stage, trials: int, *, amid_save: bool = False) -> Outcome:
    """SIGKILL at random moments; each process resumes after the previous kill."""
    outcome, number = Outcome(), 0
    while outcome.trials < trials:
        run, newest, code = stage.new(f"killed{'_amid_save' * amid_save}{number}"), 0, -1
        number += 1
        while code and outcome.trials < trials:
            target = run.reported() + stage.random.randint(0, CHECKPOINT_EVERY + 2)
            code = run.send_when(
                lambda: run.reported() >= target and (run.is_saving() or not amid_save),  # noqa: B023
                signal.SIGKILL)
            if code:    # else the run finished before the kill
                outcome.trials += 1
                outcome.lost += 0 < run.restored() < newest
                newest = outcome.count_redone(run)
        stage.conclude(run, outcome)
        outcome.lost += code != 0 and run.restored() < newest
    return outcome


def terminate(stage: Stage, trials: int) -> Outcome:
    """SIGTERM and SIGINT: the run saves, logs it, and exits with 128 + n; no step is repeated."""
    outcome = Outcome()
    for number in range(trials):
        signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
        run, target = stage.new(f"terminated{number}"), stage.random.randint(1, 8)
        code = run.send_when(lambda: run.reported() >= target, signum)  # noqa: B023
        outcome.trials += 1
        outcome.expect(code == 128 + signum, f"{signum.name}: ended with {code}")
        outcome.expect("run the same command again to go on" in run.said(), "it was not logged")
        reported, newest = run.reported(), outcome.count_redone(run)
        outcome.expect(newest == reported, "steps must be repeated after a signal")
        stage.conclude(run, outcome)
        outcome.lost += run.restored() < newest
    return outcome


def terminate_twice(stage: Stage) -> Outcome:
    """A second SIGTERM ends the run at once, like a SIGKILL."""
    outcome, run = Outcome(trials=1), stage.new("terminated_twice")
    code = run.send_when(lambda: run.reported() >= MIDDLE, signal.SIGTERM, signal.SIGTERM)
    # 143 in either case: killed by the second signal, or finished after the first.
    outcome.expect(code == 128 + signal.SIGTERM, f"ended with {code}")
    newest = outcome.count_redone(run)
    stage.conclude(run, outcome)
    outcome.lost += run.restored() < newest
    return outcome


def flip_files(stage: Stage, trials: int = 0) -> Outcome:
    """Flips one bit in a file of the newest checkpoint, in a run for each.

    The largest files have their turns first. Without `trials` every file has one, and further ones
    until there are `FLIPS`: into how many files Orbax divides the arrays varies from save to save.
    """
    outcome, stopped = Outcome(), stage.stopped("flipped")
    step = max(stopped.committed())
    folder = stopped.checkpoints / str(step)
    paths = sorted((path for path in folder.rglob("*") if path.is_file()),
                   key=lambda path: path.stat().st_size, reverse=True)
    for number in range(trials or max(FLIPS, len(paths))):
        name = paths[number % len(paths)].relative_to(folder)
        run = _copy(stage, stopped, f"flipped{number}_{'_'.join(name.parts)}")
        _flip_bit(run.checkpoints / str(step) / name, stage.random)
        _expect_noticed(stage, run, step, outcome, must=len(name.parts) > 1)
    return outcome


def cut_files(stage: Stage) -> Outcome:
    """Truncates, empties and deletes the largest file of the newest checkpoint."""
    outcome, stopped = Outcome(), stage.stopped("cut")
    step = max(stopped.committed())
    for size in (0.5, 0.0, None):
        run = _copy(stage, stopped, f"cut_{size}")
        path = max((path for path in (run.checkpoints / str(step)).rglob("*") if path.is_file()),
                   key=lambda path: path.stat().st_size)
        if size is None:
            path.unlink()
        else:
            os.truncate(path, int(size * path.stat().st_size))
        _expect_noticed(stage, run, step, outcome)
    return outcome


def _expect_noticed(stage: Stage, run: Run, step: int, outcome: Outcome, must: bool = True) -> None:
    """Resumes a run with a damaged step, which must be logged and must not change the result."""
    older = run.committed()[-2]
    stage.conclude(run, outcome)
    noticed = f"checkpoint {step} is damaged" in run.said()
    outcome.trials, outcome.planted = outcome.trials + 1, outcome.planted + 1
    outcome.detected += noticed
    outcome.expect(noticed or not must, f"{run.workdir.name} was not detected")
    outcome.expect(run.restored() == (older if noticed else step), f"resumed at {run.restored()}")


def _copy(stage: Stage, run: Run, name: str) -> Run:
    copied = stage.new(name)
    shutil.copytree(run.partial, copied.partial)
    return copied


def _flip_bit(path: Path, source: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


def damage_shards(stage: Stage) -> Outcome:
    """Damages token files: the run refuses them in one line, and resumes once they are restored."""
    outcome = Outcome()
    for suffix, cut in ((".tokens", False), (".tokens", True), (".ends", False),
                        (".tokens.sums", False)):
        name = f"shard{suffix}{'_cut' * cut}"
        tokens = stage.copy_of_tokens(f"{name}_tokens")
        run = stage.new(name, tokens=tokens)
        path = tokens / f"pages{suffix}"
        intact = path.read_bytes()
        if cut:
            os.truncate(path, len(intact) // 2)
        else:
            _flip_bit(path, stage.random)
        code = run.wait(run.start())
        outcome.trials, outcome.planted = outcome.trials + 1, outcome.planted + 1
        outcome.detected += _is_refused(run, code, "data.pack")
        outcome.expect(_is_refused(run, code, "data.pack"), f"{name}: ended with {code}")
        path.write_bytes(intact)
        stage.conclude(run, outcome)
    return outcome


def _is_refused(run: Run, code: int, words: str) -> bool:
    """Whether the process ended as for bad input: status 2, one line, no traceback."""
    stderr = run.said()
    return code == 2 and words in stderr.splitlines()[-1] and "Traceback" not in stderr


def fill_disk(stage: Stage) -> Outcome:
    """A disk too small for any checkpoint: training continues, and the last save is an error."""
    outcome, run = Outcome(trials=1), stage.new("full")
    run.checkpoints.mkdir(parents=True)
    with _mounted(run.checkpoints, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        code = run.wait(run.start())
        outcome.expect(_is_refused(run, code, "no space left"), f"ended with {code}")
        outcome.expect("step 4 could not be saved" in run.said(), "the first save did not fail")
        outcome.expect(run.reported() >= TINY["num_steps"] - 1, "training did not continue")
    stage.conclude(run, outcome)
    return outcome


def limit_files(stage: Stage) -> Outcome:
    """Limits file sizes, so that saves fail midway: no partial files may be left.

    The limit is above the sizes of a run's other files and below those of a checkpoint's.
    """
    outcome, run = Outcome(trials=1), stage.new("limited")

    process = run.start()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    run.wait(process)
    outcome.expect("could not be saved (file too large)" in run.said(), "no save failed")
    outcome.expect(not run.committed() and not run.is_saving(), "unfinished files are left")
    stage.conclude(run, outcome)
    return outcome


def forbid_writing(stage: Stage) -> Outcome:
    """Makes the workdir read-only between two processes: a one-line error; then the run resumes."""
    outcome, run = Outcome(trials=1), stage.stopped("read_only")
    newest = outcome.count_redone(run)
    log = run.log   # stderr must go to a writable folder
    run.log = run.workdir.with_suffix(".txt")
    with _mounted(run.workdir, "--bind", str(run.workdir)):
        subprocess.run(["mount", "-o", "remount,ro,bind", run.workdir], check=True)
        code = run.wait(run.start())
        outcome.expect(_is_refused(run, code, "may write to"), f"ended with {code}")
    run.log = log
    stage.conclude(run, outcome)
    outcome.lost += run.restored() < newest
    return outcome


@contextlib.contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    subprocess.run(["mount", *arguments, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def spoil_batch(stage: Stage) -> Outcome:
    """A batch whose loss is NaN: refused and counted, whether or not the run is killed."""
    outcome, ends = Outcome(trials=1), []
    for name in ("nan", "nan_killed"):
        run = stage.new(name, module="scripts.chaos.child", fault="nan")
        if name == "nan_killed":
            run.send_when(lambda: run.reported() >= 12, signal.SIGKILL)     # noqa: B023
            outcome.count_redone(run)
        run.finish()
        outcome.expect('"refused": 1' in (run.final / "metrics.jsonl").read_text(), "not refused")
        ends.append(final_bits(run))
    different = differences(*ends)
    outcome.runs, outcome.identical = 1, int(not different)
    outcome.expect(not different, f"other bits in {different[:3]}")
    outcome.expect(differences(stage.bits, ends[0]) != [], "the batch changed nothing")
    return outcome


def kill_reader(stage: Stage) -> Outcome:
    """The thread that reads batches fails: the run ends with the status of a transient error."""
    outcome = Outcome(trials=1)
    failing = stage.new("reader", module="scripts.chaos.child", fault="reader")
    code = failing.wait(failing.start())
    outcome.expect(code == EXIT_IO_ERROR and "shard: input/output error" in failing.said(),
                   f"ended with {code}")
    newest = outcome.count_redone(failing)
    run = stage.new("reader")
    stage.conclude(run, outcome)
    outcome.lost += run.restored() < newest
    return outcome


def is_root() -> bool:
    """Whether folders can be mounted, as two of the faults require."""
    return os.geteuid() == 0
