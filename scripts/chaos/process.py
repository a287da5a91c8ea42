"""Runs a tiny stage as a real process that can be signalled, resumed and compared bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from core.artifacts import ROOT, make_lineage, read_json, write_json
from data.documents import Document, write_documents

NUM_STEPS = 24
CHECKPOINT_EVERY = 4
TINY = {"num_steps": NUM_STEPS, "row_length": 32, "run.checkpoint_every": CHECKPOINT_EVERY,
        "run.evaluate_every": 6, "run.log_every": 1, "run.num_microbatches": 2,
        "run.tasks.documentation": 0}
WAIT_SECS = 300


def environment(num_devices: int = 1) -> dict[str, str]:
    """Environment of simulated devices with few optimisations, as compiling takes most time."""
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | os.environ | {
                "JAX_NUM_CPU_DEVICES": str(num_devices), "JAX_PLATFORMS": "cpu"}


class Run:
    """One stage in a folder of its own.

    Args:
        workdir: for the artifact, its partial folder, and the processes' stderr.
        module: the stage, or a script that wraps it.
        settings: fields of the stage's section, dotted.
        section: the stage's section, `out` its artifact's name.
        num_devices: simulated devices.
        flags: further flags of the module.
    """

    def __init__(self, workdir: Path, settings: dict[str, object], *,
                 module: str = "train.pretrain", section: str = "pretrain", out: str = "base",
                 num_devices: int = 1, **flags: object):
        self.workdir, self.final = workdir, workdir / out
        self.partial = workdir / f"{out}.partial"
        self.checkpoints = self.partial / "checkpoints"
        workdir.mkdir(parents=True, exist_ok=True)
        self._command = [
            sys.executable, "-m", module, "--config=configs/quickstart.py:smoke",
            f"--workdir={workdir}", *(f"--{name}={value}" for name, value in flags.items()),
            *(f"--config.{section}.{name}={value}" for name, value in settings.items())]
        self.log = workdir / "stderr.txt"
        self._environment = environment(num_devices)

    def start(self) -> subprocess.Popen:
        """Starts a process with stderr in a file, which `said` reads."""
        with open(self.log, "wb") as log_file:
            return subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stderr=log_file,
                                    stdout=subprocess.DEVNULL)

    def said(self) -> str:
        """The stderr of the last process."""
        return self.log.read_text(errors="replace")

    def wait(self, process: subprocess.Popen) -> int:
        """Waits for the end; returns the exit code."""
        try:
            return process.wait(timeout=WAIT_SECS)
        finally:
            process.kill()

    def finish(self) -> None:
        """Runs to the end; raises if the process fails."""
        code = self.wait(self.start())
        if code:
            raise RuntimeError(f"{self.workdir} ended with {code}:\n{self.said()[-3000:]}")

    def send_when(self, condition: Callable[[], bool], *signals: signal.Signals) -> int:
        """Starts a process and sends it signals once the condition holds; returns the exit code.

        It is 0 if the process finished earlier.
        """
        process = self.start()
        try:
            deadline = time.monotonic() + WAIT_SECS
            while not condition() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            for signum in signals:
                process.send_signal(signum)
                time.sleep(0.02)    # equal pending signals would merge
        finally:
            code = self.wait(process)
        return code

    def reported(self) -> int:
        """The last step whose loss is in the metrics."""
        path = self.partial / "metrics.jsonl"
        lines = path.read_text() if path.exists() else ""
        steps = re.findall(r'^{"step": (\d+), .*"loss": .*}$', lines, re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def committed(self) -> list[int]:
        """The steps that are completely on disk, the oldest first."""
        names = os.listdir(self.checkpoints) if self.checkpoints.exists() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def is_saving(self) -> bool:
        """Whether a save is in progress."""
        return any(".deleted" not in path.name
                   for path in self.checkpoints.glob("*.orbax-checkpoint-tmp*"))

    def restored(self) -> int:
        """The step that the last process restored; 0 if none."""
        match = re.search(r"restored step (\d+)", self.said())
        return int(match[1]) if match else 0


def final_bits(run: Run) -> dict[str, bytes]:
    """Results of a finished run: arrays and loader of the last checkpoint, and the metrics."""
    steps = (path for path in (run.final / "checkpoints").iterdir() if path.name.isdecimal())
    step = max(steps, key=lambda path: int(path.name))
    with warnings.catch_warnings(), ocp.StandardCheckpointer() as checkpointer:
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        tree = checkpointer.restore((step / "state").absolute())
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
             for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    record = read_json(step / "record" / "metadata")
    return arrays | {"loader": repr(record["batches"]).encode(),
                    "metrics": (run.final / "metrics.jsonl").read_bytes()}


def differences(expected: dict[str, bytes], actual: dict[str, bytes]) -> list[str]:
    """Names of entries that differ in any bit."""
    return sorted(name for name in expected.keys() | actual.keys()
                  if expected.get(name) != actual.get(name))


def run_module(module: str, workdir: Path, *flags: str) -> None:
    """Runs another stage to its end."""
    subprocess.run([sys.executable, "-m", module, "--config=configs/quickstart.py:smoke",
                    f"--workdir={workdir}", *flags], check=True, cwd=ROOT, capture_output=True,
                   env=environment())


def make_tokens(workdir: Path, domains: Sequence[str] = ("pages", "code")) -> Path:
    """Makes a token folder by the real stages from documents of made-up words."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in ("n", "rt", "lking", "s")]
    for split, count in (("documents", 120), ("heldout", 12)):
        made = [Document(id=f"{split}{i:04d}", text=" ".join(rng.choice(words, 120)),
                         source=f"test://{i}", domain=domains[i % len(domains)])
                for i in range(count)]
        write_documents(workdir / "corpus" / split / "part-00000.parquet", made)
    write_json(workdir / "corpus" / "lineage.json",
               make_lineage(stage="curate", config={}, inputs={}, code=""))
    run_module("data.train_tokenizer", workdir, "--config.tokenizer.vocab_size=300")
    run_module("data.pack", workdir)
    return workdir / "tokens"
