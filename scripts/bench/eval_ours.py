"""Our side of `scripts.bench.eval`: the scorer of `eval`, with nothing kept between requests.

    python -m scripts.bench.eval_ours     # requests of `scripts.bench.generate_engine` on stdin
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from eval.measures.choices import encode_pairs
from eval.measures.continuations import score_continuations
from eval.respond.loaded import load_model
from eval.respond.local import begin_text
from model.execution import Execution
from scripts.bench.generate_engine import serve


class Ours:
    """Log-likelihoods of continuations."""

    def load(self, folder: str, batch_tokens: int) -> dict[str, Any]:
        """Opens the model in float32 on a CPU, in bfloat16 on a GPU."""
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        self._model = load_model(Path(folder), Execution(compute_dtype=dtype, loss_chunks=4))
        self._batch_tokens = batch_tokens
        return {"versions": {"jax": jax.__version__}}

    def score(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Log-probability of each continuation after its context, whether it is greedy; seconds."""
        began = time.perf_counter()
        tokenizer = self._model.tokenizer
        asked = encode_pairs(tokenizer, [tuple(pair) for pair in pairs], begin_text(tokenizer))
        scores = score_continuations(self._model, asked, batch_tokens=self._batch_tokens)
        secs = time.perf_counter() - began
        return {"secs": secs, "logps_nats": [score.logp_nats for score in scores],
                "is_greedy": [score.is_greedy for score in scores]}


if __name__ == "__main__":
    serve(Ours())
