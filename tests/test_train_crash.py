"""The crash matrix of `scripts.chaos.matrix`, a short version of each fault, with real processes.

What needs several runs to their end is marked `full`; `tests/test_train_resume.py` goes through
SIGTERM, SIGKILL amid a save and a flipped byte in one run, always.
"""

import json
import random
import subprocess
import sys
from collections import Counter

import pytest

from core.artifacts import ROOT, make_lineage, write_json
from scripts.chaos import matrix as chaos
from scripts.chaos import road
from scripts.chaos.faults import Stage
from scripts.chaos.process import environment

# Of a flipped bit in every file: tests/test_train_checkpoints.py.
FAULTS = chaos.make_faults(trials=2, flips=6)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("chaos"))


@pytest.mark.full
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_no_committed_step_and_not_a_bit(stage, name):
    outcomes = chaos.play(stage, {name: FAULTS[name]})
    if name not in outcomes:
        pytest.skip("only root can mount")
    outcome = outcomes[name]
    assert not outcome.faults
    assert outcome.trials > 0 and outcome.lost == 0
    assert outcome.identical == outcome.runs > 0
    # Two small files of Orbax's own are not covered by the checksums, and decide nothing.
    assert outcome.planted - 2 <= outcome.detected <= outcome.planted


def test_an_unknown_fault_is_refused():
    done = subprocess.run([sys.executable, "-m", "scripts.chaos.matrix", "--only=flood"], cwd=ROOT,
                          env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only=flood: is no fault: choose among kill, " in done.stderr


@pytest.mark.full
def test_the_matrix_sums_up_in_its_last_line():
    done = subprocess.run([sys.executable, "-m", "scripts.chaos.matrix", "--trials=1",
                           "--only=terminate_twice,kill_reader"], cwd=ROOT, env=environment(),
                          capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == [] and found["lost"] == 0
    assert found["trials"] == found["runs"] == found["identical"] == 2
    assert set(found["by_fault"]) == {"terminate_twice", "kill_reader"}


def _write_artifact(folder, *, secs, tokens, step=4):
    folder.mkdir(parents=True)
    write_json(folder / "lineage.json", make_lineage(stage="toy", config={}, inputs={}, code=""))
    write_json(folder / "metrics.json", {"tokens": tokens, "funnel": [{"in": 3, "secs": secs}]})
    (folder / "speed.jsonl").write_text(str(secs))
    (folder / "pages.tokens").write_bytes(bytes(8))
    record = folder / "checkpoints" / str(step) / "record"
    record.mkdir(parents=True)
    (record / "metadata").write_text("{}")


def test_artifacts_of_two_roads_differ_in_what_no_clock_decides(tmp_path):
    for name, secs, tokens in (("one", 1.0, 5), ("slow", 9.0, 5), ("other", 1.0, 6)):
        _write_artifact(tmp_path / name / "base", secs=secs, tokens=tokens)
    one, slow, other = (road.final_bytes(tmp_path / name) for name in ("one", "slow", "other"))
    assert set(one) == {"base/lineage.json", "base/metrics.json", "base/pages.tokens", "base/4"}
    assert one == slow
    assert [name for name in one if one[name] != other[name]] == ["base/metrics.json"]


@pytest.fixture
def played(monkeypatch):
    """What happens on a road whose stages are not run: the kills, and the stages finished."""
    killed, finished = [], []
    monkeypatch.setattr(road.Road, "kill", lambda self, command, secs, with_workers:
                        killed.append((command[0], with_workers)) or True)
    monkeypatch.setattr(road.Road, "finish", lambda self, command: finished.append(command[0]))
    return killed, finished


def test_every_stage_is_killed_once_before_any_is_twice():
    for seed in range(20):
        chance = random.Random(seed)
        first = road.choose_stages(20, Counter(), 11, chance)
        assert first.total() == 20 and sorted(first.values()) == [1, 1] + [2] * 9
        happened = first - Counter({3: 2, 5: 1})
        assert set(road.choose_stages(2, happened, 11, chance)) >= {3}


def test_planned_kills_happen_in_their_stages_half_of_them_with_workers(played, tmp_path):
    killed, finished = played
    stages = [command[0] for command in road.read_stages()]
    assert stages[0] == "data.curate" and stages[-1] == "serve.report.write" and len(stages) == 14
    planned = Counter({0: 2, 3: 1, 10: 1})
    assert road.kill_along(road.Road(tmp_path), [1.0] * 14, planned, random.Random(0)) == planned
    assert [name for name, _ in killed] == [stages[0], stages[0], stages[3], stages[10]]
    assert [with_workers for _, with_workers in killed] == [False, True, False, True]
    assert finished == stages


def test_a_kill_that_comes_too_late_is_not_moved_to_another_stage(played, monkeypatch, tmp_path):
    monkeypatch.setattr(road.Road, "kill", lambda self, command, secs, with_workers:
                        command[0] != "train.pretrain")
    planned = Counter({2: 1, 3: 2})
    killed = road.kill_along(road.Road(tmp_path), [1.0] * 14, planned, random.Random(0))
    assert killed == Counter({2: 1}) and len(played[1]) == 14


@pytest.mark.full
def test_kills_along_the_road_change_no_byte_of_any_artifact(tmp_path):
    done = subprocess.run([sys.executable, "-m", "scripts.chaos.road", "--kills=3",
                           f"--workdir={tmp_path}"], cwd=ROOT, env=environment(),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["different"] == {} and found["kills"] == 3 and found["files"] > 60
