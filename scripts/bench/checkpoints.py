"""Benchmark of checkpoints: seconds on the critical path, relative to a step, and host memory.

    python -m scripts.bench.checkpoints [--size=30M] [--folder=DIR]

A state of the given size is trained on synthetic rows, in windows of a few steps; every other
window begins with a save, which continues in the background while the window's steps run. Blocked
is the time until `save` returns; the cost is a window with a save less one without, so it includes
the slowdown of the steps; left is the time that the save still took after the window, and should be
near 0 for the cost to be complete. Memory is the sampled peak of the process during windows with a
save less that of windows without, relative to the bytes of the state.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.batch import Batch
from scripts.bench.train_step import make_batches, make_setup, make_training
from scripts.bench.train_workload import SIZES, Workload
from train.checkpoints.checkpoints import Checkpoints
from train.step import place_batch

SAMPLE_SECS = 0.002
NUM_BATCHES = 1 << 20      # of the synthetic loader: more than any run reads


class PeakMemory:
    """Samples this process's resident memory; `peak_bytes` is the highest since `__enter__`."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECS):
            self.peak_bytes = max(self.peak_bytes, resident_bytes())


def resident_bytes() -> int:
    """Current resident memory of this process (Linux: proc(5) status)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def run_window(state: Any, train_step: Callable, batch: Batch, num_steps: int,
               save: Callable[[Any], None] | None) -> tuple[Any, dict[str, float]]:
    """Runs a window, after a save if given; returns the state and the measurements."""
    jax.block_until_ready(state)
    with PeakMemory() as memory:
        began = time.perf_counter()
        if save is not None:
            save(state)
        blocked_secs = time.perf_counter() - began
        for _ in range(num_steps):
            state, metrics = train_step(state, batch)
            jax.block_until_ready(metrics)
        secs = time.perf_counter() - began
    return state, {"blocked_secs": blocked_secs, "secs": secs, "peak_bytes": memory.peak_bytes}


def bench(work: Workload, folder: Path, num_saves: int) -> dict[str, Any]:
    """Alternates windows with and without a save; returns the figures.

    Args:
        work: `num_steps` is per window.
    """
    setup = make_setup(work)
    state, train_step = make_training(setup, num_steps=1_000_000)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    batches = iter(grain.MapDataset.range(NUM_BATCHES).to_iter_dataset())
    plain, saving = [], []
    with jax.set_mesh(setup.mesh):
        batch = place_batch(make_batches(work)[0], setup.mesh)
        for turn in range(num_saves + 1):
            state, without = run_window(state, train_step, batch, work.num_steps, None)
            checkpoints = Checkpoints(folder, keep=2)
            state, with_save = run_window(
                state, train_step, batch, work.num_steps,
                lambda saved, to=checkpoints: to.save(saved, batches))
            began = time.perf_counter()
            checkpoints.close()     # so that no save runs in the next window
            with_save["left_secs"] = time.perf_counter() - began
            if turn:    # the first turn compiles and creates folders and threads
                plain.append(without)
                saving.append(with_save)
                log(f"save {turn}: blocked {with_save['blocked_secs']:.3f} s, window "
                    f"{with_save['secs']:.2f} s, without {without['secs']:.2f} s")
        restore_secs = _restore_secs(state, folder, batches)
    return {"state_bytes": state_bytes, "restore_secs": restore_secs,
            **_summary(plain, saving, work.num_steps, state_bytes)}


def _restore_secs(state: Any, folder: Path, batches: Any) -> float:
    checkpoints = Checkpoints(folder, keep=2)
    began = time.perf_counter()
    jax.block_until_ready(checkpoints.restore_latest(state, batches))
    secs = time.perf_counter() - began
    checkpoints.close()
    return secs


def _summary(plain: list[dict[str, float]], saving: list[dict[str, float]], num_steps: int,
             state_bytes: int) -> dict[str, float]:
    step_secs = statistics.median(window["secs"] for window in plain) / num_steps
    cost_secs = statistics.median(b["secs"] - a["secs"] for a, b in zip(plain, saving))
    blocked_secs = statistics.median(window["blocked_secs"] for window in saving)
    added = (max(window["peak_bytes"] for window in saving)
             - max(window["peak_bytes"] for window in plain))
    return {"step_secs": step_secs, "blocked_secs": blocked_secs,
            "blocked_steps": blocked_secs / step_secs, "cost_secs": cost_secs,
            "cost_steps": cost_secs / step_secs,
            "left_secs": statistics.median(window["left_secs"] for window in saving),
            "added_memory_bytes": added,
            "added_memory_over_state": added / state_bytes}


def main() -> dict[str, Any]:
    """Reads the flags and measures, in a temporary folder."""
    given = flags.FLAGS
    if given.size not in SIZES:
        raise UserError(f"--size={given.size}", "is no known size",
                        f"choose among {', '.join(SIZES)}")
    work = Workload(size=given.size, batch_size=given.batch, row_length=given.row_length,
                    dtype="float32", num_steps=given.steps)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        result = bench(work, Path(scratch) / "checkpoints", given.saves)
    print(f"{given.size}: a step {result['step_secs']:.3f} s; a save blocks "
          f"{result['blocked_secs']:.3f} s ({result['blocked_steps']:.2f} steps) and costs "
          f"{result['cost_secs']:.3f} s ({result['cost_steps']:.2f} steps); state "
          f"{result['state_bytes'] / 1e6:.0f} MB, memory "
          f"{result['added_memory_over_state']:+.2f} x the state while saving")
    return {"size": given.size, "device": jax.devices()[0].device_kind, **result,
            "ratio": round(result["blocked_steps"], 3)}


if __name__ == "__main__":
    flags.DEFINE_string("size", "30M", f"Among {', '.join(SIZES)}.")
    flags.DEFINE_string("folder", None, "Folder on the measured disk; by default a temporary one.")
    flags.DEFINE_integer("batch", 8, "Rows of a step.", lower_bound=1)
    flags.DEFINE_integer("row_length", 128, "Inputs of a row.", lower_bound=2)
    flags.DEFINE_integer("steps", 6, "Steps of a window.", lower_bound=1)
    flags.DEFINE_integer("saves", 5, "Windows with a save.", lower_bound=1)
    entry.run(main)
