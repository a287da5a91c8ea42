"""What TensorBoard and W&B are handed, with modules that only take notes; TensorBoard for real."""

import struct
import sys
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from train.watch.writers import Writers, check_writers

CONFIG = ConfigDict(dict(pretrain=dict(num_steps=8, writers=("tensorboard",))))


@pytest.fixture
def notes(monkeypatch):
    """What the packages were told, in order."""
    notes = []

    class SummaryWriter:
        def __init__(self, logdir, *, purge_step, **settings):
            notes.append(("open", logdir, purge_step))

        def __getattr__(self, name):
            return lambda *args: notes.append((name, *args))

    class Run:
        def __init__(self, settings):
            notes.append(("init", settings))

        def __getattr__(self, name):
            return lambda *args, **settings: notes.append((name, *args, *settings.items()))

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "wandb",
                        SimpleNamespace(init=lambda **settings: Run(settings)))
    return notes


def _run(names, folder, step, steps):
    writers = Writers(names, folder, run_name="toy/base", config=CONFIG)
    writers.start(step)
    for number in steps:
        writers.write(number, {"loss": number / 10})
    writers.close()


def test_tensorboard_gets_each_value_and_hides_what_lies_past_the_restored_step(tmp_path, notes):
    _run(["tensorboard"], tmp_path, 0, [1, 2])
    _run(["tensorboard"], tmp_path, 1, [2])
    logdir = str(tmp_path / "tensorboard")
    assert [note for note in notes if note[0] != "add_text"] == [
        ("open", logdir, 1), ("add_scalar", "loss", 0.1, 1), ("add_scalar", "loss", 0.2, 2),
        ("close",), ("open", logdir, 2), ("add_scalar", "loss", 0.2, 2), ("close",)]
    text, = (note for note in notes if note[0] == "add_text")
    assert "num_steps: 8" in text[2]


def test_wandb_goes_on_with_the_same_run(tmp_path, notes):
    _run(["wandb"], tmp_path, 0, [1])
    _run(["wandb"], tmp_path, 1, [2])
    (tmp_path / "again").mkdir()
    _run(["wandb"], tmp_path / "again", 0, [])
    first, second, other = (note[1] for note in notes if note[0] == "init")
    assert first == second and first["id"] != other["id"] and len(first["id"]) == 16
    assert first["resume"] == "allow" and first["name"] == "toy/base"
    assert first["dir"] == str(tmp_path) and first["config"] == CONFIG.to_dict()
    assert notes[1:5] == [("define_metric", "step"),
                          ("define_metric", "*", ("step_metric", "step")),
                          ("log", {"step": 1, "loss": 0.1}), ("finish",)]


def test_a_file_left_empty_by_a_kill_gets_an_id(tmp_path, notes):
    (tmp_path / "wandb.id").write_text("")
    _run(["wandb"], tmp_path, 0, [])
    assert notes[0][1]["id"] == (tmp_path / "wandb.id").read_text() != ""


def test_only_process_0_opens_them(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _run(["tensorboard", "wandb"], tmp_path, 0, [1])
    assert notes == [] and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name, package, extra", [("tensorboard", "tensorboardX", "tb"),
                                                  ("wandb", "wandb", "wandb")])
def test_a_missing_package_is_one_line(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)     # as if it were not installed
    with pytest.raises(UserError, match=rf"^run.writers='{name}': needs the package {package}: "
                                        rf"pip install -e '.\[{extra}\]'[^\n]*$"):
        check_writers([name])


def test_an_unknown_writer_is_refused():
    with pytest.raises(UserError, match=r"run\.writers='mlflow': is none of tensorboard, wandb"):
        check_writers(["mlflow"])


def test_a_writer_that_cannot_be_opened_is_one_line(tmp_path, notes, monkeypatch):
    def init(**settings):
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    with pytest.raises(UserError) as raised:
        Writers(["tensorboard", "wandb"], tmp_path, run_name="toy", config=CONFIG)
    assert str(raised.value) == (
        "run.writers='wandb': cannot be opened (No API key configured.): log in with "
        "`wandb login`, or set WANDB_MODE=offline, or leave it out of run.writers")


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_writer_that_fails_later_is_announced_once_and_left_out(tmp_path, notes, monkeypatch,
                                                                  capsys, broken):
    class Run:
        def __getattr__(self, name):
            if name == broken:
                raise ConnectionError("the server\nis away")
            return lambda *args, **settings: None

    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **settings: Run())
    _run(["wandb", "tensorboard"], tmp_path, 0, [1, 2])
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 1 and "WARNING: run.writers='wandb' fails (the server)" in warned[0]
    assert [note[3] for note in notes if note[0] == "add_scalar"] == [1, 2] and ("close",) in notes


def _events(folder):
    """All events of a folder, in the order of its files."""
    from tensorboardX.proto.event_pb2 import Event
    for path in sorted(folder.iterdir()):
        records = path.read_bytes()
        while records:      # length, its checksum, the event, its checksum
            size, = struct.unpack("<Q", records[:8])
            yield Event.FromString(records[12:12 + size])
            records = records[16 + size:]


@pytest.mark.full
def test_tensorboard_files_hold_the_curve_and_the_mark_of_a_restart(tmp_path):
    pytest.importorskip("tensorboardX")
    _run(["tensorboard"], tmp_path, 0, [1, 2])
    _run(["tensorboard"], tmp_path, 1, [2, 3])
    points, restarts = [], []
    for event in _events(tmp_path / "tensorboard"):
        points += [(event.step, value.tag, round(value.simple_value, 6))
                   for value in event.summary.value if value.tag == "loss"]
        restarts += [event.step] if event.session_log.status == 1 else []   # START
    assert points == [(1, "loss", 0.1), (2, "loss", 0.2), (2, "loss", 0.2), (3, "loss", 0.3)]
    assert restarts == [1, 2]
