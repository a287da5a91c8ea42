"""A process of `scripts.bench.device`: reads one job on stdin, prints a JSON line for each figure.

    python -m scripts.bench.device_worker < JOB

It is started before its job is known, so that importing is done when the job arrives. Nothing
touches the device before: XLA reads its flags at the first use.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

from core.errors import UserError
from scripts.bench import device_checks, device_parts, train_step
from scripts.bench.train_workload import Workload

NUM_THREADS = 8     # that compile checks side by side


def run_ceilings() -> Iterator[dict[str, Any]]:
    """The device, its memory, and the fastest product and copy on it."""
    stats = jax.devices()[0].memory_stats() or {}
    yield train_step.roofline() | {"memory_bytes": stats.get("bytes_limit"),
                                   "xla_flags": os.environ.get("XLA_FLAGS", ""),
                                   "versions": {"jax": jax.__version__}}


def run_checks(only: Sequence[str] = (), done: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The checks, some of which compile at the same time; see `run_parts`."""
    checks = device_checks.list_checks()
    names = [name for name in only or checks if name not in done]
    yield {"names": names}
    with ThreadPoolExecutor(min(NUM_THREADS, os.cpu_count() or 1)) as pool:
        running = {pool.submit(_checked, checks[name]): name for name in names}
        for future in as_completed(running):
            yield {"name": running[future], **future.result()}


def _checked(check: device_checks.Check) -> dict[str, Any]:
    try:
        error, limit = check()
    except Exception as failure:    # whatever a device's library raises: the others go on
        return {"error": _reason(failure)}
    return {"relative_error": error, "limit": limit, "passed": error <= limit}


def run_parts(table: str, only: Sequence[str] = (),
              done: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The measurements of a table of `device_parts`; the first row lists their names.

    Args:
        only: the names to measure, if not all.
        done: those to leave out.
    """
    parts = device_parts.list_parts()[table]
    names = [name for name in only or parts if name not in done]
    yield {"names": names}
    for name in names:
        try:
            yield {"name": name, **parts[name]()}
        except Exception as failure:
            yield {"name": name, "error": _reason(failure)}


def run_training(work: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A training step; see `scripts.bench.train_step`."""
    try:
        yield train_step.measure(Workload(**work))
    except Exception as failure:
        yield {"error": _reason(failure)}


def _reason(failure: Exception) -> str:
    """One line; the traceback goes to stderr."""
    traceback.print_exception(failure, file=sys.stderr)
    if "RESOURCE_EXHAUSTED" in str(failure):
        return "out of memory"
    text = " ".join(str(failure).split()) or type(failure).__name__
    kind = "" if isinstance(failure, UserError) else f"{type(failure).__name__}: "
    return f"{kind}{text}"[:300]


JOBS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "ceilings": run_ceilings, "checks": run_checks, "parts": run_parts, "training": run_training}


def main() -> None:
    """Does the job; the figures alone go to stdout, whatever the libraries print."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    line = sys.stdin.readline()
    if not line:
        return      # no job came
    job = json.loads(line)
    if flags := job.get("xla_flags"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    for row in JOBS[job["kind"]](**job.get("arguments", {})):
        print(json.dumps(row), file=results, flush=True)


if __name__ == "__main__":
    main()
