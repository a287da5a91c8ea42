"""What can happen to a run, one function a fault; each runs real processes to the very end.

Every one plants its fault, lets the run go on until it has finished, and compares it with the run
that nothing happened to.
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

MIDDLE = 2 * CHECKPOINT_EVERY + 1   # a step at which two checkpoints should be on the disk


@dataclasses.dataclass
class Outcome:
    """What a fault led to.

    Attributes:
        trials: times that it was planted.
        lost: committed steps from which the next process could have gone on, but did not.
        redone: most steps of finished work that had to be done again after one of the faults.
        redone_amid_save: the same where a save was under way; it is in the background, and so many
            steps more had passed.
        identical: runs that ended, to the bit, as the undisturbed one did.
        runs: of so many.
        planted, detected: corruptions, and those of them that were noticed and announced.
        faults: what was not as it should be.
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
        """Counts what the death of a process costs; the newest step on the disk."""
        newest = max(run.committed(), default=0)
        redone = run.reported() - newest
        if run.is_saving():     # its leftovers say so
            self.redone_amid_save = max(self.redone_amid_save, redone)
            # A save waits for the one before.
            self.expect(redone <= 2 * CHECKPOINT_EVERY, f"{redone} steps are to be redone")
        else:
            self.redone = max(self.redone, redone)
            self.expect(redone <= CHECKPOINT_EVERY, f"{redone} steps are to be redone")
        return newest

    def expect(self, condition: bool, what: str) -> None:
        """Notes what is not as it should be."""
        if not condition:
            self.faults.append(what)


class Stage:
    """Where the faults are played: a token folder, and what the undisturbed run left."""

    def __init__(self, workdir: Path, seed: int = 0):
        self._workdir, self.random = workdir, random.Random(seed)
        self._tokens = make_tokens(workdir / "road")
        self.undisturbed = self.new("undisturbed")
        self.undisturbed.finish()
        self.bits = final_bits(self.undisturbed)

    def new(self, name: str, *, module: str = "train.pretrain", tokens: Path | None = None,
            **flags: Any) -> Run:
        """A run that has not begun, in a folder of that name."""
        parents = {"tokens": tokens or self._tokens, "corpus": self._tokens.parent / "corpus"}
        return Run(self._workdir / name, TINY | parents, module=module, **flags)

    def stopped(self, name: str) -> Run:
        """A run that was killed behind its second checkpoint."""
        run = self.new(name)
        run.send_when(lambda: run.reported() >= MIDDLE and len(run.committed()) == 2,
                      signal.SIGKILL)
        return run

    def copy_of_tokens(self, name: str) -> Path:
        """A token folder of the same fingerprint, to be damaged."""
        return shutil.copytree(self._tokens, self._workdir / name)

    def conclude(self, run: Run, outcome: Outcome) -> None:
        """Lets the run finish, and compares it."""
        run.finish()
        different = differences(self.bits, final_bits(run))
        outcome.runs += 1
        outcome.identical += not different
        outcome.expect(not different, f"{run.workdir.name}: other bits in {different[:3]}")


def kill(stage: Stage, trials: int, *, amid_save: bool = False) -> Outcome:
    """SIGKILL at random moments; each process goes on from where the one before was killed."""
    outcome, number = Outcome(), 0
    while outcome.trials < trials:
        run, newest, code = stage.new(f"killed{'_amid_save' * amid_save}{number}"), 0, -1
        number += 1
        while code and outcome.trials < trials:
            target = run.reported() + stage.random.randint(0, CHECKPOINT_EVERY + 2)
            code = run.send_when(
                lambda: run.reported() >= target and (run.is_saving() or not amid_save),  # noqa: B023
                signal.SIGKILL)
            if code:    # else it was quicker than the kill
                outcome.trials += 1
                outcome.lost += 0 < run.restored() < newest
                newest = outcome.count_redone(run)
        stage.conclude(run, outcome)
        outcome.lost += code != 0 and run.restored() < newest
    return outcome


def terminate(stage: Stage, trials: int) -> Outcome:
    """SIGTERM and SIGINT: the run saves, says so, and exits as a shell would; nothing is redone."""
    outcome = Outcome()
    for number in range(trials):
        signum = (signal.SIGTERM, signal.SIGINT)[number % 2]
        run, target = stage.new(f"terminated{number}"), stage.random.randint(1, 8)
        code = run.send_when(lambda: run.reported() >= target, signum)  # noqa: B023
        outcome.trials += 1
        outcome.expect(code == 128 + signum, f"{signum.name}: ended with {code}")
        outcome.expect("run the same command again to go on" in run.said(), "it did not say so")
        reported, newest = run.reported(), outcome.count_redone(run)
        outcome.expect(newest == reported, "steps are to be redone after a signal")
        stage.conclude(run, outcome)
        outcome.lost += run.restored() < newest
    return outcome


def terminate_twice(stage: Stage) -> Outcome:
    """A second SIGTERM ends the run at once, and costs what a SIGKILL does."""
    outcome, run = Outcome(trials=1), stage.new("terminated_twice")
    code = run.send_when(lambda: run.reported() >= MIDDLE, signal.SIGTERM, signal.SIGTERM)
    # Unless it was saved and gone before the second one came.
    outcome.expect(code == 128 + signal.SIGTERM, f"ended with {code}")
    newest = outcome.count_redone(run)
    stage.conclude(run, outcome)
    outcome.lost += run.restored() < newest
    return outcome


def flip_files(stage: Stage, pattern: str = "*") -> Outcome:
    """One flipped bit in each file of the newest checkpoint whose path matches, a run for each."""
    outcome, stopped = Outcome(), stage.stopped("flipped")
    step = max(stopped.committed())
    folder = stopped.checkpoints / str(step)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not name.match(pattern):
            continue
        run = _copy(stage, stopped, f"flipped_{'_'.join(name.parts)}")
        _flip_bit(run.checkpoints / str(step) / name, stage.random)
        _expect_noticed(stage, run, step, outcome, must=len(name.parts) > 1)
    return outcome


def cut_files(stage: Stage) -> Outcome:
    """The largest file of the newest checkpoint truncated, then emptied, then missing."""
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
    """Lets a run with a damaged step go on: it must say so, and end as if nothing had been."""
    older = run.committed()[-2]
    stage.conclude(run, outcome)
    noticed = f"checkpoint {step} is damaged" in run.said()
    outcome.trials, outcome.planted = outcome.trials + 1, outcome.planted + 1
    outcome.detected += noticed
    outcome.expect(noticed or not must, f"{run.workdir.name} was not noticed")
    outcome.expect(run.restored() == (older if noticed else step), f"went on at {run.restored()}")


def _copy(stage: Stage, run: Run, name: str) -> Run:
    copied = stage.new(name)
    shutil.copytree(run.partial, copied.partial)
    return copied


def _flip_bit(path: Path, source: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(data)


def damage_shards(stage: Stage) -> Outcome:
    """Token files flipped and cut: the run refuses in one line, and goes on with sound ones."""
    outcome = Outcome()
    for suffix, cut in ((".tokens", False), (".tokens", True), (".ends", False),
                        (".tokens.sums", False)):
        name = f"shard{suffix}{'_cut' * cut}"
        tokens = stage.copy_of_tokens(f"{name}_tokens")
        run = stage.new(name, tokens=tokens)
        path = tokens / f"pages{suffix}"
        sound = path.read_bytes()
        if cut:
            os.truncate(path, len(sound) // 2)
        else:
            _flip_bit(path, stage.random)
        code = run.wait(run.start())
        outcome.trials, outcome.planted = outcome.trials + 1, outcome.planted + 1
        outcome.detected += _is_refused(run, code, "data.pack")
        outcome.expect(_is_refused(run, code, "data.pack"), f"{name}: ended with {code}")
        path.write_bytes(sound)
        stage.conclude(run, outcome)
    return outcome


def _is_refused(run: Run, code: int, words: str) -> bool:
    """Whether the process ended as bad input does: status 2, one line, no traceback."""
    said = run.said()
    return code == 2 and words in said.splitlines()[-1] and "Traceback" not in said


def fill_disk(stage: Stage) -> Outcome:
    """A disk too small for any checkpoint: training goes on, and the last save is refused."""
    outcome, run = Outcome(trials=1), stage.new("full")
    run.checkpoints.mkdir(parents=True)
    with _mounted(run.checkpoints, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        code = run.wait(run.start())
        outcome.expect(_is_refused(run, code, "no space left"), f"ended with {code}")
        outcome.expect("step 4 could not be saved" in run.said(), "the first save was not missed")
        outcome.expect(run.reported() >= TINY["num_steps"] - 1, "training did not go on")
    stage.conclude(run, outcome)
    return outcome


def limit_files(stage: Stage) -> Outcome:
    """Every write of more than some bytes fails, in the middle of a save: nothing is left behind.

    The limit lies between what a run writes beside checkpoints and what a checkpoint holds.
    """
    outcome, run = Outcome(trials=1), stage.new("limited")

    process = run.start()
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    run.wait(process)
    outcome.expect("could not be saved (file too large)" in run.said(), "no save failed")
    outcome.expect(not run.committed() and not run.is_saving(), "something was left behind")
    stage.conclude(run, outcome)
    return outcome


def forbid_writing(stage: Stage) -> Outcome:
    """The workdir becomes read-only between two processes: one line; then the run goes on."""
    outcome, run = Outcome(trials=1), stage.stopped("read_only")
    newest = outcome.count_redone(run)
    log = run.log   # what is said must not be lost to the very fault
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
    """A batch whose loss is no number: refused and counted, whether the run is killed or not."""
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
    """The thread that reads batches fails: the run ends, with a status worth another try."""
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
    """Whether folders can be mounted, which two of the faults need."""
    return os.geteuid() == 0
