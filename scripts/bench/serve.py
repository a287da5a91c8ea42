"""Benchmark of the server: requests at once, against the same weights one at a time.

    python -m scripts.bench.serve --model=runs/smollm2 --peer_python=.venv-peers/bin/python \\
        [--llama_python=/path/to/python]
    python -m scripts.bench.serve --model=runs/smollm2 --soak=10000

`bash scripts/real_model.sh` makes the model. `python -m serve.run` is started and, once it is
ready, asked by `--concurrency` clients, each of which sends its next request when the one before
is answered: chats of different lengths, streamed, greedy. Then `generate` of transformers answers
the same prompts one after another with the same float32 weights, and llama.cpp with its Q4_1 file
where `--llama_python` has llama-cpp-python. A peer's time is that of its prefill and of decoding as
many tokens. With `--soak` short requests are sent instead, and the server's memory before and after
them is compared; no peer runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from core import entry
from core.artifacts import ROOT, write_json
from core.errors import UserError
from core.progress import log
from data.chat import ask, render_prompt
from data.tokenizers.load import load_tokenizer
from scripts.bench.generate import export, find_gguf
from scripts.bench.generate_process import EngineProcess, EngineStopped
from scripts.bench.generate_prompts import make_texts
from scripts.bench.serve_load import percentiles, send_all, summarise

NUM_TEXTS = 20
SOAK_TOKENS = 4         # of the answers to short requests
NAME = "bench"          # of the model, for the server's clients


class Started(NamedTuple):
    """A server in a process of its own."""

    url: str
    process: int
    ready_secs: float


@contextlib.contextmanager
def started(model: Path, batch_size: int, context_tokens: int) -> Iterator[Started]:
    """Starts the server, and ends it with a signal after the block.

    Raises:
        UserError: it does not start.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.run", f"--model={NAME}={model}", "--port=0",
         f"--batch_size={batch_size}", f"--context_tokens={context_tokens}", "--max_queue=1024"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        found, line = None, "it wrote nothing"
        while found is None and (text := process.stderr.readline()):
            line = text.strip()
            found = re.search(r"(http://\S+)/v1, ready", line)
        if found is None:
            raise UserError(f"--model={model}", f"is not served ({line})", "name another model")
        yield Started(found[1], process.pid, time.monotonic() - began)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()


def make_bodies(number: int, num_tokens: int) -> list[dict[str, Any]]:
    """Requests for greedy chats, whose messages have different lengths."""
    texts = make_texts(NUM_TEXTS)
    return [_make_body(texts[place % NUM_TEXTS], num_tokens) for place in range(number)]


def make_short_bodies(number: int) -> list[dict[str, Any]]:
    """Requests of a few tokens, each with another message."""
    return [_make_body(f"What is {place} + 1?", SOAK_TOKENS) | {"temperature": 1, "seed": place}
            for place in range(number)]


def _make_body(text: str, num_tokens: int) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "temperature": 0,
            "max_tokens": num_tokens, "stream": True, "stream_options": {"include_usage": True}}


def memory_bytes(process: int) -> int:
    """Memory of a process that is not swapped out."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def soak(server: Started, number: int, concurrency: int) -> dict[str, Any]:
    """Sends short requests; compares the memory after the first tenth and after all of them."""
    bodies = make_short_bodies(number)
    first, secs = asyncio.run(send_all(server.url, bodies[:number // 10], concurrency))
    before = memory_bytes(server.process)
    rest, more_secs = asyncio.run(send_all(server.url, bodies[number // 10:], concurrency))
    after = memory_bytes(server.process)
    return summarise(first + rest, secs + more_secs) | {
        "memory_bytes_before": before, "memory_bytes_after": after,
        "growth_bytes": after - before}


def time_peer(command: Sequence[str], path: Path, weights: str, prompts: Sequence[Sequence[int]],
              num_tokens: int) -> dict[str, Any]:
    """Answers prompts one after another with a peer of `scripts.bench.generate`; the first one,
    once, beforehand.

    Returns:
        The same figures as of the server, or `error`.
    """
    with tempfile.TemporaryDirectory() as folder:
        peer = EngineProcess(command, Path(folder) / "log")
        try:
            peer.ask("load", model=str(path), weights=weights,
                     num_threads=len(os.sched_getaffinity(0)))
            rows = []
            for prompt in (prompts[0], *prompts):
                capacity = len(prompt) + num_tokens
                rows.append((peer.ask("prefill", prompt=prompt),
                             peer.ask("decode", prompts=[prompt], num_tokens=num_tokens - 1,
                                      capacity=capacity)))
        except EngineStopped as error:
            return {"error": str(error)}
        finally:
            peer.close()
    firsts, rests = zip(*rows[1:])
    secs = sum(firsts) + sum(rests)
    return {"requests": len(prompts), "secs": round(secs, 3),
            "tokens_per_sec": round(len(prompts) * num_tokens / secs, 2),
            "first_token_secs": percentiles(firsts),
            "between_tokens_secs": percentiles(np.divide(rests, num_tokens - 1))}


def time_peers(model: Path, given: Any, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The figures of the peers that were asked for."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.peer_python:
            log("transformers")
            found["transformers"] = time_peer(
                [given.peer_python, "-m", "scripts.bench.peer_generate"],
                export(model, Path(folder)), "float32", prompts, given.num_tokens)
        if given.llama_python:
            log("llama.cpp")
            found["llama_cpp"] = time_peer(
                [given.llama_python, "-m", "scripts.bench.peer_llama_cpp"],
                find_gguf(given.gguf, model, Path(folder)), "q4_1", prompts, given.num_tokens)
    return found


def bench(model: Path, given: Any) -> dict[str, Any]:
    """Runs the benchmark; returns the figures, the ratio to transformers last."""
    tokenizer = load_tokenizer(model / "tokenizer")
    prompts = [render_prompt(ask(text), tokenizer) for text in make_texts(NUM_TEXTS)]
    longest = max(map(len, prompts)) + max(given.num_tokens, SOAK_TOKENS)
    with started(model, given.concurrency, 1 << (longest - 1).bit_length()) as server:
        log(f"the server is ready after {server.ready_secs:.0f} s")
        if given.soak:
            return {"ready_secs": round(server.ready_secs, 1),
                    "soak": soak(server, given.soak, given.concurrency)}
        bodies = make_bodies(given.num_requests, given.num_tokens)
        ours = summarise(*asyncio.run(send_all(server.url, bodies, given.concurrency)))
    log(f"ours: {json.dumps(ours)}")
    if not ours["tokens"]:
        raise UserError(f"--model={model}", f"no request is answered ({ours['faults']})",
                        "try python -m serve.run")
    peers = time_peers(model, given, prompts[::max(1, NUM_TEXTS // given.peer_requests)])
    theirs = peers.get("transformers", {}).get("tokens_per_sec")
    return {"num_threads": len(os.sched_getaffinity(0)), "concurrency": given.concurrency,
            "num_tokens": given.num_tokens, "ready_secs": round(server.ready_secs, 1),
            "ours": ours, **peers,
            "ratio": theirs and round(ours["tokens_per_sec"] / theirs, 3)}


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures."""
    given = flags.FLAGS
    result = bench(Path(given.model).absolute(), given)
    if given.json:
        write_json(Path(given.json), result)
    return result


if __name__ == "__main__":
    flags.DEFINE_string("model", "runs/smollm2", "Model directory, of a chat model.")
    flags.DEFINE_integer("concurrency", 8, "Requests at once.", lower_bound=1)
    flags.DEFINE_integer("num_requests", 64, "Requests in all.", lower_bound=1)
    flags.DEFINE_integer("num_tokens", 64, "Longest answer, in tokens.", lower_bound=2)
    flags.DEFINE_integer("soak", 0, "Short requests that are sent instead, to watch the memory.",
                         lower_bound=0)
    flags.DEFINE_integer("peer_requests", 10, "Prompts that each peer answers.", lower_bound=1)
    flags.DEFINE_string("peer_python", None, "Python with torch and transformers; by default they "
                        "do not run.")
    flags.DEFINE_string("llama_python", None, "Python with llama-cpp-python.")
    flags.DEFINE_string("gguf", None, "llama.cpp's file, or a wheel that holds it; by default the "
                        "wheel that scripts/real_model.sh left beside the model.")
    flags.DEFINE_string("json", None, "File that gets the figures as well.")
    entry.run(main)
