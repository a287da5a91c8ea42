"""The peer of `scripts.bench.generate`: `generate` of transformers.

    PYTHON -m scripts.bench.peer_generate     # requests of `generate_engine` on stdin
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from scripts.bench.generate_engine import serve


class Clock:
    """A streamer of `generate` that notes when the prompt, then each new token, is known."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: Any) -> None:
        """Called by `generate` once with the prompts, then with every step's tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called by `generate` at the end."""


class Transformers:
    """See `generate_engine.Engine`."""

    def load(self, model: str, weights: str, num_threads: int) -> dict[str, Any]:
        """Loads a folder of the hub's format; `weights` is the name of a dtype of torch."""
        import torch
        import transformers

        torch.set_num_threads(num_threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, weights)).eval()
        self._model.generation_config.eos_token_id = None   # nothing ends a row early
        size = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return {"weight_bytes": size, "versions": {"torch": torch.__version__,
                                                   "transformers": transformers.__version__}}

    def prefill(self, prompt: Sequence[int]) -> float:
        """See `Engine.prefill`."""
        began = time.perf_counter()
        self._generate([prompt], 1)
        return time.perf_counter() - began

    def decode(self, prompts: Sequence[Sequence[int]], num_tokens: int, capacity: int) -> float:
        """See `Engine.decode`; the cache grows with the text, whatever the capacity."""
        clock = Clock()
        self._generate(prompts, 1 + num_tokens, clock)
        _, first, *_, last = clock.times
        return last - first

    def greedy(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """The new tokens of prompts of any lengths, in one batch, padded on the left."""
        return self._generate(prompts, num_tokens)

    def _generate(self, prompts: Sequence[Sequence[int]], num_tokens: int,
                  clock: Clock | None = None) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        tokens_BL = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts)])
        mask_BL = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
        new_BL = self._model.generate(
            input_ids=tokens_BL, attention_mask=mask_BL, max_new_tokens=num_tokens,
            do_sample=False, pad_token_id=0, streamer=clock)[:, longest:]
        assert new_BL.shape[1] == num_tokens, "a row ended early"
        return new_BL.tolist()


if __name__ == "__main__":
    serve(Transformers())
