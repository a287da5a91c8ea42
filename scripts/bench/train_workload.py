"""Workloads of the training benchmarks: model shapes, batches, timing.

Needs only numpy and the standard library, because the peer imports it in an environment where
Heartwood's packages need not be installed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model.config import ModelConfig

VOCAB_SIZE = 50_304     # GPT-2's, rounded up to a multiple of 128

# Sizes are named by their parameters in matrix products: all but the embedding.
SIZES = {
    "tiny": dict(V=512, D=64, N=2, H=4, G=2, K=16, F=192),      # for tests
    "30M": dict(V=8_192, D=512, N=7, H=8, G=8, K=64, F=1_408),
    "124M": dict(V=VOCAB_SIZE, D=768, N=12, H=12, G=12, K=64, F=2_048),
    "350M": dict(V=VOCAB_SIZE, D=1_024, N=24, H=16, G=16, K=64, F=2_752),
    "1.3B": dict(V=VOCAB_SIZE, D=2_048, N=24, H=16, G=16, K=128, F=5_504),
}


def make_config(size: str) -> ModelConfig:
    """The model of a size, without norms of queries and keys, as Llama has none."""
    return ModelConfig(**SIZES[size], qk_norm=False)


# AdamW on both sides: arXiv 1711.05101 with the numbers of arXiv 2005.14165.
ADAMW = dict(learning_rate=3e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)

NUM_WARMUP_STEPS, NUM_BATCHES = 3, 4

OUT_OF_MEMORY = {"error": "out of memory"}


@dataclasses.dataclass(frozen=True)
class Workload:
    """One measurement, as passed to its process.

    Attributes:
        size: key of `SIZES`.
        batch_size: rows of a step; there is no accumulation.
        row_length: inputs of a row.
        documents_per_row: documents of equal length in a row. With one, both sides use their
            fastest causal kernel.
        dtype: dtype of matmuls; master weights and optimizer state are float32.
        num_steps: steps that are timed.
        fields: of our `Execution`, e.g. remat; for the peer, `attention`.
        profile: whether Heartwood's side traces some steps at the end.
        started: `time.time()` when the process was started, in seconds.
    """

    size: str
    batch_size: int
    row_length: int
    dtype: str
    num_steps: int
    documents_per_row: int = 1
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    profile: bool = False
    started: float = dataclasses.field(default_factory=time.time)

    @property
    def shape(self) -> dict[str, int]:
        """The model's sizes by letter."""
        return SIZES[self.size]

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.row_length

    def to_json(self) -> str:
        """JSON, for the command line."""
        return json.dumps(dataclasses.asdict(self))


def make_rows(work: Workload) -> list[tuple[np.ndarray, np.ndarray]]:
    """The steps' batches: (tokens_BM, segments_BM) with M = L+1, the same on both sides."""
    rng = np.random.default_rng(0)
    shape = (work.batch_size, work.row_length + 1)
    segment_M = 1 + np.arange(shape[1]) * work.documents_per_row // shape[1]
    return [(rng.integers(0, work.shape["V"], shape), np.broadcast_to(segment_M, shape))
            for _ in range(NUM_BATCHES)]


def fastest_secs(run: Callable[[], Any], num_runs: int = 7) -> float:
    """Seconds of the fastest `run`, which must wait for its result."""
    run()
    secs = []
    for _ in range(num_runs):
        began = time.perf_counter()
        run()
        secs.append(time.perf_counter() - began)
    return min(secs)


def roofline_sizes(on_cpu: bool) -> tuple[int, int]:
    """Side of the square matrices, and bytes of the copied array."""
    return (2048, 1 << 28) if on_cpu else (8192, 1 << 32)


def summarise(work: Workload, ends: Sequence[float], first_step_secs: float,
              measured: dict[str, Any]) -> dict[str, Any]:
    """Figures of one process.

    Args:
        ends: time of the end of the last warm-up step and of each timed step.
        first_step_secs: of the first step, which compiles.
        measured: other figures of the side.
    """
    secs = np.diff(ends).tolist()
    step_secs = statistics.median(secs)
    return {"step_secs": secs, "tokens_per_sec": work.num_tokens / step_secs,
            "compile_secs": max(first_step_secs - step_secs, 0.0), **measured}
