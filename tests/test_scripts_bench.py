"""The benchmarks: equal work on both sides, reported failures, confidence intervals."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from model.adapters.lora import Lora
from model.families.registry import init, num_params
from scripts.bench import checkpoints as bench_checkpoints
from scripts.bench import lora as bench_lora
from scripts.bench import recipe as bench_recipe
from scripts.bench import train as bench_train
from scripts.bench import train_step as bench_train_step
from scripts.bench.train_profile import find_products
from scripts.bench.train_workload import OUT_OF_MEMORY, Workload
from train.loss import next_token_loss

WORK = Workload(size="tiny", batch_size=2, row_length=24, dtype="float32", num_steps=2)


# --- the training step --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def measured():
    """Heartwood's figures of a tiny model."""
    return bench_train_step.measure(dataclasses.replace(WORK, profile=True))


@pytest.mark.full
def test_heartwoods_side_trains_and_measures_its_time(measured):
    assert measured["first_loss"] == pytest.approx(math.log(512), rel=0.02)
    assert measured["last_loss"] < measured["first_loss"]
    assert len(measured["step_secs"]) == WORK.num_steps
    rate = WORK.num_tokens / np.median(measured["step_secs"])
    assert measured["tokens_per_sec"] == pytest.approx(rate)
    assert measured["start_secs"] > measured["compile_secs"] > 0
    assert 0 < measured["fetch_frac"] < 1 and 0 < measured["data_wait_frac"] < 1
    profile = measured["profile"]
    assert 0 < profile["products_frac"] < 1
    marked = sum(frac for name, frac in profile["kinds"].items() if name.endswith("(product)"))
    assert marked <= profile["products_frac"] + 1e-3


def test_products_are_found_inside_fusions_and_library_calls():
    program = """HloModule m
%fused (p: f32[4,4]) -> f32[4,4] {
  ROOT %dot.1 = f32[4,4] dot(%p, %p), lhs_contracting_dims={1}
}
%inner (p: f32[4]) -> f32[4] {
  ROOT %add.7 = f32[4] add(%p, %p)
}
%outer (p: f32[4,4]) -> f32[4,4] {
  ROOT %call.2 = f32[4,4] call(%p), to_apply=%fused
}
ENTRY %main (p: f32[4,4]) -> f32[4,4] {
  %fusion.3 = f32[4,4] fusion(%p), kind=kLoop, calls=%outer
  %fusion.4 = f32[4] fusion(%p), kind=kLoop, calls=%inner
  ROOT %custom-call.5 = f32[4,4] custom-call(%fusion.3), custom_call_target="__cublas$lt$matmul"
}
"""
    assert find_products(program) == {"dot.1", "call.2", "fusion.3", "custom-call.5"}


@pytest.mark.full
def test_both_sides_figures_come_from_all_turns(measured):
    slow = measured | {"step_secs": [secs + 1 for secs in measured["step_secs"]]}
    row = bench_train.figures(WORK, [measured, slow], "NVIDIA H200", 1e12)
    pooled = np.median(measured["step_secs"] + slow["step_secs"])
    assert row["tokens_per_sec"] == pytest.approx(WORK.num_tokens / pooled, abs=0.06)
    assert row["mfu_causal"] is None, "float32 has no known peak"
    flops = 6 * 131_072 + 6 * 2 * 64 * 24   # 6 N_matmul + 6 N H K L of the tiny shape
    assert row["matmul_frac"] == pytest.approx(row["tokens_per_sec"] * flops / 1e12, abs=1e-4)


def test_unequal_work_is_refused():
    row = {"num_params": 100, "first_loss": math.log(512)}
    bench_train.check_equal_work({"ours": row, "peer": row, "third": {"error": "failed"}}, 512)
    with pytest.raises(UserError, match="differ"):
        bench_train.check_equal_work({"ours": row, "peer": row | {"num_params": 101}}, 512)
    with pytest.raises(UserError, match=r"peer: first loss 3\.100: is not near"):
        bench_train.check_equal_work({"ours": row, "peer": row | {"first_loss": 3.1}}, 512)


def test_out_of_memory_halves_the_batch_of_both_sides(monkeypatch, tmp_path):
    calls = []

    def run(side, work, caches):
        calls.append((side, work.batch_size, caches.name))
        if side == "peer" and work.batch_size > 2:
            return OUT_OF_MEMORY
        return {"tokens_per_sec": 1.0}

    monkeypatch.setattr(bench_train, "run_work", run)
    start = dataclasses.replace(WORK, batch_size=8)
    works, results = bench_train.take_turns({"ours": start, "peer": start}, tmp_path)
    assert {work.batch_size for work in works.values()} == {2}
    assert [len(turns) for turns in results.values()] == [2, 2]
    assert [side for side, batch_size, _ in calls if batch_size == 2] == ["ours", "peer"] * 2
    assert calls[0][2] != calls[-2][2], "a smaller batch starts with empty caches"


def test_a_failure_of_one_side_is_reported_and_the_other_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_train, "run_work", lambda side, work, caches:
                        {"error": "no torch"} if side == "peer" else {"tokens_per_sec": 1.0})
    _, results = bench_train.take_turns({"ours": WORK, "peer": WORK}, tmp_path)
    assert results == {"ours": [{"tokens_per_sec": 1.0}] * 2, "peer": [{"error": "no torch"}]}


def _need_peer():
    """Skips where there is no torch or no transformers. Neither is imported beside JAX."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is missing")


def _run_peer(argument):
    """What the peer's side prints."""
    done = subprocess.run([sys.executable, "-m", "scripts.bench.peer_llama", str(argument)],
                          cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _llama_weights(params, shape):
    """Heartwood's parameters under transformers' names; its linear layers are [out, in]."""
    width = shape["D"]
    weights = {"model.embed_tokens.weight": params["embed_VD"],
               "model.norm.weight": params["final_norm_D"], "lm_head.weight": params["head_DV"].T}
    names = {"wq_DHK": "self_attn.q_proj", "wk_DGK": "self_attn.k_proj",
             "wv_DGK": "self_attn.v_proj", "wo_HKD": "self_attn.o_proj",
             "w_gate_DF": "mlp.gate_proj", "w_up_DF": "mlp.up_proj", "w_down_FD": "mlp.down_proj",
             "attn_norm_D": "input_layernorm", "mlp_norm_D": "post_attention_layernorm"}
    for ours, theirs in names.items():
        for n, leaf in enumerate(params["blocks"][ours]):
            if leaf.ndim > 1:
                leaf = leaf.reshape(-1, width) if ours == "wo_HKD" else leaf.reshape(len(leaf), -1)
                leaf = leaf.T
            weights[f"model.layers.{n}.{theirs}.weight"] = leaf
    return {name: np.ascontiguousarray(leaf) for name, leaf in weights.items()}


@pytest.mark.full
@pytest.mark.parametrize("documents_per_row", [1, 3])
def test_loss_and_gradient_are_those_of_llama(documents_per_row, tmp_path):
    _need_peer()
    work = dataclasses.replace(WORK, documents_per_row=documents_per_row)
    config, execution, _ = bench_train_step.make_setup(work)
    # Weights larger than initial ones, so that the loss differs from ln V.
    params = jax.tree.map(lambda leaf: 2 * leaf, jax.jit(partial(init, config))(jax.random.key(0)))
    np.savez(tmp_path / "weights.npz", **_llama_weights(jax.device_get(params), work.shape))
    (tmp_path / "workload.json").write_text(work.to_json())
    theirs = _run_peer(tmp_path)

    def mean_loss(params, batch):
        loss_sum, metrics = next_token_loss(params, batch, config=config, execution=execution,
                                            key=jax.random.key(0))
        return loss_sum / metrics["loss"][1]

    batch = bench_train_step.make_batches(work)[0]
    loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(params, batch)
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradient)))
    assert float(loss) == pytest.approx(theirs["loss"], abs=1e-4)
    assert norm == pytest.approx(theirs["gradient_norm"], rel=1e-4)


@pytest.mark.full
def test_the_whole_benchmark_runs_and_its_last_line_ends_with_the_ratios(tmp_path):
    _need_peer()
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.train", "--sizes=tiny", "--row_length=24",
         "--batch=2", "--steps=2", f"--json={tmp_path}/figures.json"], cwd=ROOT,
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "figures.json").read_text()) == result
    assert list(result)[-1] == "ratio"
    assert result["sizes"]["1.3B"] == {"not_run": "not asked for"}
    tiny = result["sizes"]["tiny"]
    assert tiny["ours"]["tokens_per_sec"] > 0
    assert tiny["ratio"] > 0


def test_flags_override_the_platforms_defaults_and_errors_are_one_line():
    given = SimpleNamespace(row_length=None, dtype=None, batch=None, steps=7, documents_per_row=1,
                            profile=False, fields=["remat=full", "scan_unroll=2"])
    defaults = bench_train.DEFAULTS["gpu"]
    work = bench_train.make_workload("350M", given, defaults)
    assert (work.row_length, work.dtype, work.num_steps) == (2048, "bfloat16", 7)
    assert work.batch_size == defaults["other_batch"]
    assert work.fields == defaults["fields"] | {"remat": "full", "scan_unroll": 2}
    with pytest.raises(UserError, match=r"--sizes=7T: is no known size: choose among tiny"):
        bench_train.make_workload("7T", given, defaults)
    given.fields = ["remat"]
    with pytest.raises(UserError, match=r"--fields=remat: has no value"):
        bench_train.make_workload("350M", given, defaults)


# --- checkpoints --------------------------------------------------------------------------------

@pytest.mark.full
def test_checkpoint_figures_of_a_tiny_model(tmp_path):
    result = bench_checkpoints.bench(WORK, tmp_path / "checkpoints", num_saves=1)
    num_params = 164_160
    assert result["state_bytes"] == pytest.approx(3 * 4 * num_params, rel=0.01)
    assert result["blocked_steps"] == pytest.approx(
        result["blocked_secs"] / result["step_secs"])
    assert result["restore_secs"] > 0


def test_peak_memory_includes_a_short_allocation():
    with bench_checkpoints.PeakMemory() as memory:
        before = memory.peak_bytes
        held = np.ones(1 << 25)     # 256 MB
        held *= 2
        del held
    assert memory.peak_bytes - before > 200_000_000


# --- recipes ------------------------------------------------------------------------------------

def _write_run(folder, name, bpb, **changes):
    run = folder / name
    run.mkdir()
    pretrain = {"out": name, "seed": int(name[-1]), "optimizer": {"name": "muon"}} | changes
    (run / "metrics.json").write_text(json.dumps({"heldout_bpb": bpb, "secs": 10.0, "tokens": 9}))
    write_json(run / "lineage.json", make_lineage(
        stage="pretrain", config={"pretrain": pretrain}, inputs={"tokens": "a"}, code=""))


def test_a_paired_difference_has_students_interval(tmp_path):
    for seed, (plain, other) in enumerate([(1.50, 1.40), (1.60, 1.48), (1.40, 1.32)]):
        _write_run(tmp_path, f"plain_{seed}", plain)
        _write_run(tmp_path, f"other_{seed}", other, optimizer={"name": "adamw"})
    result = bench_recipe.bench(tmp_path, "plain", ["other"])["differences"]["other"]
    # Differences -0.10, -0.12, -0.08: mean -0.1, deviation 0.02, t(2, 97.5 %) = 4.3027.
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert result["bpb"] == pytest.approx({"mean": -0.1, "low": -0.1 - half, "high": -0.1 + half})
    assert result["changes"] == {"pretrain.optimizer.name": ["muon", "adamw"]}
    assert result["seeds"] == [0, 1, 2]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    for seed in range(2):
        _write_run(tmp_path, f"plain_{seed}", 1.5)
    _write_run(tmp_path, "mixed_0", 1.4)
    _write_run(tmp_path, "mixed_1", 1.4, anneal_frac=0.3)
    _write_run(tmp_path, "single_0", 1.4)
    with pytest.raises(UserError, match=r"mixed: pretrain.anneal_frac: differs between seeds"):
        bench_recipe.bench(tmp_path, "plain", ["mixed"])
    with pytest.raises(UserError, match=r"seeds \[0\]: are too few"):
        bench_recipe.bench(tmp_path, "plain", ["single"])
    with pytest.raises(UserError, match="has no finished run"):
        bench_recipe.bench(tmp_path, "plain", ["missing"])


def test_a_step_of_an_adapter_is_measured_beside_one_of_all_parameters():
    kinds = [bench_lora.Kind("bfloat16", is_full=True), bench_lora.Kind("bfloat16"),
             bench_lora.Kind("bfloat16", is_cast=True)]
    found = []
    for kind in kinds:
        step = bench_lora.Step(kind, dataclasses.replace(WORK, dtype=kind.dtype), Lora(rank=4))
        for _ in range(2):
            step.run()
        found.append(step.figures())
    full, lora, cast = found
    assert full["num_trained"] == num_params(bench_train_step.make_setup(WORK).config)
    assert full["state_bytes"] > 12 * full["num_trained"] > 9 * lora["state_bytes"]
    assert lora["frozen_bytes"] == 4 * full["num_trained"] > 1.9 * cast["frozen_bytes"]
    assert full["peak_bytes"] > lora["peak_bytes"] > cast["peak_bytes"]
