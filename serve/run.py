"""An OpenAI-compatible server of models.

    python -m serve.run --model=runs/quickstart/rl
    python -m serve.run --model=small=runs/smollm2 --model=embed=runs/minilm --port=8000
    python -m serve.run --model=old=runs/a/rl --model=new=runs/b/rl --votes=runs/votes

A model is served under its folder's name, or under the one before the equals sign. Endpoints:
`/v1/models`, `/v1/chat/completions`, `/v1/completions`, of encoders `/v1/embeddings`; `/health` and
`/metrics`. With `--votes`, `/arena` shows the answers of two chat models blind, and `/leaderboard`
what the votes say; `eval.arena`, `align.dpo` and `align.reward` read them from `votes.jsonl` there.

Everything that requests need is compiled before the port opens. Only this machine can connect
unless `--host` is another address, for which keys are needed: a file with one on each line. SIGTERM
and Ctrl-C finish the answers that are drawn, within `--shutdown_secs`, and refuse new ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from eval.respond.loaded import load_model
from model.adapters.quantization import KINDS
from model.directory import read_description
from model.execution import COMPUTE_DTYPES, KV_CACHES, Execution


def find_models(entries: Sequence[str]) -> dict[str, Path]:
    """The folders of models by their names, from flags of the form NAME=DIR or DIR.

    Raises:
        UserError: there is none, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for text in entries:
        name, equals, folder = text.partition("=")
        if not equals or "/" in name:   # of a folder with an equals sign in its name
            name, folder = Path(text).name, text
        if not name or not folder:
            raise UserError(f"--model={text}", "is neither DIR nor NAME=DIR",
                            "try --model=runs/quickstart/rl")
        if name in found:
            raise UserError(f"--model={text}", f"names {name} a second time",
                            "give each a name of its own: --model=NAME=DIR")
        found[name] = Path(folder)
    if not found:
        raise UserError("--model", "is missing", "try --model=runs/quickstart/rl")
    return found


def open_models(folders: dict[str, Path]) -> Any:
    """Loads models and compiles what they need; returns what is served, the workers started."""
    from serve.api.app import Served
    from serve.api.embeddings import Encoder
    from serve.api.metrics import Metrics, ModelMetrics
    from serve.api.worker import Worker
    from serve.arena.arena import Arena, check_models
    from serve.arena.store import VoteStore

    values = flags.FLAGS
    votes = None
    if values.votes:    # before minutes of compiling
        check_models(sum(read_description(folder).chat for folder in folders.values()))
        votes = VoteStore(Path(values.votes))
    dtype = values.compute_dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16")
    execution, metrics = Execution(dtype, kv_cache=values.kv_cache), Metrics()
    workers, encoders = {}, {}
    for name, folder in folders.items():
        if read_description(folder).config.family == "encoder":
            encoders[name] = Encoder(folder, execution)
        else:
            model = load_model(folder, execution, weights=values.weights)
            metrics.models[name] = ModelMetrics(values.batch_size)
            workers[name] = Worker(
                model, num_slots=values.batch_size, max_queue=values.max_queue,
                capacity=values.context_tokens or model.context_tokens,
                metrics=metrics.models[name])
        began = time.monotonic()
        (workers.get(name) or encoders[name]).warm_up()
        log(f"{name}: {folder} is compiled in {time.monotonic() - began:.1f} s")
    arena = Arena(workers, votes, values.request_secs) if votes else None
    for worker in workers.values():
        worker.start()
    return Served(workers, encoders, metrics, values.request_secs, arena)


def serve() -> dict[str, Any]:
    """Serves until a signal comes; returns the command's result."""
    try:
        from serve.api.limits import is_loopback, read_keys
        from serve.api.server import Server
        from serve.web.sockets import bind_socket
    except ImportError as error:
        raise UserError("the server", f"needs the package {error.name}",
                        "pip install -e '.[serve]'") from None
    values = flags.FLAGS
    keys = read_keys(values.api_keys) if values.api_keys else ()
    if not is_loopback(values.host) and not keys:
        raise UserError(f"--host={values.host}", "lets other machines in, without a key",
                        "name a file of keys with --api_keys, or leave --host at 127.0.0.1")
    folders = find_models(values.model)
    began = time.monotonic()
    listener = bind_socket(values.host, values.port)    # before minutes of compiling
    served = open_models(folders)
    port = listener.getsockname()[1]
    listener.listen()       # those who connect now are answered once the server runs
    log(f"{', '.join(folders)}: http://{values.host}:{port}/v1, ready after "
        f"{time.monotonic() - began:.1f} s; SIGTERM or Ctrl-C ends it")
    if served.arena:
        log(f"arena: http://{values.host}:{port}/arena and /leaderboard, "
            f"{served.arena.store.num_votes} votes in {served.arena.store.path}")
    server = Server(served, keys=keys, hosts=[values.host, *values.allowed_hosts],
                    shutdown_secs=values.shutdown_secs)
    server.run(sockets=[listener])
    tokens = [own.tokens["drawn"].value for own in served.metrics.models.values()]
    return {"models": [*folders], "requests": served.metrics.num_requests,
            "tokens": int(sum(tokens)), "secs": round(time.monotonic() - began, 1)}


def _define_flags() -> None:
    flags.DEFINE_multi_string("model", [], "Model directory, or NAME=DIR; may be repeated.")
    flags.DEFINE_string("host", "127.0.0.1", "Address that is listened on.")
    flags.DEFINE_integer("port", 8000, "Port; 0 is any free one.", lower_bound=0,
                         upper_bound=65535)
    flags.DEFINE_string("api_keys", None, "File with a key on each line, of which a request must "
                        "have one.")
    flags.DEFINE_list("allowed_hosts", [], "Names of this server in requests, beside its address "
                      "and localhost.")
    flags.DEFINE_integer("batch_size", 8, "Answers that a model draws at once.", lower_bound=1)
    flags.DEFINE_integer("max_queue", 64, "Answers to a model that may wait; further ones get 429.",
                         lower_bound=0)
    flags.DEFINE_integer("context_tokens", None, "Tokens of prompt and answer; by default the "
                         "length of the model's training rows.", lower_bound=2)
    flags.DEFINE_string("votes", None, "Folder of the arena's votes; without it there is no arena.")
    flags.DEFINE_float("request_secs", 600.0, "Time that a request has.", lower_bound=0.0)
    flags.DEFINE_float("shutdown_secs", 30.0, "Time for answers to be finished after a signal.",
                       lower_bound=0.0)
    flags.DEFINE_enum("compute_dtype", None, COMPUTE_DTYPES, "Dtype of matmuls; by default float32 "
                      "on a CPU and bfloat16 elsewhere.")
    flags.DEFINE_enum("weights", "float32", ("float32", *KINDS), "What weights are held in.")
    flags.DEFINE_enum("kv_cache", "compute", KV_CACHES, "What keys and values are held in: the "
                      "compute dtype or int8.")


if __name__ == "__main__":
    _define_flags()
    entry.run(serve)
