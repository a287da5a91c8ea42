"""Two real processes train one model over gloo: what one process trains, wherever it goes on."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from small_tokens import write_artifacts

from core.artifacts import ROOT
from model.directory import load_params, read_description
from train.watch.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

NUM_STEPS, CHECKPOINT_EVERY = 6, 2


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Corpus, tokenizer and tokens, beside which runs are written."""
    folder = tmp_path_factory.mktemp("many")
    write_artifacts(folder)
    return folder


def start(command: list[str], *, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts all processes of a command, each with so many simulated devices."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    return [subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "HEARTWOOD_PROCESS_ID": str(index), "HEARTWOOD_NUM_PROCESSES": str(processes),
            "HEARTWOOD_COORDINATOR": coordinator}) for index in range(processes)]


def pretrain(workdir: Path, name: str, *, fsdp: int) -> list[str]:
    """The command that trains the artifact `name`, its parameters cut into `fsdp` pieces."""
    settings = {"out": name, "num_steps": NUM_STEPS, "row_length": 32, "run.log_every": 1,
                "run.evaluate_every": 3, "run.checkpoint_every": CHECKPOINT_EVERY,
                "run.tasks.documentation": 0}
    return ["-m", "train.pretrain", "--config=configs/quickstart.py:smoke", f"--workdir={workdir}",
            "--config.pretrain.optimizer.warmup_steps=1", f"--config.mesh.fsdp={fsdp}",
            *(f"--config.pretrain.{field}={value}" for field, value in settings.items())]


def finish(started) -> list[tuple[str, str]]:
    """What each process said, on stdout and stderr; none may fail."""
    said = [process.communicate(timeout=300) for process in started]
    assert all(process.returncode == 0 for process in started), said
    return said


JOINED = '''
import json, sys
from train.distributed import any_process, initialize
initialize()
initialize()    # a second stage in the same process
import jax, numpy as np
from core.processes import find_processes
from model.parallel.sharding import make_mesh
from train.step import place_batch
mesh = make_mesh({"data": 2, "fsdp": 2})
rows = place_batch(np.arange(16, dtype=np.int32).reshape(8, 2), mesh)
total = jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))(rows)
me = find_processes().index
print(json.dumps({"shape": rows.shape, "total": int(total), "any": [
    any_process(flag) for flag in (me == 0, me == 1, False)],
    "mine": [shard.data.tolist() for shard in rows.addressable_shards]}))
'''


def test_processes_join_and_each_takes_the_rows_of_its_devices():
    (first, _), (second, _) = finish(start(["-c", JOINED], processes=2, devices=2))
    told = [json.loads(said.splitlines()[-1]) for said in (first, second)]
    rows = [[i, i + 1] for i in range(0, 16, 2)]
    for mine, expected in zip(told, (rows[:4], rows[4:])):
        assert mine["shape"] == [8, 2] and mine["total"] == sum(range(16))
        assert list(itertools.chain(*mine["mine"])) == expected
        assert mine["any"] == [True, True, False]


@pytest.fixture(scope="module")
def two(workdir) -> Path:
    """A model that two processes of one device each trained, its parameters cut over both."""
    (first, lines), (second, silence) = finish(
        start(pretrain(workdir, "two", fsdp=2), processes=2, devices=1))
    told = json.loads(first.splitlines()[-1])
    assert told["steps"] == NUM_STEPS and not told["skipped"]
    assert "2 x cpu" in lines and "{" not in second and silence == ""
    return workdir / "two"


def params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters of a model directory, by path."""
    tree = load_params(folder, read_description(folder).config)
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.full
def test_two_processes_train_bit_for_bit_what_one_does(workdir, two):
    finish(start(pretrain(workdir, "one", fsdp=2), processes=1, devices=2))
    expected, got = params(workdir / "one"), params(two)
    assert expected.keys() == got.keys()
    assert not [name for name in got if got[name].tobytes() != expected[name].tobytes()]
    assert (two / "metrics.jsonl").read_bytes() == (workdir / "one/metrics.jsonl").read_bytes()
    assert {path.name for path in two.iterdir()} == {
        path.name for path in (workdir / "one").iterdir()}, "and no marks of processes are left"


@pytest.mark.full
@pytest.mark.parametrize("processes, devices, fsdp", [(1, 1, 1), (1, 4, 4), (2, 2, 2)])
def test_a_killed_run_goes_on_with_another_number_of_processes(workdir, two, processes, devices,
                                                               fsdp):
    name = f"moved{processes}{devices}{fsdp}"
    started = start(pretrain(workdir, name, fsdp=2), processes=2, devices=1)
    checkpoint = workdir / f"{name}.partial/checkpoints/{2 * CHECKPOINT_EVERY}"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.communicate()
    assert not (workdir / name).exists(), "it was to be killed before its end"

    (_, lines), *_ = finish(start(pretrain(workdir, name, fsdp=fsdp), processes=processes,
                                  devices=devices))
    assert "going on where an earlier run stopped" in lines and "restored step" in lines
    assert f"{processes * devices} x cpu" in lines
    rows, expected = (read_metrics(workdir / which / "metrics.jsonl") for which in (name, "two"))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected):      # another batch would differ in the second digit
        assert row == pytest.approx(other, rel=1e-4), "sums are taken in another order, no more"
    # Muon's iterations enlarge differences in the last bits; see tests/test_train_step.py.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
                 params(workdir / name), params(two))


@pytest.mark.full
def test_a_process_that_dies_takes_the_others_with_it(workdir):
    first, second = start(pretrain(workdir, "lost", fsdp=2), processes=2, devices=1)
    metrics = workdir / "lost.partial/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    first.communicate(timeout=240)      # a collective fails, or heartbeats stop
    assert first.returncode not in (0, 2), "worth another try, and nobody's mistake"
    assert not (workdir / "lost").exists()


@pytest.mark.full
def test_a_signal_to_one_process_stops_both_at_one_step(workdir):
    """Evaluating every other step, so that the signal may come amid an evaluation."""
    command = [*pretrain(workdir, "stopped", fsdp=2), "--config.pretrain.num_steps=2000",
               "--config.pretrain.run.evaluate_every=2", "--config.pretrain.run.keep_checkpoints=1"]
    started = start(command, processes=2, devices=1)
    metrics = workdir / "stopped.partial/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and "heldout" in metrics.read_text()) and (
            time.monotonic() < deadline):
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [143, 143], said
    (step,) = re.findall(r"stopped at step (\d+)", said[0])
    assert (workdir / f"stopped.partial/checkpoints/{step}").exists()
