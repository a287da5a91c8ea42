"""What fits: bytes by part against arithmetic, and the search for the largest micro-batch."""

import json
import math
import os
import subprocess
import sys

import jax
import pytest

from configs.quickstart import get_config
from core.artifacts import ROOT
from core.errors import UserError
from model.execution import make_execution
from model.families.registry import abstract_params
from model.parallel.sharding import letters_of, make_mesh
from model.section import read_section
from train.fit import PRECISION, measure, plan, search, sentence
from train.setup import RUN_FIELDS, Setup


@pytest.fixture(scope="module")
def config():
    """The smallest config, with AdamW: two moments for each parameter."""
    config = get_config("smoke")
    config.pretrain.optimizer.name = "adamw"
    config.pretrain.ema_decay = 0.999
    config.pretrain.row_length = 32
    config.pretrain.run.num_microbatches = 2
    return config


@pytest.fixture(scope="module")
def footprints(config):
    """By size of the mesh's `fsdp` axis."""
    model_config = read_section(config.model, config.tokenizer.vocab_size)
    execution = make_execution(config.pretrain, also=RUN_FIELDS)
    return {size: measure(config.pretrain, Setup(model_config, execution, make_mesh(
        {"fsdp": size}, jax.devices()[:size])), microbatch_rows=8) for size in (1, 8)}


def _param_bytes(config, num_shards):
    """Float32 parameters, those with a D cut into shards."""
    model_config = read_section(config.model, config.tokenizer.vocab_size)
    shapes = abstract_params(model_config)
    return sum(4 * leaf.size // (num_shards if "D" in letters_of(path, leaf.ndim) else 1)
               for path, leaf in jax.tree_util.tree_leaves_with_path(shapes))


@pytest.mark.parametrize("size", [1, 8])
def test_parts_are_what_arithmetic_says(config, footprints, size):
    own, params = footprints[size], _param_bytes(config, size)
    assert own.params == own.ema == own.gradient == params
    assert 2 * params <= own.opt_state <= 2 * params + 64, "two moments and some counters"
    assert own.batch == 5 * 4 * 16 * 32 // size, "five arrays of 16 rows"
    # The state goes out where it came in; beside it only metrics come out.
    beyond = own.peak - own.temporaries - (own.params + own.opt_state + own.ema + own.other_state
                                           + own.batch)
    assert 0 <= beyond < 1000


def test_fsdp_cuts_the_state(footprints):
    one, eight = (footprints[n].params + footprints[n].opt_state + footprints[n].ema
                  for n in (1, 8))
    assert one / 8 < eight < one / 7
    assert footprints[8].peak < footprints[1].peak / 2


@pytest.mark.parametrize("start", [1, 8, 500])
@pytest.mark.parametrize("largest", [0, 1, 2, 15, 16, 100, 77_777])
@pytest.mark.parametrize("power, known", [(1.0, math.inf), (1.3, math.inf), (1.0, 90)])
def test_the_search_finds_the_largest_that_fits(start, largest, power, known):
    """Also where memory is no line, and where the compiler gives up beyond `known`."""
    counts, limit = [], 1e6 + 1e4 * (largest + 0.5)**power

    def peak_bytes(count):
        assert count >= 1
        counts.append(count)
        return 1e6 + 1e4 * count**power if count <= known else math.inf

    found, truth = search(peak_bytes, limit, start), min(largest, known)
    assert truth - truth // PRECISION <= found <= truth
    assert len(counts) == len(set(counts)) <= 14


def test_a_plan_says_what_to_set(config, footprints, monkeypatch):
    """With two megabytes that are always taken, and one for each row of a device."""
    def fake_measure(section, setup, *, microbatch_rows):
        own, size = footprints[1], setup.mesh.size
        return type(own)(**vars(own) | {"peak": 1_000_000 * (2 + microbatch_rows // size)})

    monkeypatch.setattr("train.fit.measure", fake_measure)
    config = config.copy_and_resolve_references()
    config.pretrain.batch_size = 64
    config.pretrain.run.num_microbatches = 1
    result = plan(config, limit_bytes=5_000_000)
    assert not result["fits"] and result["largest_microbatch_rows"] == 24
    assert sentence(result) == (
        "a micro-batch of 64 rows does not fit on 8 x 0.005 GB; the largest that fits has 24 rows: "
        "set --config.pretrain.run.num_microbatches=4"), "three pieces of 64 rows would not divide"
    assert "shard the model over more devices" in sentence(plan(config, limit_bytes=2_000_000))
    result = plan(config, limit_bytes=20_000_000)
    assert result["fits"] and result["largest_microbatch_rows"] == 144


def test_a_batch_that_does_not_divide_is_refused(config):
    config = config.copy_and_resolve_references()
    config.pretrain.run.num_microbatches = 3
    with pytest.raises(UserError, match=r"is not divisible by run\.num_microbatches=3"):
        plan(config, limit_bytes=1)


def _run(*arguments):
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return subprocess.run(
        [sys.executable, "-m", "train.fit", "--config=configs/quickstart.py:smoke", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=env)


@pytest.mark.full
def test_the_command_plans_for_other_machines():
    """A device of 10 MB holds a row of 256 tokens, but not the two that its config gives it."""
    done = _run("--devices=4", "--memory_gb=0.01", "--config.mesh.fsdp=4",
                "--config.pretrain.optimizer.name=adamw", "--config.pretrain.row_length=256")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["devices"], result["backend"], result["fits"]) == (4, "cpu", False)
    assert (result["microbatch_rows"], result["largest_microbatch_rows"]) == (8, 4)
    assert result["largest_peak_bytes"] <= 10_000_000 < result["bytes"]["peak"]
    assert result["compilations"] == 2 and "optimizer state" in done.stderr
    assert ("does not fit on 4 x 0.01 GB; the largest that fits has 4 rows: "
            "set --config.pretrain.run.num_microbatches=2\n") in done.stderr


def test_the_command_needs_to_know_the_memory_of_other_machines():
    done = _run("--devices=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: --devices=4: needs the memory of one device: add for "
                           "example --memory_gb=80\n")
