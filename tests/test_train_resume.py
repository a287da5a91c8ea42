"""A run that is stopped, killed and damaged, and gone on with, is the undisturbed one, bit for bit.

With real processes and real signals, for every trainer; and also where the settings of how it is
computed and watched change on the way.
"""

import shutil
import signal
import subprocess
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.artifacts import ROOT, read_lineage
from model.directory import load_params, read_description
from scripts.chaos.faults import Stage
from scripts.chaos.process import (
    CHECKPOINT_EVERY,
    NUM_STEPS,
    TINY,
    Run,
    differences,
    environment,
    final_bits,
)
from train.watch.metrics import read_metrics


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


# Rows that hold a question; and no optimizer that enlarges differences in the last bits.
SETTINGS = TINY | {"row_length": 64, "optimizer.name": "adamw", "optimizer.eps": 1e-4}


@dataclass
class Killed:
    """A run that was killed behind a checkpoint, beside the same one that was left alone."""

    undisturbed: Run
    run: Run
    parents: dict

    def go_on(self, workdir, changes, **flags):
        """Copies what the kill left, and goes on with other settings to the end."""
        changed = Run(workdir, SETTINGS | self.parents | changes, **flags)
        shutil.copytree(self.run.partial, changed.partial)
        changed.finish()
        return changed

    @property
    def step(self):
        """The step to go on from."""
        return self.run.committed()[-1]

    def check_went_on(self, changed, names):
        """The changed run went on at the right step, and its lineage says from where what held."""
        assert changed.restored() == self.step > 0
        assert "going on where an earlier run stopped" in changed.said()
        first, second = read_lineage(changed.final)["runs"]
        assert (first["step"], second["step"]) == (0, self.step)
        before, after = first["run"].pop("pretrain"), second["run"].pop("pretrain")
        assert first["run"] == second["run"] == {} and before.keys() == after.keys()
        assert {name for name in before if before[name] != after[name]} == names
        return (first, before), (second, after)


@pytest.fixture(scope="module")
def killed(stage):
    road = stage.undisturbed.workdir.parent / "road"
    parents = {"tokens": road / "tokens", "corpus": road / "corpus"}
    rows = [{"name": f"f{i}", "module": f"m{i // 8}", "package": f"p{i // 8}", "summary": word}
            for i, word in enumerate(4 * ("ba", "ce", "di", "fo", "gu", "la", "be", "co"))]
    pq.write_table(pa.Table.from_pylist(rows), road / "corpus" / "questions.parquet")
    undisturbed, run = (Run(road.parent / name, SETTINGS | parents) for name in ("alone", "killed"))
    undisturbed.finish()
    run.send_when(lambda: run.reported() >= 2 * CHECKPOINT_EVERY + 1 and len(run.committed()) == 2,
                  signal.SIGKILL)
    assert 0 < run.committed()[-1] <= 3 * CHECKPOINT_EVERY and not run.final.exists()
    return Killed(undisturbed, run, parents)


def told(run, name):
    """The values of a metric by step."""
    rows = read_metrics(run.final / "metrics.jsonl")
    return {int(row["step"]): row[name] for row in rows if name in row}


@pytest.mark.full
def test_what_only_watches_changes_at_a_restart_and_changes_no_bit(killed, tmp_path):
    changes = {"run.log_every": 5, "run.evaluate_every": 4, "run.checkpoint_every": 3,
               "run.keep_checkpoints": 3, "run.keep_every": 6, "run.diagnostics": True,
               "run.tasks.documentation": 4}
    changed = killed.go_on(tmp_path / "changed", changes)
    names = {name.split(".")[1] for name in changes}
    (first, before), (second, after) = killed.check_went_on(changed, names)
    assert (before["log_every"], after["log_every"]) == (1, 5)
    assert (before["tasks"], after["tasks"]) == ({"documentation": 0}, {"documentation": 4})
    assert first["mesh"] == second["mesh"]
    assert "--config.pretrain.run.log_every=1" in first["command"]
    assert "--config.pretrain.run.log_every=5" in second["command"]

    expected, found = final_bits(killed.undisturbed), final_bits(changed)
    assert any("nu" in name for name in expected), "optimizer state is part of the comparison"
    assert differences(expected, found) == ["metrics"]

    # And the settings held, each from its step on.
    step, losses = killed.step, told(changed, "loss")
    assert [*losses] == [*range(1, step + 1), *range((step // 5 + 1) * 5, NUM_STEPS, 5), NUM_STEPS]
    undisturbed = told(killed.undisturbed, "loss")
    assert losses == {at: undisturbed[at] for at in losses}
    evaluated = [at for at in (6, 12) if at <= step] + [*range(step, NUM_STEPS + 1, 4)]
    assert [*told(changed, "heldout_bpb")] == sorted({*evaluated})
    assert {*range(step + 4, NUM_STEPS + 1, 4)} <= {*told(changed, "documentation_acc")}
    assert min(told(changed, "documentation_acc")) >= step
    assert [*told(changed, "update_ratio/embed_VD")] == [at for at in losses if at > step]
    kept = {int(path.name) for path in (changed.final / "checkpoints").iterdir()}
    assert kept == {12, 18, 21, 24}, "the newest three, and those that 6 divides"


COMPUTED = {"remat": ({"run.remat": "full"}, {}), "scan_unroll": ({"run.scan_unroll": 2}, {}),
            "loss_chunks": ({"run.loss_chunks": 2}, {}),
            "num_microbatches": ({"run.num_microbatches": 1}, {}),
            "mesh": ({}, {"config.mesh.fsdp": 2})}


@pytest.mark.full
@pytest.mark.parametrize("name", COMPUTED)
def test_how_it_is_computed_changes_at_a_restart_and_changes_the_rounding(killed, tmp_path, name):
    changes, flags = COMPUTED[name]
    num_devices = 2 if name == "mesh" else 1
    changed = killed.go_on(tmp_path / name, changes, num_devices=num_devices, **flags)
    (first, before), (second, after) = killed.check_went_on(changed, {name} - {"mesh"})
    if name == "mesh":
        assert (first["mesh"]["fsdp"], second["mesh"]["fsdp"]) == (1, 2)
        assert "2 x cpu" in changed.said()
    else:
        assert first["mesh"] == second["mesh"]
        assert after[name] == changes[f"run.{name}"] != before[name]

    expected, found = told(killed.undisturbed, "loss"), told(changed, "loss")
    assert [*found] == [*range(1, NUM_STEPS + 1)]
    assert found == pytest.approx(expected, rel=1e-5)
    bits, exact = [final_bits(run) for run in (killed.undisturbed, changed)], {
        "loader", "['step']", "['key']"}
    assert exact <= bits[0].keys() and not exact & {*differences(*bits)}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                 *(load_params(run.final, read_description(run.final).config)
                   for run in (changed, killed.undisturbed)))


SFT = {"model": "base", "corpus": "corpus", "tokens": "tokens"}


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A finished smoke-sized road, whose artifacts are the parents of more runs."""
    workdir = tmp_path_factory.mktemp("road") / "run"
    subprocess.run(["bash", "scripts/quickstart.sh", "smoke", str(workdir)], cwd=ROOT, check=True,
                   env=environment(), capture_output=True)
    return workdir


@pytest.mark.full
@pytest.mark.parametrize(("section", "parents", "rank"), [
    ("sft", SFT, 0), ("sft", SFT, 4), ("dpo", {"model": "sft", "pairs": "pairs"}, 0),
    ("reward", {"model": "sft", "pairs": "pairs"}, 0),
    ("reward", {"model": "sft", "pairs": "pairs"}, 4)])
def test_other_trainers_resume_bit_identically(road, tmp_path, section, parents, rank):
    fields = {field: road / name for field, name in parents.items()}
    settings = fields | {"run.checkpoint_every": 2, "run.log_every": 1, "batch_size": 4,
                         "lora.rank": rank}

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
