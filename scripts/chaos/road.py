"""Kills at random moments of the whole road, from raw pages to the report.

    python -m scripts.chaos.road [--kills=20] [--seed=0] [--workdir=DIR]

Runs the stages of scripts/quickstart.sh at smoke size once undisturbed, then with SIGKILLs spread
over all stages, each at a random moment of its stage and alternately to the process alone and with
its workers; and compares every artifact byte by byte. Left out are clocks, and what names the
command or the folder. The last line sums up; status 1 if anything differs. Twenty kills take five
to six times as long as the road itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import ROOT, read_json
from core.progress import format_secs, log
from scripts.chaos.process import WAIT_SECS, environment

CONFIG = "configs/quickstart.py:smoke"
# Files of clocks, pages that show them, and Orbax's arrays: their digests are compared instead.
LEFT_OUT = re.compile(r"(speed|goodput)\.jsonl|.*\.html|files\.json|params/.*|checkpoints/.*")
CLOCKS = {"secs", "stage_secs", "minutes", "goodput_frac", "peak_memory_bytes"}
PLACES = {"run_dir", "report"}
ORIGIN = ("stage", "fingerprint", "build", "config", "inputs")      # of lineage.json


@dataclasses.dataclass
class Road:
    """The quickstart's stages in one workdir.

    Attributes:
        workdir: of all artifacts.
        secs: of each stage, in the order of the road, from its command to its end.
    """

    workdir: Path
    secs: list[float] = dataclasses.field(default_factory=list)

    def start(self, command: list[str]) -> subprocess.Popen:
        """Starts one stage in a group of processes of its own, with stderr in a file."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        with open(self.workdir / "stderr.txt", "ab") as log_file:
            return subprocess.Popen(
                [sys.executable, "-m", command[0], f"--config={CONFIG}",
                 f"--workdir={self.workdir}", *command[1:]], cwd=ROOT, env=environment(),
                stdout=subprocess.DEVNULL, stderr=log_file, start_new_session=True)

    def finish(self, command: list[str]) -> None:
        """Runs one stage to its end; raises if it fails."""
        began, process = time.monotonic(), self.start(command)
        try:
            code = process.wait(timeout=WAIT_SECS)
        finally:
            _kill_group(process)
        if code:
            raise RuntimeError(f"{command[0]} ended with {code}:\n"
                               + (self.workdir / "stderr.txt").read_text()[-3000:])
        self.secs.append(time.monotonic() - began)

    def kill(self, command: list[str], after_secs: float, *, with_workers: bool) -> bool:
        """Starts one stage and kills it; whether it was still running then."""
        process = self.start(command)
        try:
            process.wait(timeout=after_secs)
        except subprocess.TimeoutExpired:
            process.kill()
            if with_workers:
                _kill_group(process)
            process.wait()
            return True
        return False


def read_stages() -> list[list[str]]:
    """Module and flags of each stage of the quickstart, in order."""
    lines = (ROOT / "scripts" / "quickstart.sh").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("stage ")]


def choose_stages(kills: int, killed: Counter, num_stages: int, chance: random.Random) -> Counter:
    """Distributes further kills over stages: always one that was `killed` least, by chance."""
    total = Counter(killed)
    for _ in range(kills):
        least = min(total[stage] for stage in range(num_stages))
        total[chance.choice([stage for stage in range(num_stages) if total[stage] == least])] += 1
    return total - killed


def kill_along(road: Road, secs: list[float], planned: Counter, chance: random.Random) -> Counter:
    """Goes along the road with so many kills by stage, and to its end; those that happened.

    A kill that its stage has finished before is left to another road.
    """
    killed = Counter()
    for stage, command in enumerate(read_stages()):
        for _ in range(planned[stage]):
            moment = chance.uniform(0, secs[stage])
            if not road.kill(command, moment, with_workers=bool(killed.total() % 2)):
                break
            log(f"{command[0]}: killed after {moment:.1f} s of {secs[stage]:.1f}")
            killed[stage] += 1
        road.finish(command)
    return killed


def final_bytes(workdir: Path) -> dict[str, bytes]:
    """All files of all artifacts by path, without what the clock or the folder's name decides."""
    files = {}
    for artifact in sorted(path.parent for path in workdir.glob("*/lineage.json")):
        for path in sorted(path for path in artifact.rglob("*") if path.is_file()):
            if not LEFT_OUT.fullmatch(str(path.relative_to(artifact))):
                files[str(path.relative_to(workdir))] = _bytes_of(path)
        for step in _newest_step(artifact / "checkpoints"):
            files[f"{artifact.name}/{step.name}"] = (step / "record" / "metadata").read_bytes()
    return files


def _newest_step(checkpoints: Path) -> Iterator[Path]:
    steps = [path for path in checkpoints.glob("*") if path.name.isdecimal()]
    yield from sorted(steps, key=lambda path: int(path.name))[-1:]


def _bytes_of(path: Path) -> bytes:
    if path.name == "lineage.json":
        lineage = read_json(path)
        return json.dumps({name: lineage[name] for name in ORIGIN}).encode()
    if path.name in ("metrics.json", "manifest.json"):
        return json.dumps(_without(CLOCKS | PLACES, read_json(path))).encode()
    return path.read_bytes()


def _without(names: set[str], value: Any) -> Any:
    """Plain data without the fields of these names, however deep."""
    if isinstance(value, dict):
        return {name: _without(names, inner) for name, inner in value.items() if name not in names}
    return [_without(names, inner) for inner in value] if isinstance(value, list) else value


def _kill_group(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def play(workdir: Path, kills: int, seed: int) -> dict[str, Any]:
    """Goes along the road undisturbed, then as often as it takes for so many kills."""
    began, chance = time.monotonic(), random.Random(seed)
    undisturbed = Road(workdir / "undisturbed")
    for command in read_stages():
        undisturbed.finish(command)
    expected = final_bytes(undisturbed.workdir)
    log(f"undisturbed: {len(undisturbed.secs)} stages, {len(expected)} files, "
        f"{format_secs(sum(undisturbed.secs))}")
    killed, roads, different, num_stages = Counter(), 0, {}, len(undisturbed.secs)
    while killed.total() < kills:
        road = Road(workdir / f"killed{roads}")
        planned = choose_stages(kills - killed.total(), killed, num_stages, chance)
        killed += kill_along(road, undisturbed.secs, planned, chance)
        found = final_bytes(road.workdir)
        names = sorted(name for name in expected.keys() | found.keys()
                       if expected.get(name) != found.get(name))
        leftovers = sorted(path.name for path in road.workdir.glob("*.partial*"))
        if names or leftovers:
            different[road.workdir.name] = names + leftovers
        roads += 1
    return {"kills": killed.total(), "by_stage": [killed[stage] for stage in range(num_stages)],
            "stages": num_stages, "roads": roads, "files": len(expected), "different": different,
            "road_secs": round(sum(undisturbed.secs), 1),
            "secs": round(time.monotonic() - began, 1)}


def main() -> dict[str, Any]:
    """Reads the flags and plays."""
    if flags.FLAGS.workdir:
        Path(flags.FLAGS.workdir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=flags.FLAGS.workdir) as scratch:
        return play(Path(scratch), flags.FLAGS.kills, flags.FLAGS.seed)


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 20, "How many.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of stages and moments.")
    flags.DEFINE_string("workdir", None, "Folder for the runs; by default a temporary one.")
    entry.run(main, status=lambda result: int(bool(result["different"])))
