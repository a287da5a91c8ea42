"""Heartwood's side of `scripts.bench.generate`.

    python -m scripts.bench.generate_ours     # requests of `generate_engine` on stdin
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from eval.respond.loaded import load_model
from eval.respond.local import make_engine
from model.execution import Execution
from model.families.registry import num_params
from model.generation.engine import Engine
from model.generation.requests import Budget, Request
from model.generation.sampling import Sampling
from scripts.bench.generate_engine import serve
from scripts.bench.train_workload import fastest_secs
from train.watch.compilation import Compilations

ROOFLINE_SHAPE = (8_192, 16_384)    # of a float32 matrix of 512 MB, which no cache holds
BYTES_PER_WEIGHT = {"float32": 4.0, "int8": 1.0, "int4": 0.5}

CHUNK_TOKENS = 16


class Ours:
    """See `scripts.bench.generate_engine`; beside its requests, those about ours alone."""

    def __init__(self) -> None:
        self._compilations = Compilations()

    def load(self, model: str, weights: str, num_threads: int) -> dict[str, Any]:
        """Loads a model directory; XLA uses all cores of the process, whose number is the peers'.

        Raises:
            UserError: the kind of weights is unknown, or the folder is no model directory.
        """
        self._model = load_model(Path(model), Execution(), weights=weights)
        return {"weight_bytes": self._model.weight_bytes, "versions": {"jax": jax.__version__}}

    def prefill(self, prompt: Sequence[int]) -> float:
        """See `Engine.prefill`: a new engine, which holds nothing of earlier prompts."""
        self._reader = self._make_engine(1, len(prompt) + 1)
        return self._time_first_token(self._reader, prompt)

    def prefill_cached(self, prompt: Sequence[int]) -> float:
        """The same for a prompt that the engine of `prefill` has just read."""
        return self._time_first_token(self._reader, prompt)

    def decode(self, prompts: Sequence[Sequence[int]], num_tokens: int, capacity: int) -> float:
        """See `Engine.decode`; the first chunk, which follows the prompts, is not counted."""
        engine = self._make_engine(len(prompts), capacity)
        self._submit(engine, prompts, Sampling(CHUNK_TOKENS + num_tokens, temperature=0))
        engine.step()
        began = time.perf_counter()
        while engine.is_running:
            engine.step()
        return time.perf_counter() - began

    def generate_otherwise(self, prompts: Sequence[Sequence[int]], num_tokens: int,
                           capacity: int) -> None:
        """Generates at another length than `decode` has, and with other settings of sampling.

        Neither should compile a program.
        """
        engine = self._make_engine(len(prompts), capacity)
        self._submit(engine, [prompt[:-1] for prompt in prompts],
                     Sampling(num_tokens - 1, temperature=0.7, top_k=50, top_p=0.9, min_p=0.01),
                     stops=(3, 5), seed=1)
        while engine.is_running:
            engine.step()

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """The new tokens of prompts of any lengths, in one batch."""
        engine = self._make_engine(len(prompts), max(map(len, prompts)) + num_tokens)
        sampling = Sampling(num_tokens, temperature=0)
        return [completion.tokens for completion in
                engine.run([Request(tuple(prompt), sampling) for prompt in prompts])]

    def count_compilations(self) -> int:
        """Programs that this process has compiled until now."""
        return self._compilations.summary()["num_programs_compiled"]

    def roofline(self) -> dict[str, Any]:
        """Bytes/s of reading memory, and the tokens/s that reading every weight once allows.

        The limit of a dtype counts its weights without scales, and no keys and values.
        """
        config = self._model.config
        rates = measure_reads()
        num_read = num_params(config) - (0 if config.tied else config.V * config.D)
        limits = {name: max(rates.values()) / (num_read * size)
                  for name, size in BYTES_PER_WEIGHT.items()}
        return {"device": jax.devices()[0].device_kind, "bytes_per_sec": rates,
                "weights_read": num_read, "limit_tokens_per_sec": limits}

    def _make_engine(self, num_slots: int, capacity: int) -> Engine:
        """A new engine; engines of one shape share their programs."""
        return make_engine(self._model, num_slots=num_slots, capacity=capacity + CHUNK_TOKENS,
                           budget=Budget(CHUNK_TOKENS))

    def _submit(self, engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling,
                **settings: Any) -> None:
        for prompt in prompts:
            engine.submit(Request(tuple(prompt), sampling, **settings))

    def _time_first_token(self, engine: Engine, prompt: Sequence[int]) -> float:
        began = time.perf_counter()
        self._submit(engine, [prompt], Sampling(1, temperature=0))
        engine.step()
        return time.perf_counter() - began


def measure_reads() -> dict[str, float]:
    """Bytes/s of a sum over a large array, and of its product with a vector."""
    matrix_DF = jnp.ones(ROOFLINE_SHAPE)
    x_F = jnp.ones(ROOFLINE_SHAPE[1])
    total = jax.jit(jnp.sum)
    multiply = jax.jit(lambda matrix_DF, x_F: jnp.einsum("DF,F->D", matrix_DF, x_F))
    runs = {"sum": lambda: total(matrix_DF).block_until_ready(),
            "matrix_vector": lambda: multiply(matrix_DF, x_F).block_until_ready()}
    return {name: matrix_DF.nbytes / fastest_secs(run) for name, run in runs.items()}


if __name__ == "__main__":
    serve(Ours())
