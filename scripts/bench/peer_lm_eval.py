"""The peer of `scripts.bench.eval`: lm-evaluation-harness' model class on a folder of the hub.

    PYTHON -m scripts.bench.peer_lm_eval     # requests of `scripts.bench.generate_engine` on stdin
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from scripts.bench.generate_engine import serve


class LmEval:
    """Log-likelihoods of continuations by `HFLM`, with what it does by default."""

    def load(self, folder: str, num_threads: int, batch_size: str) -> dict[str, Any]:
        """Opens the model in float32 on a CPU, in bfloat16 on a GPU."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import lm_eval
        import torch
        import transformers
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(num_threads)
        transformers.logging.set_verbosity_error()
        on_gpu = torch.cuda.is_available()
        self._model = HFLM(pretrained=folder, device="cuda" if on_gpu else "cpu",
                           dtype="bfloat16" if on_gpu else "float32", batch_size=batch_size)
        return {"versions": {"lm_eval": lm_eval.__version__, "torch": torch.__version__,
                             "transformers": transformers.__version__}}

    def score(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Log-probability of each continuation after its context, whether it is greedy; seconds."""
        from lm_eval.api.instance import Instance

        requests = [Instance("loglikelihood", {}, tuple(pair), n) for n, pair in enumerate(pairs)]
        began = time.perf_counter()
        scores = self._model.loglikelihood(requests, disable_tqdm=True)
        secs = time.perf_counter() - began
        return {"secs": secs, "logps_nats": [float(logp) for logp, _ in scores],
                "is_greedy": [bool(is_greedy) for _, is_greedy in scores]}


if __name__ == "__main__":
    serve(LmEval())
