"""Reports whether pretraining fits into memory, by compiling its step without allocating arrays.

    python -m train.fit --config=configs/quickstart.py:accelerator
    python -m train.fit --config=configs/quickstart.py:accelerator --devices=8 --memory_gb=80

Prints the step's memory on one device by part, and searches for the largest microbatch that fits.
With `--devices` the CPU simulates another machine: parameters, optimizer state and batch are then
exact, temporaries are those of the CPU's compiler and attention.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from core.overrides import define_config_flag
from core.progress import log
from model.families.registry import abstract_params
from model.parallel.sharding import check_mesh, num_batch_shards, spec
from model.section import read_section
from train.objective import batch_shapes, check_objective
from train.pretrain import make_loss
from train.setup import Setup, make_setup
from train.trainer import make_step

PRECISION = 16      # the search finds the microbatch to one part in so many
MAX_LINES = 8       # counts that are measured before bisection replaces extrapolation
MAX_GROWTH = 64     # how far beyond the largest measured count it extrapolates


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of a step on one device.

    Attributes:
        params: master parameters.
        opt_state: the optimizer's state.
        ema: the running average of the parameters.
        other_state: the guard, the step and the key.
        batch: rows of one step.
        temporaries: activations, logits, the gradient.
        gradient: its approximate share of the temporaries.
        peak: arguments, temporaries and outputs beyond the donated state.
    """

    params: int
    opt_state: int
    ema: int
    other_state: int
    batch: int
    temporaries: int
    gradient: int
    peak: int


def measure(section: ConfigDict, setup: Setup, *, microbatch_rows: int) -> Footprint | None:
    """Compiles the pretraining step and returns its memory by part.

    Args:
        microbatch_rows: rows of one forward pass, over all devices.

    Returns:
        None if compilation already ran out of this device's memory.

    Raises:
        UserError: model, batch and mesh do not fit each other.
    """
    section = section.copy_and_resolve_references()
    section.batch_size = microbatch_rows * section.run.num_microbatches
    make_first, step = make_step(make_loss(section), setup, section, num_steps=section.num_steps)
    state = make_first(abstract_params(setup.config))
    batch = batch_shapes(section, NamedSharding(setup.mesh, spec("BL")))
    try:
        with jax.set_mesh(setup.mesh):
            memory = step.lower(state, batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    return Footprint(
        params=device_bytes(state.params), opt_state=device_bytes(state.opt_state),
        ema=device_bytes(state.ema),
        other_state=device_bytes((state.step, state.key, state.guard)), batch=device_bytes(batch),
        temporaries=memory.temp_size_in_bytes, gradient=device_bytes(state.params),
        peak=(memory.argument_size_in_bytes + memory.output_size_in_bytes
              - memory.alias_size_in_bytes + memory.temp_size_in_bytes))


def device_bytes(tree: Any) -> int:
    """Bytes that a tree of arrays, or of their shapes, takes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(tree))


def search(peak_bytes: Callable[[int], float], limit_bytes: float, start: int) -> int:
    """The largest count whose peak stays within the limit, in few measurements.

    Memory is nearly linear in the count, so the next count is where the line through the two
    largest measured ones reaches the limit. If that does not converge soon, the search continues by
    doubling and bisection.

    Args:
        peak_bytes: peak of a count, infinite if it could not be measured; non-decreasing.
        start: the count to begin with, at least 1.

    Returns:
        The count, exact below `PRECISION` and to one part in `PRECISION` above, or 0.
    """
    low, high, count, peaks = 0, math.inf, start, {}
    while True:
        peaks[count] = peak_bytes(count)
        low, high = (count, high) if peaks[count] <= limit_bytes else (low, count)
        step = max(1, low // PRECISION)
        if high - low <= step:
            return low
        middle = 2 * count if high == math.inf else (low + high) // 2
        measured = sorted(n for n, peak in peaks.items() if peak < math.inf)[-2:]
        if len(measured) < 2 or len(peaks) > MAX_LINES:
            count = middle
            continue
        (a, b), per_count = measured, (peaks[measured[1]] - peaks[measured[0]])
        guess = b + (limit_bytes - peaks[b]) * (b - a) // max(per_count, 1)
        # Just above a count that fits, to show that it is the largest.
        count = int(max(guess, low + step))
        count = middle if count >= high else min(count, MAX_GROWTH * b)


def memory_limit(memory_gb: float) -> int:
    """Bytes available on one device: as given, the device's, or its share of a CPU's memory."""
    if memory_gb:
        return int(memory_gb * 1e9)
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def plan(config: ConfigDict, limit_bytes: int) -> dict[str, Any]:
    """Measures the config's own step, then searches for the largest microbatch.

    Returns:
        The command's result; microbatches are rows of one forward pass, over all devices.
    """
    section = config.pretrain
    model_config = read_section(config.model, config.tokenizer.vocab_size)
    setup = make_setup(model_config, section, config.mesh)
    check_objective(section, setup)
    num_microbatches, num_stages = section.run.num_microbatches, setup.mesh.shape["stage"]
    if section.batch_size % num_microbatches:
        raise UserError(f"pretrain.batch_size={section.batch_size}",
                        f"is not divisible by run.num_microbatches={num_microbatches}",
                        "change --config.pretrain.run.num_microbatches")
    pieces = setup.execution.pipeline_microbatches or num_stages
    unit = num_batch_shards(setup.mesh) * (pieces if num_stages > 1 else 1)
    footprints: dict[int, Footprint | None] = {}

    def peak_bytes(count: int) -> float:
        if count not in footprints:
            log(f"fit: compiling a micro-batch of {count * unit} rows")
            footprints[count] = measure(section, setup, microbatch_rows=count * unit)
        return footprints[count].peak if footprints[count] else math.inf

    rows = section.batch_size // num_microbatches
    check_mesh(*setup, batch_size=rows, row_length=section.row_length)
    peak, own = peak_bytes(rows // unit), footprints[rows // unit]
    if own:
        log(_table(own, limit_bytes))
    largest = search(peak_bytes, limit_bytes, rows // unit)
    enough = [n for n in range(1, section.batch_size // unit + 1)
              if section.batch_size % (n * unit) == 0 and section.batch_size // n <= largest * unit]
    return {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind,
            "devices": setup.mesh.size, "limit_bytes": limit_bytes, "fits": peak <= limit_bytes,
            "bytes": dataclasses.asdict(own) if own else None, "batch_size": section.batch_size,
            "num_microbatches": num_microbatches, "microbatch_rows": rows,
            "largest_microbatch_rows": largest * unit,
            "largest_peak_bytes": footprints[largest].peak if largest else None,
            "num_microbatches_to_fit": min(enough, default=None),
            "compilations": len(footprints)}


def _table(own: Footprint, limit_bytes: int) -> str:
    """A table of the parts on one device in MB."""
    parts = {"parameters": own.params, "optimizer state": own.opt_state,
             "average of the parameters": own.ema, "guard, step, key": own.other_state,
             "batch": own.batch, "temporaries": own.temporaries,
             "  of which the gradient, about": own.gradient, "peak": own.peak,
             "memory": limit_bytes}
    lines = [f"  {name:32}{size / 1e6:14,.1f} MB" for name, size in parts.items() if size]
    return "\n".join(["one device holds", *lines])


def sentence(result: dict[str, Any]) -> str:
    """The result as a sentence."""
    rows, largest = result["microbatch_rows"], result["largest_microbatch_rows"]
    where = f"{result['devices']} x {result['limit_bytes'] / 1e9:.3g} GB"
    if not largest:
        return (f"does not fit on {where} even with the smallest micro-batch: shard the model over "
                "more devices (--config.mesh) or save less (--config.pretrain.run.remat)")
    head = f"a micro-batch of {rows} rows {'fits' if result['fits'] else 'does not fit'} on {where}"
    tail = f"the largest that fits has {largest} rows"
    if not result["fits"]:
        tail += f": set --config.pretrain.run.num_microbatches={result['num_microbatches_to_fit']}"
    return f"{head}; {tail}"


def main() -> dict[str, Any]:
    """Reads the flags and runs `plan`."""
    config, devices, memory_gb = (flags.FLAGS.config, flags.FLAGS.devices, flags.FLAGS.memory_gb)
    if config is None:
        raise UserError("--config", "is missing", "try --config=configs/quickstart.py")
    for name in ("pretrain", "model", "mesh", "tokenizer"):
        if name not in config:
            raise UserError(f"config.{name}", "this config has no such section",
                            "use a config that pretrains")
    if devices:
        if not memory_gb:
            raise UserError(f"--devices={devices}", "needs the memory of one device",
                            "add for example --memory_gb=80")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    result = plan(config, memory_limit(memory_gb))
    log(sentence(result))
    log(f"compiled for {result['backend']}; another backend has other temporaries")
    return result


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_integer("devices", 0, "Plan for so many devices, simulated; 0: those of here.",
                         lower_bound=0)
    flags.DEFINE_float("memory_gb", 0.0, "Memory of one device in GB; 0: that of here.",
                       lower_bound=0.0)
    entry.run(main)
