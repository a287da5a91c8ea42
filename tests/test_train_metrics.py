"""The metrics file of a resumed run tells one story."""

import json
import math
import os

import jax
import pytest

from train.watch.metrics import MetricsFile, read_metrics

NUM_STEPS, SAVE_EVERY, EVALUATE_EVERY = 8, 4, 2


def _write(path, restored_step, steps):
    file = MetricsFile(path, restored_step)
    for step in steps:
        file.write(step, {"loss": step / 10})
    file.close()


def test_a_resumed_run_leaves_the_file_of_one_that_never_stopped(tmp_path):
    _write(tmp_path / "whole.jsonl", 0, range(1, 9))
    _write(tmp_path / "resumed.jsonl", 0, range(1, 7))  # killed at 6, its checkpoint is of 4
    with open(tmp_path / "resumed.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # torn by the kill
    _write(tmp_path / "resumed.jsonl", 4, range(5, 9))
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [row["step"] for row in read_metrics(tmp_path / "resumed.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize("tail", ['{"step": 2, "loss": 0.2}', '{"step": 2', "7\n", '{"loss": 1}\n',
                                  "\0\0\0\0\n", "\udcff\n"])
def test_a_tail_that_is_no_whole_line_is_cut_off(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    _write(path, 0, [1])
    with open(path, "a", errors="surrogateescape") as file:
        file.write(tail)
    _write(path, 2, [2])
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_run_from_the_start_drops_what_an_earlier_one_wrote(tmp_path):
    _write(tmp_path / "metrics.jsonl", 0, [1, 2])
    _write(tmp_path / "metrics.jsonl", 0, [1])
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.1}]


def test_what_is_written_can_be_read_at_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, {"loss": 0.1})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    file.close()


def test_lines_are_on_the_disk_before_their_checkpoint(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    file.write(1, {"loss": 0.1})
    assert sizes == []      # not at every line
    file.sync()
    assert sizes == [(tmp_path / "metrics.jsonl").stat().st_size] and sizes[0] > 0
    file.close()


def test_what_is_not_finite_is_null_in_the_file_and_nan_to_a_reader(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, {"loss": math.nan, "gradient_norm": math.inf, "refused": 1.0})
    file.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "loss": None, "gradient_norm": None, "refused": 1.0}
    row, = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["loss"]) and math.isnan(row["gradient_norm"]) and row["refused"] == 1.0


class Killed(Exception):
    """Stands for the end of a process at a moment between two actions."""


class ToyRun:
    """A loop over one folder that a test kills after any number of its actions.

    A save commits `commit_lag` actions late, as an asynchronous one does.
    """

    def __init__(self, path, save_first=False, commit_lag=0):
        self.path, self.save_first, self.commit_lag = path, save_first, commit_lag
        self.committed, self.evaluated = 0, []

    def live(self, num_actions):
        """Runs one process; returns whether it came to its end."""
        self.left, self.in_flight = num_actions, None
        file = MetricsFile(self.path, self.committed)
        try:
            step = self.committed
            if step and step % EVALUATE_EVERY == 0 and not file.has(step, "bpb"):
                self._evaluate(file, step)
            while step < NUM_STEPS:
                step += 1
                self._act(lambda step=step: file.write(step, {"loss": step / 10}))
                tasks = [self._evaluate] if step % EVALUATE_EVERY == 0 else []
                tasks += [self._save] if step % SAVE_EVERY == 0 else []
                for task in reversed(tasks) if self.save_first else tasks:
                    task(file, step)
        except Killed:
            return False
        finally:
            file.close()
        return True

    def _act(self, action):
        if self.left == 0:
            raise Killed
        self.left -= 1
        action()
        if self.in_flight:
            step, lag = self.in_flight
            self.in_flight = (step, lag - 1) if lag else None
            self.committed = self.committed if lag else step

    def _evaluate(self, file, step):
        self._act(lambda: self.evaluated.append(step))
        self._act(lambda: file.write(step, {"bpb": 2.0}))

    def _save(self, file, step):
        def save():
            file.sync()
            self.in_flight = (step, self.commit_lag)
        self._act(save)


@pytest.mark.parametrize("commit_lag", [0, 1, 3])
@pytest.mark.parametrize("save_first", [False, True])
def test_evaluations_stand_in_the_file_exactly_once_wherever_it_dies(tmp_path, save_first,
                                                                     commit_lag):
    """One kill at every possible moment, and a second one soon after."""
    moments = 0
    while True:
        run = ToyRun(tmp_path / f"{moments}.jsonl", save_first, commit_lag)
        if run.live(moments):
            break
        run.live(moments // 2)
        assert run.live(10**6)
        rows = read_metrics(run.path)
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, NUM_STEPS + 1))
        assert [row["step"] for row in rows if "bpb" in row] == [2, 4, 6, 8], f"killed at {moments}"
        moments += 1
    assert moments > 15


def test_an_evaluation_whose_checkpoint_was_committed_is_not_repeated(tmp_path):
    run = ToyRun(tmp_path / "metrics.jsonl")
    run.live(4 + 2 + 2 + 1)     # four steps, two evaluations of two actions, one save
    assert run.committed == 4 and run.evaluated == [2, 4]
    run.live(1)
    assert run.evaluated == [2, 4]


def test_only_process_0_writes(tmp_path, monkeypatch):
    _write(tmp_path / "metrics.jsonl", 0, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    file = MetricsFile(tmp_path / "metrics.jsonl", 1)
    file.write(2, {"loss": 0.5})
    file.sync()
    assert file.has(1, "loss") and file.has(2, "loss") and not file.has(3, "loss")
    file.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
