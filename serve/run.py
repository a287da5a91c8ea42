"""An OpenAI-compatible server of models.

    python -m serve.run --model=runs/quickstart/rl
    python -m serve.run --model=small=runs/smollm2 --model=embed=runs/minilm --port=8000
    python -m serve.run --model=runs/smollm2 --model=tiny=runs/smollm2 --weights=tiny=int4 \\
        --adapter=polite=runs/lora/adapter
    python -m serve.run --model=old=runs/a/rl --model=new=runs/b/rl --votes=runs/votes

A model is served under its folder's name, or under the one before the equals sign; an adapter of
one under its own name, in the same batch as the model. Endpoints:
`/v1/models`, `/v1/chat/completions`, `/v1/completions`, of encoders `/v1/embeddings`; `/health` and
`/metrics`. With `--votes`, `/arena` shows the answers of two chat models blind, and `/leaderboard`
what the votes say; `eval.arena`, `align.dpo` and `align.reward` read them from `votes.jsonl` there.

Everything that requests need is compiled before the port opens. Only this machine can connect
unless `--host` is another address, for which keys are needed: a file with one on each line. SIGTERM
and Ctrl-C finish the answers that are drawn, within `--shutdown_secs`, and refuse new ones.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from core import entry
from core.errors import UserError
from core.progress import log
from eval.respond.loaded import load_model, only_generating
from model.adapters.lora import describe_lora, load_lora
from model.adapters.quantization import KINDS
from model.directory import fingerprint_params, read_description
from model.execution import COMPUTE_DTYPES, KV_CACHES, Execution
from model.parallel.sharding import MESH_AXES, make_mesh

WEIGHTS = ("float32", *KINDS)


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


def find_kinds(entries: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """What the weights of each model are held in, from flags of the form KIND or NAME=KIND.

    Raises:
        UserError: there is no such kind or model, or one has two.
    """
    kinds: dict[str, str] = {}
    for text in entries:
        name, _, kind = text.rpartition("=")
        if kind not in WEIGHTS:
            raise UserError(f"--weights={text}", f"must be one of {', '.join(WEIGHTS)}",
                            "try --weights=int8, or --weights=NAME=int8 for one model")
        if (name and name not in names) or name in kinds:
            raise UserError(f"--weights={text}", "names no model, or one a second time",
                            f"choose among {', '.join(names)}")
        kinds[name] = kind
    return {name: kinds.get(name, kinds.get("", "float32")) for name in names}


def find_adapters(entries: Sequence[str], folders: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """The adapters of each model by their names, from flags of the form NAME=DIR.

    Raises:
        UserError: one has no name, or one that is taken, is damaged, or belongs to no model.
    """
    found: dict[str, dict[str, Path]] = {name: {} for name in folders}
    for text in entries:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"--adapter={text}", "is not NAME=DIR",
                            "try --adapter=polite=runs/lora/adapter")
        if name in folders or any(name in own for own in found.values()):
            raise UserError(f"--adapter={text}", f"names {name} a second time",
                            "give it a name of its own")
        base = describe_lora(Path(folder))["base"]
        if not (owners := [owner for owner in folders
                           if fingerprint_params(folders[owner]) == base["params"]]):
            raise UserError(f"--adapter={text}", f"is an adapter of {base['name']} with parameters "
                            f"{base['params']}, which no --model has", "serve that model too")
        log(f"{name} is an adapter of {owners[0]}")
        found[owners[0]][name] = Path(folder)
    return found


def find_mesh(entries: Sequence[str]) -> Mesh | None:
    """The mesh of flags of the form AXIS=SIZE; None, which is one device, without any.

    Raises:
        UserError: there is no such axis, or the sizes are not those of the devices.
    """
    sizes = dict(entry.partition("=")[::2] for entry in entries)
    if not sizes:
        return None
    if not all(size.lstrip("-").isdecimal() for size in sizes.values()):
        raise UserError(f"--mesh={','.join(entries)}", "is not AXIS=SIZE[,AXIS=SIZE]",
                        "try --mesh=tensor=2")
    try:
        return make_mesh({axis: int(size) for axis, size in sizes.items()})
    except UserError:       # whose remedy is that of a config
        raise UserError(f"--mesh={','.join(entries)}", f"is no mesh of {jax.device_count()} "
                        f"device(s) with axes among {', '.join(MESH_AXES)}",
                        "choose sizes whose product is the number of devices; -1 is the rest"
                        ) from None


def open_models(folders: dict[str, Path]) -> Any:
    """Loads models and compiles what they need; returns what is served, the workers started."""
    from serve.api.app import Served
    from serve.api.embeddings import Encoder
    from serve.api.metrics import Metrics, ModelMetrics
    from serve.api.worker import Worker
    from serve.arena.arena import Arena, check_models
    from serve.arena.store import VoteStore

    values = flags.FLAGS
    kinds, adapters = find_kinds(values.weights, folders), find_adapters(values.adapter, folders)
    mesh = find_mesh(values.mesh)
    votes = None
    if values.votes:    # before minutes of compiling
        check_models(sum((1 + len(adapters[name])) * read_description(folder).chat
                         for name, folder in folders.items()))
        votes = VoteStore(Path(values.votes))
    dtype = values.compute_dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16")
    execution, metrics = Execution(dtype, kv_cache=values.kv_cache), Metrics()
    workers, encoders = {}, {}
    for name, folder in folders.items():
        if read_description(folder).config.family == "encoder":
            _check_plain(name, kinds[name], adapters[name])
            encoders[name] = Encoder(folder, execution)
        else:
            model = only_generating(
                load_model(folder, execution, mesh, weights=kinds[name]),
                [load_lora(adapter, folder, mesh) for adapter in adapters[name].values()])
            metrics.models[name] = ModelMetrics(values.batch_size)
            workers[name] = Worker(
                model, num_slots=values.batch_size, max_queue=values.max_queue,
                capacity=values.context_tokens or model.context_tokens,
                metrics=metrics.models[name], mesh=mesh, adapters=[*adapters[name]])
        began = time.monotonic()
        (workers.get(name) or encoders[name]).warm_up()
        log(f"{name}: {folder} is compiled in {time.monotonic() - began:.1f} s")
    served = Served(workers, encoders, metrics, values.request_secs)
    if votes:
        served.arena = Arena(served.by_name(), votes, values.request_secs)
    for worker in workers.values():
        worker.start()
    return served


def _check_plain(name: str, kind: str, adapters: Collection[str]) -> None:
    """Raises `UserError` where an encoder is asked for in another form than its own."""
    if adapters or kind != "float32":
        raise UserError(f"--model={name}", "is an encoder, which is served in float32 and without "
                        "adapters", "leave --weights and --adapter out for it: --weights=NAME=KIND")


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
    url = f"http://{values.host}:{port}"
    log(f"{', '.join(folders)}: {url}/ to chat, {url}/v1 for programs; ready after "
        f"{time.monotonic() - began:.1f} s, SIGTERM or Ctrl-C ends it")
    if served.arena:
        log(f"arena: {url}/arena and {url}/leaderboard, "
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
    flags.DEFINE_multi_string("weights", [], "What weights are held in: KIND, or NAME=KIND for one "
                              f"model, of {', '.join(WEIGHTS)}; by default float32.")
    flags.DEFINE_multi_string("adapter", [], "NAME=DIR, an adapter of one of the models; may be "
                              "repeated.")
    flags.DEFINE_list("mesh", [], "AXIS=SIZE[,AXIS=SIZE], over which models are sharded, e.g. "
                      "tensor=4; by default they are on one device.")
    flags.DEFINE_enum("kv_cache", "compute", KV_CACHES, "What keys and values are held in: the "
                      "compute dtype or int8.")


if __name__ == "__main__":
    _define_flags()
    entry.run(serve)
