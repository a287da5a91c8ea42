"""Benchmark of the server: requests at once, against the same weights one at a time, and llama.cpp.

    python -m scripts.bench.serve --model=runs/smollm2 --concurrency=32 \\
        --peer_python=.venv-peers/bin/python [--llama_python=/path/to/python] \\
        [--llama_server=/path/to/llama-server]
    python -m scripts.bench.serve --model=runs/smollm2 --soak=10000

`bash scripts/real_model.sh` makes the model. `python -m serve.run` is started and, once it is
ready, asked by `--concurrency` clients, each of which sends its next request when the one before
is answered: chats of different lengths, streamed, greedy. One request beforehand is not counted.
Then, each with the whole machine to itself:

- llama.cpp's servers, with the Q4_1 file that the model was imported from, get the same requests
  from the same clients. That of llama-cpp-python (`--llama_python`; `pip install
  'llama-cpp-python[server]'` builds it) reads and writes for one request after another, so that its
  time to the first token is mostly that of waiting. `--llama_server` is llama.cpp's own program,
  which draws for all at once; it is built from the sources in the package's archive, of its folder
  vendor/llama.cpp: `cmake -B build -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF && cmake --build
  build --target llama-server`.
- `generate` of transformers answers the same prompts one after another, with the same float32
  weights (`--peer_python`). Its time is that of prefill and of decoding as many tokens.

With `--soak` short requests are sent instead, and the server's memory is watched; no peer runs, and
the status is 1 if anything went otherwise than it should. See `scripts.bench.serve_soak`.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import write_json
from core.errors import UserError
from core.progress import log
from data.chat import ask, render_prompt
from data.tokenizers.load import load_tokenizer
from scripts.bench.generate import export, find_gguf
from scripts.bench.generate_process import EngineProcess, EngineStopped
from scripts.bench.generate_prompts import make_texts
from scripts.bench.serve_load import percentiles, send_all, summarise
from scripts.bench.serve_process import (
    NAME,
    Command,
    find_program,
    our_command,
    program_command,
    python_command,
    started,
)
from scripts.bench.serve_soak import LONG_TOKENS, NUM_SAMPLES, soak

NUM_TEXTS = 20
# Fields that our server does not know. llama-cpp-python's penalises repetition unless asked not to.
PYTHON_FIELDS = {"repeat_penalty": 1.0}


def make_bodies(number: int, num_tokens: int) -> list[dict[str, Any]]:
    """Requests for greedy chats, whose messages have different lengths."""
    texts = make_texts(NUM_TEXTS)
    return [{"model": NAME, "messages": [{"role": "user", "content": texts[place % NUM_TEXTS]}],
             "temperature": 0, "max_tokens": num_tokens, "stream": True,
             "stream_options": {"include_usage": True}} for place in range(number)]


def time_server(command: Command, bodies: Sequence[Mapping[str, Any]],
                concurrency: int) -> dict[str, Any]:
    """Starts a server and sends requests, the first one once beforehand; raises `UserError`."""
    with started(command) as server:
        log(f"{Path(command.words[0]).name} is ready after {server.ready_secs:.0f} s")
        asyncio.run(send_all(server.url, bodies[:1], 1))
        found = summarise(*asyncio.run(send_all(server.url, bodies, concurrency)))
    return {"ready_secs": round(server.ready_secs, 1), **found}


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


def time_llama(model: Path, given: Any, context_tokens: int) -> dict[str, Any]:
    """The figures of llama.cpp's servers that were asked for, or `error` of each."""
    if not (given.llama_python or given.llama_server):
        return {}
    found: dict[str, Any] = {}
    bodies = make_bodies(given.num_requests, given.num_tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gguf = find_gguf(given.gguf, model, folder)
        jobs = {}
        if given.llama_python:
            program = find_program("llama_python", given.llama_python)
            jobs["llama_cpp_python"] = (python_command(program, gguf, context_tokens, folder),
                                        [body | PYTHON_FIELDS for body in bodies])
        if given.llama_server:
            program = find_program("llama_server", given.llama_server)
            jobs["llama_server"] = (program_command(
                program, gguf, given.concurrency, context_tokens, folder), bodies)
        for name, (command, asked) in jobs.items():
            try:
                found[name] = time_server(command, asked, given.concurrency)
            except UserError as error:
                found[name] = {"error": str(error)}
            log(f"{name}: {json.dumps(found[name])}")
    return found


def time_transformers(model: Path, given: Any, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The figures of transformers, if it was asked for."""
    if not given.peer_python:
        return {}
    log("transformers")
    with tempfile.TemporaryDirectory() as folder:
        return {"transformers": time_peer(
            [given.peer_python, "-m", "scripts.bench.peer_generate"],
            export(model, Path(folder)), "float32", prompts, given.num_tokens)}


def bench(model: Path, given: Any) -> dict[str, Any]:
    """Runs the benchmark; returns the figures, the ratios to the peers' throughputs last."""
    tokenizer = load_tokenizer(model / "tokenizer")
    prompts = [render_prompt(ask(text), tokenizer) for text in make_texts(NUM_TEXTS)]
    longest = max(map(len, prompts)) + max(given.num_tokens, LONG_TOKENS)
    context_tokens = 1 << (longest - 1).bit_length()
    command = our_command(model, given.concurrency, context_tokens)
    if given.soak:
        with started(command) as server:
            log(f"the server is ready after {server.ready_secs:.0f} s")
            return {"ready_secs": round(server.ready_secs, 1), "concurrency": given.concurrency,
                    "soak": soak(server, given.soak, given.concurrency)}
    ours = time_server(command, make_bodies(given.num_requests, given.num_tokens),
                       given.concurrency)
    log(f"ours: {json.dumps(ours)}")
    if not ours["tokens"]:
        raise UserError(f"--model={model}", f"no request is answered ({ours['faults']})",
                        "try python -m serve.run")
    peers = (time_llama(model, given, context_tokens)
             | time_transformers(model, given, prompts[::max(1, NUM_TEXTS // given.peer_requests)]))
    ratios = {name: round(ours["tokens_per_sec"] / peer["tokens_per_sec"], 3)
              for name, peer in peers.items() if peer.get("tokens_per_sec")}
    return {"num_threads": len(os.sched_getaffinity(0)), "concurrency": given.concurrency,
            "num_tokens": given.num_tokens, "context_tokens": context_tokens, "ours": ours,
            **peers, "ratios": ratios}


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures.

    Raises:
        UserError: a program is missing, or the soak is too short to fit a line.
    """
    given = flags.FLAGS
    for name in ("peer_python", "llama_python", "llama_server"):
        if given[name].value:
            find_program(name, given[name].value)
    if 0 < given.soak < NUM_SAMPLES:
        raise UserError(f"--soak={given.soak}", f"is below {NUM_SAMPLES}, the times that the "
                        "memory is read", f"send {NUM_SAMPLES} or more")
    result = bench(Path(given.model).absolute(), given)
    if given.json:
        write_json(Path(given.json), result)
    return result


def _status(result: Mapping[str, Any]) -> int:
    return int(not result.get("soak", {}).get("is_clean", True))


if __name__ == "__main__":
    flags.DEFINE_string("model", "runs/smollm2", "Model directory, of a chat model.")
    flags.DEFINE_integer("concurrency", 8, "Requests at once.", lower_bound=1)
    flags.DEFINE_integer("num_requests", 64, "Requests in all.", lower_bound=1)
    flags.DEFINE_integer("num_tokens", 64, "Longest answer, in tokens.", lower_bound=2)
    flags.DEFINE_integer("soak", 0, "Short requests that are sent instead, to watch the memory.",
                         lower_bound=0)
    flags.DEFINE_integer("peer_requests", 10, "Prompts that transformers answers.", lower_bound=1)
    flags.DEFINE_string("peer_python", None, "Python with torch and transformers; by default they "
                        "do not run.")
    flags.DEFINE_string("llama_python", None, "Python with llama-cpp-python[server].")
    flags.DEFINE_string("llama_server", None, "llama.cpp's program llama-server.")
    flags.DEFINE_string("gguf", None, "llama.cpp's file, or a wheel that holds it; by default the "
                        "wheel that scripts/real_model.sh left beside the model.")
    flags.DEFINE_string("json", None, "File that gets the figures as well.")
    entry.run(main, _status)
