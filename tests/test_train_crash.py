"""The crash matrix of `scripts.chaos.matrix`, a short version of each fault, with real processes.

What needs several runs to their end is marked `full`; `tests/test_train_resume.py` goes through
SIGTERM, SIGKILL amid a save and a flipped byte in one run, always.
"""

import json
import subprocess
import sys

import pytest

from core.artifacts import ROOT
from scripts.chaos import matrix as chaos
from scripts.chaos.faults import Stage
from scripts.chaos.process import environment

FAULTS = chaos.make_faults(trials=2)


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
