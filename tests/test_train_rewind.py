"""Rewinding: where to, past what, how often, and that no kill changes the story."""

import json
import os

import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from train.rewind import Rewind, Rewinds


def _section(**changes):
    return ConfigDict(dict(after=3, steps_back=100, skip_batches=20, max_retries=3) | changes)


def test_a_rewind_is_due_after_enough_refusals_in_a_row(tmp_path):
    rewinds = Rewinds(tmp_path / "rewinds.json", _section())
    assert [rewinds.is_due(n) for n in (0, 2, 3, 4)] == [False, False, True, True]
    assert not Rewinds(tmp_path / "rewinds.json", _section(after=0)).is_due(99)


@pytest.mark.parametrize("saved, restore_step", [
    ((300, 800, 900, 1000), 800),       # step 898 is 100 before the first refusal, 998
    ((300, 898, 900), 898),
    ((950, 990), 950),                  # none is far enough back: the oldest
    ((300,), 300),
])
def test_it_goes_back_far_enough_and_past_all_that_was_read(tmp_path, saved, restore_step):
    rewinds = Rewinds(tmp_path / "rewinds.json", _section())
    assert rewinds.plan(1000, 1070, saved) == Rewind(1000, restore_step, 1090)


def test_the_nearest_checkpoint_is_announced_when_none_is_far_enough(tmp_path, capsys):
    Rewinds(tmp_path / "rewinds.json", _section()).plan(1000, 1000, (950,))
    assert "no checkpoint 100 steps before step 998: going back to step 950" in \
        capsys.readouterr().err


@pytest.mark.parametrize("saved", [(), (998, 1000)])
def test_without_a_checkpoint_before_the_trouble_it_gives_up(tmp_path, saved):
    with pytest.raises(UserError, match="step 998: no checkpoint is older than this step"):
        Rewinds(tmp_path / "rewinds.json", _section()).plan(1000, 1000, saved)


def test_retries_are_bounded_and_the_steps_are_named(tmp_path):
    path = tmp_path / "rewinds.json"
    for step in (1000, 1050, 2000):
        rewinds = Rewinds(path, _section())
        rewinds.check_retries()
        rewinds.record(rewinds.plan(step, step, (10,)))
        rewinds.complete()
    with pytest.raises(UserError, match=r"max_retries=3: is used up.*1000, 1050, 2000"):
        Rewinds(path, _section()).plan(3000, 3000, (10,))
    assert Rewinds(path, _section(max_retries=4)).plan(3000, 3000, (10,)).restore_step == 10


def test_an_earlier_rewind_makes_later_ones_void(tmp_path):
    rewinds = Rewinds(tmp_path / "rewinds.json", _section())
    for rewind in (Rewind(900, 800, 950), Rewind(1500, 1400, 1600)):
        rewinds.record(rewind)
    steps = (700, 800, 1000, 1400)
    assert [rewinds.resume_index(step) for step in steps] == [None, 950, None, 1600]
    rewinds.record(Rewind(1450, 800, 1700))
    assert [rewinds.resume_index(step) for step in steps] == [None, 1700, None, None]
    rewinds.record(Rewind(1450, 1400, 2000))
    assert [rewinds.resume_index(step) for step in steps] == [None, 1700, None, 2000]


def test_a_recorded_rewind_stays_pending_until_it_is_complete(tmp_path):
    path = tmp_path / "rewinds.json"
    rewinds = Rewinds(path, _section())
    assert rewinds.pending is None and not path.exists()
    rewind = Rewind(900, 800, 950)
    rewinds.record(rewind)
    assert Rewinds(path, _section()).pending == rewind
    rewinds.complete()
    again = Rewinds(path, _section())
    assert again.pending is None and again.resume_index(800) == 950


def test_a_write_that_dies_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rewinds.json"
    rewinds = Rewinds(path, _section())
    rewinds.record(Rewind(900, 800, 950))
    before = path.read_bytes()
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_mode))
    rewinds.complete()
    assert len(synced) == 2, "the file and its folder"
    path.write_bytes(before)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        rewinds.record(Rewind(1900, 1800, 1950))
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", '{"rewinds": [], "num_complete": 1}',
    '{"rewinds": [{}], "num_complete": 0}',
    '{"rewinds": [{"step": 1, "restore_step": 0, "resume_index": "7"}], "num_complete": 0}',
    '{"rewinds": [{"step": 1, "restore_step": -5, "resume_index": 7}], "num_complete": 0}',
])
def test_a_damaged_file_is_an_error(tmp_path, text):
    path = tmp_path / "rewinds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rewinds.json: is damaged: restore it from a copy"):
        Rewinds(path, _section())


class Killed(Exception):
    """What stands for SIGKILL."""


def _toy_run(path, disk, kill_at):
    """A run of 40 steps whose batches 13 to 19 and 27 to 30 are bad, after `train.loop`'s order.

    Args:
        disk: checkpoints `{step: (index, refused_in_row, story)}`; a story lists each step's batch.
        kill_at: after so many durable operations the process dies.
    """
    section = _section(after=3, steps_back=2, skip_batches=1, max_retries=9)
    bad = {*range(13, 20), *range(27, 31)}
    num_operations = 0

    def do(operation, *args):
        nonlocal num_operations
        if num_operations == kill_at:
            raise Killed
        num_operations += 1
        return operation(*args)

    def finish_rewind():
        for step in sorted(disk, reverse=True):
            if step > rewinds.pending.restore_step:
                do(disk.pop, step)
        do(rewinds.complete)

    def restore():
        step = max(disk)
        return step, *disk[step]

    rewinds = Rewinds(path, section)
    if rewinds.pending:
        finish_rewind()
    step, index, in_row, story = restore()
    while step < 40:
        resume_index = rewinds.resume_index(step)
        index = index if resume_index is None else resume_index
        story, in_row = (*story, index), (in_row + 1) * (index in bad)
        step, index = step + 1, index + 1
        if rewinds.is_due(in_row):
            do(rewinds.record, rewinds.plan(step, index, disk))
            finish_rewind()
            step, index, in_row, story = restore()
        elif step % 4 == 0:
            do(disk.__setitem__, step, (index, in_row, story))
    return story, num_operations


def test_wherever_the_run_is_killed_it_reads_the_same_batches(tmp_path):
    undisturbed, num_operations = _toy_run(tmp_path / "whole.json", {0: (0, 0, ())}, -1)
    skipped = sorted(set(range(max(undisturbed))) - set(undisturbed))
    assert len(undisturbed) == 40 and list(undisturbed) == sorted(undisturbed)
    assert {13, 14, 15, 16, 27, 28, 29, 30} <= set(skipped) and num_operations > 15
    for kill_at in range(num_operations):
        for is_newest_lost in (False, True):
            path = tmp_path / f"{kill_at}{is_newest_lost}.json"
            disk = {0: (0, 0, ())}
            with pytest.raises(Killed):
                _toy_run(path, disk, kill_at)
            if is_newest_lost and len(disk) > 1:
                del disk[max(disk)]
            assert _toy_run(path, disk, -1)[0] == undisturbed, (kill_at, is_newest_lost)
    assert json.loads((tmp_path / "whole.json").read_text())["num_complete"] == 3
