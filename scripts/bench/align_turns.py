"""The trainers of `scripts.bench.align` and `scripts.bench.rl`: processes that take turns."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from core.progress import log
from model.config import ModelConfig
from model.families.registry import init
from model.hf.export_model import choose_layout
from model.hf.tables import write_params
from scripts.bench.generate_process import EngineProcess, EngineStopped

PEER = "peer_"      # begins the names of modules that run in the peers' environment


class Trainer(Protocol):
    """What is measured."""

    def load(self, folder: str, task: str, num_threads: int, **settings: int) -> dict[str, Any]:
        """Makes a trainer of the work in a folder; gives the `versions` of packages."""

    def steps(self, count: int) -> dict[str, list[float]]:
        """Takes steps; gives lists of a number for each, `secs` among them."""

    def peak_bytes(self) -> int:
        """The most memory so far."""


def write_weights(folder: Path, shape: dict[str, int]) -> None:
    """Writes the first parameters of our trainers by the names of transformers."""
    config = ModelConfig(**shape, qk_norm=False)
    params = jax.device_get(jax.jit(partial(init, config))(jax.random.key(0)))
    layout, _ = choose_layout(config)
    np.savez(folder / "weights.npz", **{name: read() for name, _, _, read in write_params(
        layout, params, config, np.dtype("float32"))})


def measure(trainers: Mapping[str, tuple[str, str]], folder: Path, *, peer_python: str,
            num_steps: int, num_turns: int, **settings: int) -> dict[str, dict[str, Any]]:
    """What each trainer's steps gave, by its name, with the peak of memory; or `error`.

    One turn more is taken, the first, which warms up: its times, whose names end in `secs`, are
    not kept.

    Args:
        trainers: module of `scripts.bench` and task, by name.
        num_steps: of a turn.
        settings: for `Trainer.load`.
    """
    results: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        running: dict[str, EngineProcess] = {}
        for name, (module, task) in trainers.items():
            python = peer_python if module.startswith(PEER) else sys.executable
            log(f"loading {name}")
            process = EngineProcess([python, "-m", f"scripts.bench.{module}"],
                                    folder / f"{name}.log")
            stack.callback(process.close)
            try:
                results[name] = process.ask("load", folder=str(folder), task=task,
                                            num_threads=len(os.sched_getaffinity(0)), **settings)
                running[name] = process
            except EngineStopped as error:
                results[name] = {"error": str(error)}
                log(f"{name}: {error}")
        for turn in range(1 + num_turns):
            for name, process in running.items():
                if "error" in results[name]:
                    continue
                try:
                    for key, values in process.ask("steps", count=num_steps).items():
                        if turn or not key.endswith("secs"):
                            results[name].setdefault(key, []).extend(values)
                    results[name]["peak_bytes"] = process.ask("peak_bytes")
                except EngineStopped as error:
                    results[name] = {"error": str(error)}
                    log(f"{name}: {error}")
            log(f"turn {turn} of {num_turns}" if turn else "the first steps are done")
    return results
