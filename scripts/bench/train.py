"""Benchmark of a training step against transformers' Llama in torch: same shape, same batch.

    python -m scripts.bench.train [--sizes=124M,350M,1.3B] [--peer_python=/path/to/python]

The rooflines are measured first. Then, for each size, Heartwood and the peer run alternately, twice
each, in processes of their own on an otherwise idle device: the first turn compiles with empty
caches, the second with filled ones. A rate is that of the median step of both turns, without the
first steps. Heartwood fetches metrics and places a batch every step, as training does; the peer
keeps its batches on the device and fetches nothing.

Equal work: the counts of parameters must agree, and both first losses must be near that of a
uniform guess. Batch sizes are equal. The peer runs in `--peer_python`, which has torch and
transformers. `scripts.bench.device` searches a GPU's fastest settings.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import ROOT, write_json
from core.errors import UserError
from core.progress import log
from model.execution import COMPUTE_DTYPES
from model.flops import peak_flops, train_flops_per_token
from scripts.bench.train_workload import OUT_OF_MEMORY, SIZES, Workload, make_config

SIDES, NUM_TURNS, PROCESS_SECS = ("ours", "peer"), 2, 1800
MAX_FIRST_LOSS_ERROR = 0.06     # of ln V: initial logits are small but not zero

# Defaults by platform. Batches are in rows, and are halved until both sides fit.
DEFAULTS = {
    "cpu": dict(sizes=["124M"], row_length=256, dtype="float32", steps=5,
                batch={}, other_batch=2, fields={"scan_unroll": 12}),
    "gpu": dict(sizes=["124M", "350M", "1.3B"], row_length=2048, dtype="bfloat16", steps=20,
                batch={"124M": 32}, other_batch=16,
                fields={"scan_unroll": 24, "loss_chunks": 8}),
}
NAMED_SIZES = DEFAULTS["gpu"]["sizes"]


def run_side(side: str, argument: str, caches: Path) -> dict[str, Any]:
    """Runs one process of a side; returns its last line, or `error` with the reason of its failure.

    Args:
        caches: folder of the side's compilation caches.
    """
    command = {"ours": [sys.executable, "-m", "scripts.bench.train_step"],
               "peer": [flags.FLAGS.peer_python, "-m", "scripts.bench.peer_llama"]}[side]
    # Both sides take their memory in huge pages, as scripts/environment.sh sets it.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ, "HF_HUB_OFFLINE": "1",
                   "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
                   "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
                   "TRITON_CACHE_DIR": str(caches / "triton")}
    try:
        done = subprocess.run([*command, argument], cwd=ROOT, env=environment,
                              capture_output=True, text=True, timeout=PROCESS_SECS)
    except OSError as error:
        raise UserError(f"--peer_python={command[0]}", f"cannot be run ({error.strerror})",
                        "give a Python that has torch and transformers") from None
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {PROCESS_SECS} s"}
    if done.returncode == -9:   # SIGKILL, by Linux when memory runs out
        return OUT_OF_MEMORY
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def run_work(side: str, work: Workload, caches: Path) -> dict[str, Any]:
    """Runs one measurement, whose clock starts now."""
    return run_side(side, dataclasses.replace(work, started=time.time()).to_json(), caches)


def take_turns(works: Mapping[str, Workload],
               caches: Path) -> tuple[dict[str, Workload], dict[str, list[dict[str, Any]]]]:
    """Runs all turns of both sides; starts again with half the batch when memory runs out.

    Returns:
        The workloads that ran in the end, and the results of each side's processes.
    """
    works = dict(works)
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in works}
    for turn in range(NUM_TURNS):
        for side, work in works.items():
            if results[side] and "error" in results[side][-1]:
                continue
            log(f"{work.size}: {side}, turn {turn + 1}, {work.batch_size} x {work.row_length} "
                f"tokens {work.fields or ''}")
            result = run_work(side, work, caches / f"{work.size}-{work.batch_size}-{side}")
            if result == OUT_OF_MEMORY and work.batch_size > 1:
                halved = {name: dataclasses.replace(w, batch_size=max(w.batch_size // 2, 1))
                          for name, w in works.items()}
                log(f"{work.size}: {side} ran out of memory, halving the batch of both")
                return take_turns(halved, caches)
            if "error" in result:
                log(f"{work.size}: {side}: {result['error']}")
            results[side].append(result)
    return works, results


def figures(work: Workload, turns: list[dict[str, Any]], device: str,
            matmul_flops_per_sec: float) -> dict[str, Any]:
    """Summarises a side's turns.

    Args:
        matmul_flops_per_sec: the fastest square product that was measured in this dtype.
    """
    if "error" in turns[-1]:
        return turns[-1] | {"batch_size": work.batch_size}
    step_secs = [secs for turn in turns for secs in turn["step_secs"]]
    speed = work.num_tokens / statistics.median(step_secs)
    config = make_config(work.size)
    flops = {"causal": train_flops_per_token(
                 config, work.row_length / work.documents_per_row, "causal"),
             "full": train_flops_per_token(config, work.row_length, "full")}
    peak = peak_flops(device, work.dtype)
    last = turns[-1]
    rows = {"batch_size": work.batch_size, "fields": work.fields,
            "tokens_per_sec": round(speed, 1),
            "step_secs": statistics.median(step_secs),
            "slowest_step_secs": max(step_secs), "fastest_step_secs": min(step_secs)}
    for name, per_token in flops.items():
        rows[f"mfu_{name}"] = round(speed * per_token / peak, 4) if peak else None
    rows["matmul_frac"] = round(speed * flops["causal"] / matmul_flops_per_sec, 4)
    for temperature, turn in zip(("cold", "warm"), turns):
        rows |= {f"compile_{temperature}_secs": round(turn["compile_secs"], 2),
                 f"start_{temperature}_secs": round(turn["start_secs"], 2)}
    rows["peak_memory_bytes"] = max(turn["peak_memory_bytes"] for turn in turns)
    return rows | {name: last[name] for name in
                   ("num_params", "first_loss", "last_loss", "attention", "data_wait_frac",
                    "fetch_frac", "loop_frac", "profile", "versions") if name in last}


def check_equal_work(sides: Mapping[str, Mapping[str, Any]], vocab_size: int) -> None:
    """Checks that both sides have equally many parameters and near-uniform initial predictions.

    Raises:
        UserError: they do not, so that a ratio would be meaningless.
    """
    counts = {side: row["num_params"] for side, row in sides.items() if "num_params" in row}
    if len(set(counts.values())) > 1:
        raise UserError(f"parameters {counts}", "differ", "give both sides the same shape")
    for side, row in sides.items():
        loss, guess = row.get("first_loss"), math.log(vocab_size)
        if loss is not None and abs(loss - guess) > MAX_FIRST_LOSS_ERROR * guess:
            raise UserError(f"{side}: first loss {loss:.3f}", f"is not near ln V = {guess:.3f}",
                            "look at initialisation and targets")


def bench_size(start: Workload, machine: Mapping[str, Any], caches: Path) -> dict[str, Any]:
    """Measures both sides, prints their lines; returns the figures."""
    works = {"ours": start, "peer": dataclasses.replace(start, fields={})}
    result: dict[str, Any] = {"row_length": start.row_length, "dtype": start.dtype,
                              "documents_per_row": start.documents_per_row,
                              "asked_batch_size": start.batch_size}
    works, results = take_turns(works, caches)
    rate = max(row[f"{start.dtype}_matmul_flops_per_sec"]
               for row in machine["rooflines"].values())
    sides = {side: figures(works[side], turns, machine["device"], rate)
             for side, turns in results.items()}
    check_equal_work(sides, start.shape["V"])
    for side, row in sides.items():
        print(f"{start.size:5} {side:5} {_line(row)}", flush=True)
    speeds = [sides[side].get("tokens_per_sec") for side in SIDES]
    result |= sides | {"ratio": round(speeds[0] / speeds[1], 3) if all(speeds) else None}
    print(f"{start.size:5} ours / peer: {result['ratio']}", flush=True)
    return result


def _line(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"not measured: {row['error']}"
    mfu = "" if row["mfu_causal"] is None else (
        f"MFU {row['mfu_causal']:.1%} causal, {row['mfu_full']:.1%} full, ")
    compiled = " / ".join(f"{row[key]:.0f}" for key in ("compile_cold_secs", "compile_warm_secs")
                          if key in row)
    line = (f"{row['tokens_per_sec']:>10,.0f} tokens/s, {mfu}{row['matmul_frac']:.1%} of the "
            f"matrix product, {row['batch_size']} rows, {row['peak_memory_bytes'] / 1e9:.1f} GB, "
            f"compiled in {compiled} s (cold / warm), {row['attention']} attention")
    if "profile" in row:
        profile = row["profile"]
        kinds = ", ".join(f"{name} {frac:.1%}" for name, frac in profile["kinds"].items())
        line += (f"\n  {profile['products_frac']:.1%} of the time in operations with a matrix "
                 f"product, idle {profile['idle_frac']:.1%}: {kinds}")
    return line


def measure_machine(caches: Path) -> dict[str, Any]:
    """The rooflines, by either side's library, and the device's kind."""
    rooflines = {side: run_side(side, "roofline", caches) for side in SIDES}
    if "error" in rooflines["ours"]:
        raise UserError("roofline", rooflines["ours"]["error"], "check that jax runs here")
    for side, row in list(rooflines.items()):
        if "error" in row:
            log(f"{side}: {row['error']}: install torch and transformers (pip install -e .[peers])"
                " or name their Python with --peer_python")
            del rooflines[side]
            continue
        print(f"{side:5} matrix product {row['float32_matmul_flops_per_sec'] / 1e9:,.0f} GFLOP/s "
              f"float32, {row['bfloat16_matmul_flops_per_sec'] / 1e9:,.0f} bfloat16; copy "
              f"{row['copy_bytes_per_sec'] / 1e9:,.0f} GB/s read and written", flush=True)
    ours = rooflines["ours"]
    return {"device": ours.pop("device"), "platform": ours.pop("platform"),
            "num_cpus": len(os.sched_getaffinity(0)), "rooflines": rooflines}


def make_workload(size: str, given: Any, defaults: Mapping[str, Any]) -> Workload:
    """The workload of a size, by flags and the platform's defaults.

    Args:
        given: the flags.

    Raises:
        UserError: a flag names an unknown size or dtype, or a field without a value.
    """
    if size not in SIZES:
        raise UserError(f"--sizes={size}", "is no known size", f"choose among {', '.join(SIZES)}")
    dtype = given.dtype or defaults["dtype"]
    if dtype not in COMPUTE_DTYPES:
        raise UserError(f"--dtype={dtype}", f"is none of {', '.join(COMPUTE_DTYPES)}",
                        "choose one of them")
    fields = dict(defaults["fields"])
    for pair in given.fields:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--fields={pair}", "has no value", "write --fields=remat=full")
        fields[name] = int(value) if value.isdecimal() else value
    return Workload(
        size=size, row_length=given.row_length or defaults["row_length"], dtype=dtype,
        batch_size=given.batch or defaults["batch"].get(size, defaults["other_batch"]),
        num_steps=given.steps or defaults["steps"], documents_per_row=given.documents_per_row,
        fields=fields, profile=given.profile)


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures, the ratios last."""
    for size in flags.FLAGS.sizes or NAMED_SIZES:
        make_workload(size, flags.FLAGS, DEFAULTS["gpu"])   # checks flags before measuring
    with tempfile.TemporaryDirectory() as scratch:
        machine = measure_machine(Path(scratch))
        defaults = DEFAULTS["cpu" if machine["platform"] == "cpu" else "gpu"]
        sizes = flags.FLAGS.sizes or defaults["sizes"]
        works = [make_workload(size, flags.FLAGS, defaults) for size in sizes]
        reason = "not asked for" if flags.FLAGS.sizes else f"too slow on {machine['device']}"
        results = {size: {"not_run": reason} for size in NAMED_SIZES if size not in sizes}
        for work in works:
            results[work.size] = bench_size(work, machine, Path(scratch))
            result = machine | {"sizes": results, "ratio": {
                size: row.get("ratio") for size, row in results.items()}}
            if flags.FLAGS.json:    # after each size, as a long run may be interrupted
                write_json(Path(flags.FLAGS.json), result)
    for size, row in results.items():
        if "not_run" in row:
            print(f"{size:5} not run: {row['not_run']}")
    return result


if __name__ == "__main__":
    flags.DEFINE_list("sizes", [], f"Among {', '.join(SIZES)}; on a CPU 124M by default.")
    flags.DEFINE_integer("row_length", None, "Inputs of a row.", lower_bound=2)
    flags.DEFINE_integer("batch", None, "Rows of a step.", lower_bound=1)
    flags.DEFINE_integer("documents_per_row", 1, "Documents packed into a row.", lower_bound=1)
    flags.DEFINE_string("dtype", None, f"Of matrix products: {', '.join(COMPUTE_DTYPES)}.")
    flags.DEFINE_integer("steps", None, "Steps timed in each turn.", lower_bound=2)
    flags.DEFINE_list("fields", [], "Of our Execution, e.g. remat=full,scan_unroll=4.")
    flags.DEFINE_string("peer_python", sys.executable, "Python with torch and transformers.")
    flags.DEFINE_bool("profile", False, "Trace our side's last steps: products against the rest.")
    flags.DEFINE_string("json", None, "File that gets the figures as well.")
    entry.run(main)
