"""The peer of `scripts.bench.generate` in C++: llama.cpp, through the package llama-cpp-python.

    PYTHON -m scripts.bench.peer_llama_cpp    # requests of `generate_engine` on stdin

Batches go through llama.cpp's own functions, because the package's class knows no batch of
sequences; the next token is chosen by llama.cpp's greedy sampler.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from scripts.bench.generate_engine import serve

BATCH_TOKENS = 512      # that one call reads, llama.cpp's own default
Entry = tuple[int, int, int, bool]      # token, its position, its row, whether a token follows


class LlamaCpp:
    """See `generate_engine.Engine`."""

    def load(self, model: str, weights: str, num_threads: int) -> dict[str, Any]:
        """Loads a GGUF file, with the weights that it holds."""
        import llama_cpp

        self._api, self._num_threads = llama_cpp, num_threads
        self._log = llama_cpp.llama_log_callback(lambda *_: None)   # kept alive: C calls it
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {model}")
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._sampler = llama_cpp.llama_sampler_init_greedy()
        return {"weight_bytes": llama_cpp.llama_model_size(self._model),
                "versions": {"llama-cpp-python": llama_cpp.__version__}}

    def prefill(self, prompt: Sequence[int]) -> float:
        """See `Engine.prefill`; making the context is not counted."""
        context = self._open(1, len(prompt) + 1)
        began = time.perf_counter()
        self._read(context, prompt, row=0)
        secs = time.perf_counter() - began
        self._api.llama_free(context)
        return secs

    def decode(self, prompts: Sequence[Sequence[int]], num_tokens: int, capacity: int) -> float:
        """See `Engine.decode`."""
        context = self._open(len(prompts), capacity)
        tokens = [self._read(context, prompt, row) for row, prompt in enumerate(prompts)]
        length = len(prompts[0])
        began = time.perf_counter()
        for position in range(length, length + num_tokens):
            tokens = self._run(context, [(token, position, row, True)
                                         for row, token in enumerate(tokens)])
        secs = time.perf_counter() - began
        self._api.llama_free(context)
        return secs

    def _open(self, num_rows: int, capacity: int) -> Any:
        """An empty context of `num_rows` sequences of at most `capacity` tokens."""
        params = self._api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_rows * capacity, num_rows
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._num_threads
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError(f"llama.cpp makes no context of {params.n_ctx} tokens")
        return context

    def _read(self, context: Any, prompt: Sequence[int], row: int) -> int:
        """Reads a prompt; returns its next token."""
        entries = [(token, position, row, position == len(prompt) - 1)
                   for position, token in enumerate(prompt)]
        for start in range(0, len(entries), BATCH_TOKENS):
            tokens = self._run(context, entries[start:start + BATCH_TOKENS])
        return tokens[0]

    def _run(self, context: Any, entries: Iterable[Entry]) -> list[int]:
        """Reads tokens; returns the next token of each entry that asks for one."""
        batch, asked = self._batch, []
        for index, (token, position, row, is_followed) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = is_followed
            asked += [index] * is_followed
        batch.n_tokens = index + 1
        if status := self._api.llama_decode(context, batch):
            raise ValueError(f"llama_decode returned {status}")
        return [self._api.llama_sampler_sample(self._sampler, context, index) for index in asked]


if __name__ == "__main__":
    serve(LlamaCpp())
