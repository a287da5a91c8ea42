"""Profiles Heartwood's training step: time in matrix products and in other operations.

An operation of the trace is a fusion of many; whether it contains a product is read from the
compiled program, because names of fusions are not reliable.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from data.batch import Batch
from train.watch.profile import read_profile

NUM_STEPS, NUM_KINDS = 2, 12

# Products in HLO, and calls of libraries that multiply: cuBLAS, cuDNN's attention, oneDNN.
PRODUCT = re.compile(r" (dot|convolution)\(|custom_call_target=\"[^\"]*(cublas|cudnn|onednn|gemm)",
                     re.IGNORECASE)
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")


def find_products(program: str) -> set[str]:
    """Names of the operations of an HLO program that contain a matrix product."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if start := COMPUTATION.match(line):
            lines = bodies.setdefault(start[1], [])
        else:
            lines.append(line)

    def multiplies(line: str) -> bool:
        return bool(PRODUCT.search(line)) or any(
            any(map(multiplies, bodies.get(name, ()))) for name in CALLED.findall(line))

    return {match[1] for body in bodies.values() for line in body
            if (match := INSTRUCTION.match(line)) and multiplies(line)}


def profile_step(train_step: Callable, state: Any, batch: Batch) -> dict[str, Any]:
    """Traces some steps; the state is donated.

    Returns:
        products_frac: share of the operations' time that is in those with a matrix product.
        idle_frac: share of the traced time in which no operation ran.
        kinds: shares of the costliest kinds of operations, by name without number; those with a
            product are marked.
    """
    products = find_products(train_step.lower(state, batch).compile().as_text())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0     # it slows the host
    with tempfile.TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        for _ in range(NUM_STEPS):
            state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        jax.profiler.stop_trace()
        device = read_profile(next(Path(folder).rglob("*.xplane.pb")))[0]
    kinds: Counter[str] = Counter()
    for op in device.ops:
        mark = " (product)" if op.name in products else ""
        kinds[re.sub(r"[.\d]+$", "", op.name) + mark] += op.frac
    return {"products_frac": sum(op.frac for op in device.ops if op.name in products),
            "idle_frac": device.idle_frac,
            "kinds": {name: round(frac, 4) for name, frac in kinds.most_common(NUM_KINDS)}}
