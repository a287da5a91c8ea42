"""Coordinate search for the fastest settings of a training step, within a time budget.

Axes are searched one after the other, each value in a process of its own, as the full product would
take hours. The peer's axes are batch size and attention.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from core.progress import log
from model.execution import ATTENTION_BACKENDS
from model.parallel.remat import POLICIES
from scripts.bench.train_workload import Workload

NUM_STEPS = 8       # of a trial
BATCH_FACTORS = (0.5, 1, 2)

Measure = Callable[[Workload], dict[str, Any]]      # one process: `tokens_per_sec`, or `error`


def search(start: Workload, side: str, measure: Measure,
           budget_secs: float) -> tuple[Workload, list[dict[str, Any]]]:
    """The fastest settings, and a row for each trial, run or skipped.

    Args:
        start: settings to start from.
        side: ours or peer; decides the axes.
        budget_secs: no trial begins after it; skipped trials have an `error`.
    """
    until, best, best_speed = time.monotonic() + budget_secs, start, 0.0
    seen, rows = set(), []
    for axis in _axes(start, side):
        for change in axis:
            trial = _changed(best, start, change)
            if trial.to_json() in seen:
                continue
            seen.add(trial.to_json())
            row = {"side": side, "batch_size": trial.batch_size, **trial.fields}
            if time.monotonic() > until:
                result = {"error": "not run: the time for the search was over"}
            else:
                result = measure(dataclasses.replace(trial, num_steps=NUM_STEPS))
            row |= {name: result[name] for name in
                    ("error", "tokens_per_sec", "peak_memory_bytes", "compile_secs")
                    if name in result}
            rows.append(row)
            log(f"search: {row}")
            if result.get("tokens_per_sec", 0.0) > best_speed:
                best, best_speed = trial, result["tokens_per_sec"]
    return best, rows


def _axes(start: Workload, side: str) -> Iterator[list[dict[str, Any]]]:
    """The changes to try, for each axis."""
    if side == "peer":
        yield [{"batch_factor": factor} for factor in BATCH_FACTORS]
        if start.documents_per_row == 1:    # packed documents need a mask
            yield [{"attention": name} for name in ("causal", "sdpa")]
        return
    num_layers = start.shape["N"]
    yield [{"attention": name} for name in ATTENTION_BACKENDS]
    yield [{"loss_chunks": count} for count in (1, 8, 32)]
    yield [{"scan_unroll": count} for count in sorted({1, 4, num_layers})]
    yield [{"remat": policy, "batch_factor": factor}
           for policy, factor in itertools.product(POLICIES, BATCH_FACTORS)]


def _changed(best: Workload, start: Workload, change: dict[str, Any]) -> Workload:
    """The best settings so far with one change; batch sizes are multiples of the first one."""
    fields = {name: value for name, value in change.items() if name != "batch_factor"}
    batch_size = best.batch_size
    if "batch_factor" in change:
        batch_size = max(int(start.batch_size * change["batch_factor"]), 1)
    return dataclasses.replace(best, batch_size=batch_size, fields=best.fields | fields)
