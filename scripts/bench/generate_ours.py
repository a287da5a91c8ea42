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
import numpy as np

from core.errors import UserError
from eval.respond.loaded import load_model
from model.execution import Execution
from model.families.registry import make_cache, num_params
from model.generation.generate import decode, prefill
from scripts.bench.generate_engine import serve
from scripts.bench.train_workload import fastest_secs
from train.watch.compilation import Compilations

ROOFLINE_SHAPE = (8_192, 16_384)    # of a float32 matrix of 512 MB, which no cache holds
BYTES_PER_WEIGHT = {"float32": 4.0, "int8": 1.0, "int4": 0.5}

_choose = jax.jit(lambda logits_BV: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32))


class Ours:
    """See `generate_engine.Engine`; beside its requests, those about ours alone."""

    def __init__(self) -> None:
        self._compilations = Compilations()

    def load(self, model: str, weights: str, num_threads: int) -> dict[str, Any]:
        """Loads a model directory; XLA uses all cores of the process, whose number is the peers'.

        Raises:
            UserError: weights are not float32, or the folder is no model directory.
        """
        if weights != "float32":
            raise UserError(f"weights={weights}", "is no dtype that models are loaded in",
                            "choose float32")
        self._model = load_model(Path(model), Execution())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self._model.params))
        return {"weight_bytes": size, "versions": {"jax": jax.__version__}}

    def prefill(self, prompt: Sequence[int]) -> float:
        """See `Engine.prefill`: no prefix of the prompt may come from an earlier request."""
        began = time.perf_counter()
        self._start([prompt], len(prompt) + 1)
        return time.perf_counter() - began

    def prefill_cached(self, prompt: Sequence[int]) -> float | None:
        """The same for a prompt that an earlier request has left in the cache of prefixes.

        Returns:
            Seconds; None without such a cache.
        """
        return None

    def decode(self, prompts: Sequence[Sequence[int]], num_tokens: int, capacity: int) -> float:
        """See `Engine.decode`."""
        token_B, cache = self._start(prompts, capacity)
        began = time.perf_counter()
        self._draw(token_B, cache, num_tokens)
        return time.perf_counter() - began

    def generate_otherwise(self, prompts: Sequence[Sequence[int]], num_tokens: int,
                           capacity: int) -> None:
        """Generates at another length than `decode` has, and with other settings of sampling.

        Neither should compile a program.
        """
        token_B, cache = self._start([prompt[:-1] for prompt in prompts], capacity)
        self._draw(token_B, cache, num_tokens - 1)

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """The new tokens of prompts of any lengths, in one batch."""
        token_B, cache = self._start(prompts, max(map(len, prompts)) + num_tokens)
        return np.stack([token_B, *self._draw(token_B, cache, num_tokens - 1)], axis=1).tolist()

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

    def _start(self, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[Any, Any]:
        """The first new token of each prompt, and the cache."""
        lengths_B = np.array(list(map(len, prompts)), np.int32)
        prompts_BL = np.zeros((len(prompts), max(lengths_B)), np.int32)
        for row_L, prompt in zip(prompts_BL, prompts):
            row_L[:len(prompt)] = prompt
        config, execution = self._model.config, self._model.execution
        cache = make_cache(config, execution, len(prompts), capacity)
        logits_BV, cache = prefill(self._model.params, prompts_BL, lengths_B, cache,
                                   config=config, execution=execution)
        return _choose(logits_BV).block_until_ready(), cache

    def _draw(self, token_B: Any, cache: Any, num_tokens: int) -> list[np.ndarray]:
        """The tokens that follow `token_B`, a step each."""
        config, execution = self._model.config, self._model.execution
        drawn = []
        for _ in range(num_tokens):
            logits_BV, cache = decode(self._model.params, token_B, cache, config=config,
                                      execution=execution)
            token_B = _choose(logits_BV)
            drawn.append(np.asarray(token_B))
        return drawn


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
