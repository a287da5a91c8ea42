"""A killed run, gone on, is the run that was never killed: bit for bit, with a real SIGKILL."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from core.artifacts import ROOT, make_lineage, write_json
from data.documents import Document, write_documents

NUM_STEPS = 24
CHECKPOINT_EVERY = 4
SETTINGS = [f"--config.pretrain.num_steps={NUM_STEPS}",
            f"--config.pretrain.checkpoint_every={CHECKPOINT_EVERY}",
            "--config.pretrain.evaluate_every=6", "--config.pretrain.log_every=1",
            "--config.pretrain.row_length=32", "--config.pretrain.num_microbatches=2"]


def command(module: str, workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", module, "--config=configs/quickstart.py:smoke",
            f"--workdir={workdir}", *flags]


def environment() -> dict[str, str]:
    return os.environ | {"XLA_FLAGS": ""}  # one device: the smallest and quickest program


def run(module: str, workdir: Path, *flags: str) -> str:
    """Runs a stage to its end; returns what it said on stderr."""
    return subprocess.run(command(module, workdir, *flags), check=True, cwd=ROOT,
                          env=environment(), capture_output=True, text=True).stderr


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """A token folder made by the real stages from documents of two domains."""
    workdir = tmp_path_factory.mktemp("road")
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in ("n", "rt", "lking", "s")]
    for split, count in (("documents", 120), ("heldout", 12)):
        made = [Document(id=f"{split}{i:04d}", text=" ".join(rng.choice(words, 120)),
                         source=f"test://{i}", domain=("pages", "code")[i % 2])
                for i in range(count)]
        write_documents(workdir / "corpus" / split / "part-00000.parquet", made)
    write_json(workdir / "corpus" / "lineage.json",
               make_lineage(stage="curate", config={}, inputs={}, code=""))
    run("data.train_tokenizer", workdir, "--config.tokenizer.vocab_size=300")
    run("data.pack", workdir)
    return workdir / "tokens"


def kill_once_past(step: int, workdir: Path, arguments: list[str]) -> None:
    """Starts the run and kills it with SIGKILL as soon as it has reported `step`."""
    metrics = workdir / "base.partial" / "metrics.jsonl"
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count('"loss"') >= step:
            break
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "base").exists()


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint, by path."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((folder / "checkpoints" / str(NUM_STEPS) / "state").absolute())
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.filterwarnings("ignore:Sharding info not provided:UserWarning")
def test_killed_twice_and_resumed_is_bit_identical(tokens, tmp_path):
    flags = [*SETTINGS, f"--config.pretrain.tokens={tokens}"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run("train.pretrain", undisturbed, *flags)

    # Once between two checkpoints, once as soon as a later step than its checkpoint is reported.
    kill_once_past(CHECKPOINT_EVERY + 2, killed, command("train.pretrain", killed, *flags))
    kill_once_past(3 * CHECKPOINT_EVERY + 1, killed, command("train.pretrain", killed, *flags))
    assert "restored step" in run("train.pretrain", killed, *flags)

    expected, got = arrays(undisturbed / "base"), arrays(killed / "base")
    assert expected.keys() == got.keys()
    assert any("mu" in name for name in expected), "optimizer state is part of the comparison"
    different = [name for name in expected if expected[name].tobytes() != got[name].tobytes()]
    assert not different
    metrics = [(root / "base" / "metrics.jsonl").read_bytes() for root in (undisturbed, killed)]
    assert metrics[0].count(b'"loss"') == NUM_STEPS
    assert metrics[0] == metrics[1]
    loaders = [next((root / "base" / "checkpoints" / str(NUM_STEPS) / "rows").rglob("*.json"))
               for root in (undisturbed, killed)]
    states = [hashlib.sha256(path.read_bytes()).hexdigest() for path in loaders]
    assert states[0] == states[1]
