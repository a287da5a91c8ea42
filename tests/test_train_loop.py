"""The loop: what is skipped, saved, evaluated and read, on a model of four numbers."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.common import make_training, make_training_run
from core.artifacts import ROOT, make_lineage, open_partial, read_lineage
from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.parallel.sharding import make_mesh
from train.loop import Evaluation, Loop
from train.setup import Setup
from train.signals import StopRequest, leave_if_stopping
from train.step import make_state, make_train_step
from train.watch.compilation import Compilations
from train.watch.metrics import read_metrics
from train.watch.profile import Profiler
from train.watch.recorder import Recorder

NUM_STEPS = 24
SIZES = ModelConfig(V=8, D=4, N=1, H=1, G=1, K=4, F=4)


def distance_loss(params, batch, *, key):
    """Mean squared distance to the batch's rows, and the number of the batch."""
    rows = jnp.float32(batch["x_BD"].shape[0])
    loss_sum = jnp.sum((params["w_D"][None] - batch["x_BD"]) ** 2)
    return loss_sum, {"loss": (loss_sum, rows), "batch": (jnp.sum(batch["number_B"]), rows)}


class Batches:
    """Batch i is near 1 and carries its number; those in `bad` are not numbers."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return NUM_STEPS

    def __getitem__(self, index):
        x_BD = np.random.default_rng(index).normal(1.0, 0.1, (2, 4)).astype(np.float32)
        return {"x_BD": x_BD * (np.nan if index in self.bad else 1),
                "number_B": np.full(2, index, np.float32)}


def make_section(**rewind):
    rewind = dict(after=3, steps_back=2, skip_batches=1, max_retries=2) | rewind
    return ConfigDict(make_training(
        out="toy", row_length=4, batch_size=2, rewind=rewind,
        run=make_training_run(log_every=1, evaluate_every=4, checkpoint_every=3)))


def stop_the_run():
    """Sends SIGTERM to this process, and waits until its run knows of it: steps are faster."""
    signal.raise_signal(signal.SIGTERM)
    while not StopRequest.entered.requested:
        time.sleep(0.001)


def run(folder, bad=(), evaluate=None, section=None, is_over=lambda step: False):
    section = section or make_section()
    open_partial(folder, make_lineage(stage="toy", config={}, inputs={}, code=""))
    mesh, optimizer = make_mesh({"data": 1}, jax.devices()[:1]), optax.sgd(0.05)
    make_first = partial(make_state, optimizer=optimizer, key=jax.random.key(0), mesh=mesh)
    abstract_state = make_first({"w_D": jax.ShapeDtypeStruct((4,), jnp.float32)})
    step = make_train_step(distance_loss, optimizer, abstract_state, mesh)
    rows = grain.MapDataset.source(Batches(frozenset(bad)))
    loop = Loop(step, rows, folder=folder, setup=Setup(SIZES, Execution(), mesh), section=section,
                tokens_per_step=8, epochs=lambda num_batches: {"epochs/toy": num_batches / 10},
                evaluation=Evaluation(
                    evaluate or (lambda state: {"w": float(state.params["w_D"][0])}), is_over))
    return loop.run(abstract_state, lambda: make_first({"w_D": jnp.zeros(4)}))


def recorded(folder, name):
    """(step, value) of a metric in the order of the file."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [(int(row["step"]), row[name]) for row in rows if name in row]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder)


def test_every_step_reads_its_batch_and_each_evaluation_is_recorded_once(undisturbed):
    folder, state = undisturbed
    assert recorded(folder, "batch") == [(i + 1, i) for i in range(NUM_STEPS)]
    assert [step for step, _ in recorded(folder, "w")] == [4, 8, 12, 16, 20, 24]
    assert int(state.step) == NUM_STEPS and not (folder / "rewinds.json").exists()
    spent = json.loads((folder / "goodput.jsonl").read_text())
    assert (spent["resumed"], spent["last"]) == (0, NUM_STEPS)
    assert min(spent["secs"][cause] for cause in ("step", "data_wait", "save", "evaluate")) > 0


def test_each_line_says_what_was_seen(undisturbed, tmp_path):
    folder, _ = undisturbed
    assert recorded(folder, "tokens") == [(step, 8 * step) for step in range(1, NUM_STEPS + 1)]
    assert recorded(folder, "epochs/toy") == [(n, n / 10) for n in range(1, NUM_STEPS + 1)]
    run(tmp_path, bad=range(10, 15))    # with batches that were skipped
    numbers = {step: number + 1 for step, number in recorded(tmp_path, "batch")}
    epochs = dict(recorded(tmp_path, "epochs/toy"))
    before_the_end = [step for step in epochs if numbers[step] >= step]
    assert len(before_the_end) > 12 and numbers[before_the_end[-1]] > before_the_end[-1]
    assert all(epochs[step] == numbers[step] / 10 for step in before_the_end)


def test_a_few_bad_batches_are_refused_and_counted(tmp_path):
    state = run(tmp_path, bad={5, 6, 15})
    assert [value for _, value in recorded(tmp_path, "refused")][-1] == 3
    assert np.isfinite(state.params["w_D"]).all() and not (tmp_path / "rewinds.json").exists()
    assert [step for step, loss in recorded(tmp_path, "loss") if np.isnan(loss)] == [6, 7, 16]


def test_a_stretch_of_bad_batches_is_gone_back_from_and_skipped(tmp_path):
    # Steps 11, 12, 13 are refused; of the checkpoints 6, 9, 12 the newest at least two steps
    # before is 9. Step 13 had read batch 12, and step 14 batch 13 before the news arrived.
    state = run(tmp_path, bad=range(10, 15))
    assert np.isfinite(state.params["w_D"]).all()
    batches = recorded(tmp_path, "batch")
    assert [step for step, _ in batches] == [*range(1, NUM_STEPS + 1)]
    resumed = int(batches[9][1])
    assert resumed in (14, 15), "one batch more is skipped than was read"
    assert [int(number) for _, number in batches] == (
        [*range(9), *range(resumed, NUM_STEPS), *range(resumed - 9)]), "and on from the first"


def test_a_step_that_gave_up_is_neither_evaluated_nor_saved(tmp_path):
    evaluated = []

    def evaluate(state):
        evaluated.append(int(state.step))
        return {"w": float(state.params["w_D"][0])}

    run(tmp_path, bad=range(9, 12), evaluate=evaluate)      # steps 10, 11, 12: both are due at 12
    assert evaluated == [4, 8, 8, 12, 16, 20, 24], "8 comes again after going back to 6"
    run(tmp_path / "end", bad=range(21, 24), evaluate=evaluate)     # the last three
    assert evaluated[7:] == [4, 8, 12, 16, 20, 20, 24]


def test_too_many_rewinds_stop_the_run(tmp_path):
    with pytest.raises(UserError, match=r"rewind\.max_retries=2.*used up, after rewinds at steps"):
        run(tmp_path, bad=range(10, NUM_STEPS))
    with pytest.raises(UserError, match="is used up"):     # and so is another process
        run(tmp_path, bad=range(10, NUM_STEPS))


def test_trouble_before_the_first_checkpoint_is_recorded(tmp_path):
    with pytest.raises(UserError, match="no checkpoint is older"):
        run(tmp_path, bad=range(10), section=make_section(after=2))


@pytest.mark.parametrize("bad", [(), range(10, 15)], ids=["plain", "after a rewind"])
def test_a_run_that_is_stopped_twice_goes_on_as_if_it_had_not_been(tmp_path, bad):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    expected, stop_at = run(whole, bad), [20, 8]

    def evaluate(state):
        if int(state.step) in stop_at[-1:]:
            stop_at.pop()
            stop_the_run()
        return {"w": float(state.params["w_D"][0])}

    steps = [0]
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_info:
            run(stopped, bad, evaluate)
        assert exit_info.value.code == 128 + signal.SIGTERM
        steps.append(max(int(path.name) for path in (stopped / "checkpoints").iterdir()))
    assert 0 < steps[1] < steps[2] < NUM_STEPS
    state = run(stopped, bad, evaluate)
    assert [process["step"] for process in read_lineage(stopped)["runs"]] == steps
    assert np.array_equal(state.params["w_D"], expected.params["w_D"])
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_settings_hold_from_the_step_that_a_rewind_restores(tmp_path):
    def stop(state):
        if int(state.step) == 8:
            stop_the_run()
        return {"w": float(state.params["w_D"][0])}

    with pytest.raises(SystemExit):
        run(tmp_path, evaluate=stop)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    section = make_section(steps_back=4)    # batches 9 to 11 make steps 10 to 12: back to 6
    section.run.log_every = 2
    run(tmp_path, bad=range(9, 12), section=section)
    restored = json.loads((tmp_path / "rewinds.json").read_text())["rewinds"][0]["restore_step"]
    assert 0 < restored < saved
    assert [process["step"] for process in read_lineage(tmp_path)["runs"]] == [0, restored]


def test_a_signal_amid_an_evaluation_ends_it_and_the_next_process_repeats_it(undisturbed, tmp_path):
    begun = []

    def evaluate(state):
        begun.append(int(state.step))
        if begun == [4, 8]:
            stop_the_run()
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:      # batches of a long evaluation
                leave_if_stopping()
                time.sleep(0.001)
        leave_if_stopping()
        return {"w": float(state.params["w_D"][0])}

    with pytest.raises(SystemExit) as exit_info:
        run(tmp_path, evaluate=evaluate)
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == 8
    assert [step for step, _ in recorded(tmp_path, "w")] == [4], "nothing of it is written"
    state = run(tmp_path, evaluate=evaluate)
    assert begun == [4, 8, 8, 12, 16, 20, 24]
    assert np.array_equal(state.params["w_D"], undisturbed[1].params["w_D"])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        undisturbed[0] / "metrics.jsonl").read_bytes()
    leave_if_stopping()     # outside of a run it asks nobody


EVALUATING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from test_train_loop import run
from train.signals import leave_if_stopping

def evaluate(state):
    if int(state.step) == 8:
        print("evaluating", flush=True)
        for _ in range(6000):
            leave_if_stopping()
            time.sleep(0.01)
    return {"w": float(state.params["w_D"][0])}

run(Path(sys.argv[1]), evaluate=evaluate)
"""


@pytest.mark.full
def test_a_process_ends_amid_an_evaluation_of_a_minute(undisturbed, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", EVALUATING, str(tmp_path)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "evaluating\n"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143 and "stopped at step 8" in err, err
    run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        undisturbed[0] / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("stop_at", [8, NUM_STEPS])
def test_a_signal_in_the_step_before_an_evaluation_saves_first(undisturbed, tmp_path, monkeypatch,
                                                               stop_at):
    begun, requested = [], StopRequest.requested.fget

    def evaluate(state):
        begun.append(int(state.step))
        return {"w": float(state.params["w_D"][0])}

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(StopRequest, "requested", property(
            lambda self: self._num_calls == stop_at or requested(self)))
        run(tmp_path, evaluate=evaluate)
    assert begun == [*range(4, stop_at, 4)]
    assert max(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == stop_at
    run(tmp_path, evaluate=evaluate)
    assert begun == [*range(4, NUM_STEPS + 1, 4)]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        undisturbed[0] / "metrics.jsonl").read_bytes()


def test_zero_evaluates_logs_and_saves_the_last_step_only(tmp_path):
    section = make_section()
    section.run.update(log_every=0, evaluate_every=0, checkpoint_every=0)
    run(tmp_path, section=section)
    assert [step for step, _ in recorded(tmp_path, "loss")] == [NUM_STEPS]
    assert [step for step, _ in recorded(tmp_path, "w")] == [NUM_STEPS]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(NUM_STEPS)]


def test_a_clean_up_that_fails_hides_no_error(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no trace was written")

    def evaluate(state):
        raise UserError("tasks.arithmetic", "is no task", "name another")

    monkeypatch.setattr(Profiler, "close", fail)
    close_files = Recorder.close_files
    monkeypatch.setattr(Recorder, "close_files",
                        lambda self: close_files(self) or (self.reported and fail()))
    with pytest.raises(UserError, match="is no task"):
        run(tmp_path, evaluate=evaluate)
    warned = capsys.readouterr().err
    assert "WARNING: the profile could not be closed (no trace was written)" in warned
    assert "WARNING: metrics.jsonl could not be closed (no trace was written)" in warned
    with pytest.raises(ValueError, match="no trace was written"):    # nothing else was wrong
        run(tmp_path / "again")


def test_a_writer_that_cannot_begin_is_refused_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(
        init=lambda **_: (_ for _ in ()).throw(RuntimeError("api_key not configured (no-tty)"))))
    section = make_section()
    section.run.writers = ("wandb",)
    line = r"^run\.writers='wandb': cannot be opened \(api_key not configured \(no-tty\)\): log in"
    with Compilations() as compilations, pytest.raises(UserError, match=line):
        run(tmp_path, section=section)
    assert not {"jit(train_step)", "jit(make_rest)"} & set(compilations.programs)


@pytest.mark.parametrize("is_lost", [True, False])
def test_an_evaluation_is_done_again_only_where_the_file_lost_it(undisturbed, tmp_path, is_lost):
    def stop(state):
        if int(state.step) == 12:   # a checkpoint is due here as well
            stop_the_run()
        return {"w": float(state.params["w_D"][0])}

    with pytest.raises(SystemExit):
        run(tmp_path, evaluate=stop)
    shutil.rmtree(tmp_path / "checkpoints" / "13")  # of its own stop: 12 is the newest now
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lost = partial(filter, lambda line: not ('"evaluated"' in line and '"step": 12' in line))
    assert len([*lost(lines)]) == len(lines) - 1
    if is_lost:
        path.write_text("".join(lost(lines)))
    run(tmp_path)
    assert path.read_bytes() == (undisturbed[0] / "metrics.jsonl").read_bytes()
