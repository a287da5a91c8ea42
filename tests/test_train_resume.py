"""A run that is stopped, killed and damaged, and gone on with, is the undisturbed one, bit for bit.

With real processes and real signals, for every trainer.
"""

import signal
import subprocess

import pytest

from core.artifacts import ROOT
from scripts.chaos.faults import Stage
from scripts.chaos.process import (
    CHECKPOINT_EVERY,
    NUM_STEPS,
    Run,
    differences,
    environment,
    final_bits,
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("chaos"))


def test_a_run_that_was_stopped_killed_and_damaged_is_bit_identical(stage):
    run = stage.new("disturbed")
    code = run.send_when(lambda: run.reported() >= CHECKPOINT_EVERY + 1, signal.SIGTERM)
    assert code == 143, run.said()
    stopped_at = run.reported()
    assert run.committed()[-1] == stopped_at
    assert f"stopped at step {stopped_at}; run the same command again to go on" in run.said()

    run.send_when(lambda: run.reported() > stopped_at + CHECKPOINT_EVERY and run.is_saving(),
                  signal.SIGKILL)
    assert run.restored() == stopped_at
    committed = run.committed()
    assert len(committed) >= 2 and not run.final.exists()
    data = max((run.checkpoints / str(committed[-1])).rglob("d/*"),
               key=lambda path: path.stat().st_size)
    spoilt = bytearray(data.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    data.write_bytes(spoilt)

    run.finish()
    assert f"checkpoint {committed[-1]} is damaged" in run.said()
    assert run.restored() == committed[-2]
    assert any("mu" in name for name in stage.bits), "optimizer state is part of the comparison"
    assert stage.bits["metrics"].count(b'"loss"') == NUM_STEPS
    assert not differences(stage.bits, final_bits(run))


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A finished smoke-sized road, whose artifacts are the parents of more runs."""
    workdir = tmp_path_factory.mktemp("road") / "run"
    subprocess.run(["bash", "scripts/quickstart.sh", "smoke", str(workdir)], cwd=ROOT, check=True,
                   env=environment(), capture_output=True)
    return workdir


@pytest.mark.full
@pytest.mark.parametrize(("section", "parents"), [("sft", ("base", "corpus")),
                                                  ("dpo", ("sft", "pairs"))])
def test_other_trainers_resume_bit_identically(road, tmp_path, section, parents):
    fields = dict(zip(("model", parents[1]), (road / name for name in parents)))
    settings = fields | {"checkpoint_every": 2, "log_every": 1, "batch_size": 4}

    def new(name):
        return Run(tmp_path / name, settings, module=f"align.{section}", section=section,
                   out=section)
    undisturbed, run = new("undisturbed"), new("disturbed")
    undisturbed.finish()
    run.send_when(lambda: run.reported() >= 3 and run.committed(), signal.SIGKILL)
    assert not run.final.exists(), "it was quicker than the kill"
    assert run.committed()
    run.finish()
    assert run.restored() >= 2
    assert not differences(final_bits(undisturbed), final_bits(run))
