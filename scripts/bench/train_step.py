"""Heartwood's side of `scripts.bench.train`: one measurement in a process of its own.

    python -m scripts.bench.train_step WORKLOAD     # JSON of a `train_workload.Workload`
    python -m scripts.bench.train_step roofline     # matrix product and copy in XLA
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data.batch import Batch, make_row, stack
from model.attention.backends import choose_backend
from model.attention.kind import kind_of
from model.execution import Execution
from model.families.registry import init, num_params
from model.parallel.sharding import make_mesh
from scripts.bench.train_profile import profile_step
from scripts.bench.train_workload import (
    ADAMW,
    NUM_WARMUP_STEPS,
    OUT_OF_MEMORY,
    Workload,
    fastest_secs,
    make_config,
    make_rows,
    roofline_sizes,
    summarise,
)
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.setup import Setup
from train.state import TrainState
from train.step import LossFn, TrainStep, make_state, make_train_step, place_batch
from train.watch.memory import peak_memory_bytes

NUM_BARE_STEPS = 8
OPTIMIZER = dict(ADAMW, name="adamw", mu_dtype="float32", lr_multipliers={}, decay_multipliers={},
                 schedule="constant", warmup_steps=0, final_frac=0.0,
                 momentum=0.95, adam_learning_rate=3e-4)    # those two for other optimizers


def make_setup(work: Workload) -> Setup:
    """The workload's model, on one device."""
    return Setup(make_config(work.size), Execution(compute_dtype=work.dtype, **work.fields),
                 make_mesh({"data": 1}, jax.devices()[:1]))


def make_training(setup: Setup, num_steps: int = 1000) -> tuple[TrainState, TrainStep]:
    """The initial state and training's own step, with AdamW."""
    params = jax.jit(partial(init, setup.config))(jax.random.key(0))
    loss_fn = partial(next_token_loss, config=setup.config, execution=setup.execution)
    return make_optimizing_step(params, loss_fn, setup.mesh, num_steps)


def make_optimizing_step(params: Any, loss_fn: LossFn, mesh: Mesh,
                         num_steps: int = 1000) -> tuple[TrainState, TrainStep]:
    """As `make_training`, of any parameters and their loss."""
    optimizer = make_optimizer(ConfigDict(OPTIMIZER), num_steps)
    state = make_state(params, optimizer, jax.random.key(1), mesh)
    return state, make_train_step(loss_fn, optimizer, state, mesh)


def make_batches(work: Workload) -> list[Batch]:
    """Packed batches on the host."""
    ones_M = np.ones(work.row_length + 1, np.float32)
    return [stack([make_row(tokens_M, ones_M, segments_M)
                   for tokens_M, segments_M in zip(tokens_BM, segments_BM)])
            for tokens_BM, segments_BM in make_rows(work)]


def run_steps(train_step: Callable, state: Any, batches: Iterator[Batch], num_steps: int,
              mesh: Any) -> tuple[Any, list[dict[str, float]]]:
    """Runs steps as the training loop does: metrics are fetched one step late.

    Returns:
        The state, and for each step its loss, the time of its end (`end`), and the host's seconds
        for placing its batch (`data_secs`) and fetching its finished metrics (`fetch_secs`).
    """
    done, pending = [], None

    def fetch() -> None:
        jax.block_until_ready(pending)
        ready = time.perf_counter()
        loss = {name: float(value) for name, value in jax.device_get(pending).items()}["loss"]
        end = time.perf_counter()
        done.append({"loss": loss, "end": end, "fetch_secs": end - ready,
                     "data_secs": data_secs[len(done)]})

    data_secs = []
    for _ in range(num_steps):
        began = time.perf_counter()
        batch = place_batch(next(batches), mesh)
        data_secs.append(time.perf_counter() - began)
        state, metrics = train_step(state, batch)
        if pending is not None:
            fetch()
        pending = metrics
    fetch()
    return state, done


def bare_step_secs(train_step: Callable, state: Any, batch: Batch) -> tuple[Any, float]:
    """The state, and seconds of a step without loading or fetching."""
    state, metrics = train_step(state, batch)
    jax.block_until_ready(metrics)
    began = time.perf_counter()
    for _ in range(NUM_BARE_STEPS):
        state, metrics = train_step(state, batch)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - began) / NUM_BARE_STEPS


def measure(work: Workload) -> dict[str, Any]:
    """Trains on synthetic batches with training's own step; returns `summarise`'s figures."""
    setup = make_setup(work)
    state, train_step = make_training(setup)
    mesh = setup.mesh
    hosted = make_batches(work)
    with jax.set_mesh(mesh):
        jax.block_until_ready(state)
        began = time.perf_counter()
        state, first = run_steps(train_step, state, iter(hosted), 1, mesh)
        first_step_secs, start_secs = time.perf_counter() - began, time.time() - work.started
        state, done = run_steps(train_step, state, cycle(hosted),
                                NUM_WARMUP_STEPS + work.num_steps, mesh)
        placed = place_batch(hosted[0], mesh)
        state, bare_secs = bare_step_secs(train_step, state, placed)
        peak_bytes = peak_memory_bytes()
        profile = {"profile": profile_step(train_step, state, placed)} if work.profile else {}
    timed = done[NUM_WARMUP_STEPS:]
    ends = [row["end"] for row in done[NUM_WARMUP_STEPS - 1:]]
    step_secs = statistics.median(np.diff(ends))
    return summarise(work, ends, first_step_secs, {
        "start_secs": start_secs, "num_params": num_params(setup.config),
        "first_loss": first[0]["loss"], "last_loss": done[-1]["loss"],
        "attention": choose_backend(kind_of(setup.config), setup.execution),
        "peak_memory_bytes": peak_bytes, **profile,
        "data_wait_frac": statistics.median(r["data_secs"] for r in timed) / step_secs,
        "fetch_frac": statistics.median(r["fetch_secs"] for r in timed) / step_secs,
        "bare_step_secs": bare_secs, "loop_frac": 1 - bare_secs / step_secs,
        "versions": {"jax": jax.__version__}})


def roofline() -> dict[str, Any]:
    """FLOP/s of a square matrix product of random numbers, bytes/s of a copy, on this device."""
    device = jax.devices()[0]
    side, _ = roofline_sizes(device.platform == "cpu")
    multiply = jax.jit(jnp.matmul)
    rates: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
        secs = fastest_secs(lambda a=a, b=b: multiply(a, b).block_until_ready())
        rates[f"{dtype}_matmul_flops_per_sec"] = 2 * side**3 / secs
    rates["copy_bytes_per_sec"] = copy_bytes_per_sec()
    return rates | {"platform": device.platform, "device": device.device_kind}


def copy_bytes_per_sec() -> float:
    """Bytes that a copy on this device reads and writes, per second."""
    _, num_bytes = roofline_sizes(jax.default_backend() == "cpu")
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.ones(num_bytes // 4)

    def copy() -> None:     # in place: new arrays would measure page allocation
        nonlocal x
        x = add(x).block_until_ready()

    return 2 * num_bytes / fastest_secs(copy)


def main(argument: str) -> dict[str, Any]:
    """Runs the mode that the argument selects."""
    if argument == "roofline":
        return roofline()
    try:
        return measure(Workload(**json.loads(argument)))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return OUT_OF_MEMORY


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
