"""A run compiles each program once, and one that does not is noticed."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core.artifacts import ROOT
from data.batch import Batch
from model.parallel.sharding import make_mesh
from train.loss import next_token_loss
from train.step import make_state, make_train_step, place_batch
from train.watch.compilation import Compilations
from train.watch.memory import peak_memory_bytes


@pytest.fixture(scope="module")
def run(config, execution, params, batch):
    """A function that takes steps over given batches and evaluates after every second one."""
    mesh = make_mesh({"data": 4, "fsdp": 2})
    optimizer = optax.adamw(1e-3)
    key = jax.random.key(0)
    state = make_state(jax.tree.map(np.array, params), optimizer, key, mesh)
    loss_fn = partial(next_token_loss, config=config, execution=execution)
    train_step = make_train_step(loss_fn, optimizer, state, mesh)
    evaluate = jax.jit(loss_fn)

    def take(batches):
        nonlocal state
        with jax.set_mesh(mesh):
            for number, taken in enumerate(batches, start=1):
                state, metrics = train_step(state, place_batch(taken, mesh))
                if number % 2 == 0:
                    evaluate(state.params, place_batch(taken, mesh), key=key)
            jax.block_until_ready(metrics)

    return take


def _shorten(batch: Batch) -> Batch:
    return jax.tree.map(lambda leaf_BL: leaf_BL[:, :16], batch)


def test_each_program_is_compiled_exactly_once_and_a_new_shape_is_noticed(run, batch):
    with Compilations() as first:
        run([batch] * 4)
    assert {name: first.programs[name].num_compiled
            for name in ("jit(train_step)", "jit(next_token_loss)")} == {
                "jit(train_step)": 1, "jit(next_token_loss)": 1}
    with Compilations() as again:
        run([batch] * 4)
    assert again.programs == {}, "steps and evaluations after the first must compile nothing"
    with Compilations() as changed:
        run([_shorten(batch), batch])
    assert changed.programs["jit(train_step)"].num_compiled == 1
    assert "jit(next_token_loss)" not in changed.programs


def test_each_shape_is_a_compilation_of_its_own():
    double = jax.jit(lambda x: x * 2)
    with Compilations() as compilations:
        for length in (3, 4, 3, 5):
            double(np.zeros(length, np.float32))
    assert compilations.programs["jit(<lambda>)"].num_compiled == 3


def test_seconds_are_counted_and_passed_on():
    booked = []
    with Compilations(on_compiled=booked.append) as compilations:
        jax.jit(lambda x: jnp.cos(x) * 3)(1.0)
    found = compilations.summary()
    assert found["num_programs_compiled"] == len(booked) >= 1
    assert found["compile_secs"] == pytest.approx(sum(booked)) and min(booked) > 0
    assert compilations.line().startswith(f"compiled {len(booked)} programs in ")


def test_nothing_is_counted_after_the_end():
    with Compilations() as compilations:
        pass
    jax.jit(lambda x: jnp.sin(x) * 5)(1.0)
    assert compilations.programs == {}


CODE = """
import jax, sys
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from train.watch.compilation import Compilations
with Compilations() as compilations:
    for name in ("double", "square"):
        def run(x): return x * 2 if name == "double" else x * x
        run.__name__ = name
        jax.jit(run)(1.0)
print(compilations.line().split(" s ")[1])
for name in ("jit(double)", "jit(square)"):
    print(compilations.programs[name].num_compiled, compilations.programs[name].num_cached)
"""


def test_a_second_process_takes_its_programs_from_the_cache(tmp_path):
    def lines():
        done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, check=True,
                              capture_output=True, text=True)
        return done.stdout.splitlines()

    assert lines() == ["(0 from the cache)", "1 0", "1 0"]
    warm = lines()
    assert warm[1:] == ["1 1", "1 1"] and warm[0] != "(0 from the cache)"


def test_memory_of_a_device_or_else_of_the_process(monkeypatch):
    assert 50e6 < peak_memory_bytes() < 50e9     # CPU devices keep no count

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(7)])
    assert peak_memory_bytes() == 7
