"""Our side of `scripts.bench.align`: the losses of `align`, and training's own step.

    python -m scripts.bench.align_ours     # requests of `scripts.bench.generate_engine` on stdin
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from align.losses.preference import Settings, preference_loss
from align.preference_rows import PairRows, share_tokens
from align.reference import compute_reference
from data.batch import stack
from data.tokens.examples import TRAIN, Example, Examples, lay_out_examples, write_examples
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init
from model.parallel.sharding import make_mesh
from scripts.bench.align_workload import BETA, read_work
from scripts.bench.generate_engine import serve
from scripts.bench.train_step import make_optimizing_step
from train.loss import next_token_loss
from train.setup import Setup
from train.step import place_batch
from train.watch.memory import peak_memory_bytes


class Ours:
    """See `scripts.bench.align_turns.Trainer`."""

    def load(self, folder: str, task: str, batch_size: int, num_threads: int) -> dict[str, Any]:
        """Makes the step of a task, sft or dpo, and its batches; the reference is scored once."""
        del num_threads     # XLA takes the cores that the process may use
        work, setup = read_work(folder), make_bench_setup(read_work(folder)["shape"])
        params = jax.jit(partial(init, setup.config))(jax.random.key(0))
        rows = _rows(Path(folder) / task, task, work)
        if task == "dpo":
            rows.reference = compute_reference(params, rows, setup=setup, batch_size=batch_size,
                                               temperature=1.0)
        loss_fn = next_token_loss if task == "sft" else partial(
            preference_loss, settings=Settings(beta=BETA))
        loss_fn = partial(loss_fn, config=setup.config, execution=setup.execution)
        self._mesh = setup.mesh
        with jax.set_mesh(self._mesh):
            self._state, self._step = make_optimizing_step(params, loss_fn, self._mesh)
        batches = [stack([rows[i] for i in range(first, first + batch_size)])
                   for first in range(0, len(rows) - batch_size + 1, batch_size)]
        self._batches = itertools.cycle(
            batches if task == "sft" else [share_tokens(batch) for batch in batches])
        return {"versions": {"jax": jax.__version__}}

    def steps(self, count: int) -> dict[str, list[float]]:
        """Takes steps; gives the seconds and the loss of each."""
        secs, losses = [], []
        for batch in itertools.islice(self._batches, count):
            began = time.perf_counter()
            with jax.set_mesh(self._mesh):
                self._state, metrics = self._step(self._state, place_batch(batch, self._mesh))
            losses.append(float(metrics["loss"]))       # waits for the device
            secs.append(time.perf_counter() - began)
        return {"secs": secs, "losses": losses}

    def peak_bytes(self) -> int:
        """The most memory of the device so far; of the process on a CPU."""
        return peak_memory_bytes()


def make_bench_setup(shape: dict[str, int]) -> Setup:
    """A Llama of this shape, in float32 on a CPU and in bfloat16 elsewhere, on one device."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Setup(ModelConfig(**shape, qk_norm=False),
                 Execution(compute_dtype=dtype, scan_unroll=shape["N"]),
                 make_mesh({"data": 1}, jax.devices()[:1]))


def _rows(folder: Path, task: str, work: dict[str, Any]) -> Any:
    """Rows of preferred answers, or pairs."""
    sides = ("chosen",) if task == "sft" else ("chosen", "rejected")
    groups = ((TRAIN, [_example(pair["prompt"], pair[side]) for side in sides])
              for pair in work["pairs"])
    write_examples(folder, groups)
    examples = Examples(folder)
    if task == "dpo":
        return PairRows(examples, work["row_length"])
    return [lay_out_examples(examples[n], work["row_length"]) for n in range(len(examples))]


def _example(prompt: list[int], answer: list[int]) -> Example:
    weights = np.zeros(len(prompt) + len(answer), np.float32)
    weights[len(prompt):] = 1
    return Example([*prompt, *answer], weights)


if __name__ == "__main__":
    serve(Ours())
