"""Benchmark of fine-tuning: a step that trains an adapter beside one that trains all parameters.

    python -m scripts.bench.lora [--size=30M] [--rank=8] [--batch_size=4] [--row_length=256]

Each kind of step is training's own, with AdamW, in float32 and in bfloat16; in bfloat16 the frozen
parameters are also cast once, as fine-tuning does it. Memory is the compiler's account: what goes
in (state, frozen parameters, batch), temporaries, and the peak of both with what goes out beyond
the donated state. Steps are timed in turns, one of each kind after the other; a time is the median
of the turns.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
from absl import flags

from align.finetune import with_adapter
from core import entry
from core.errors import UserError
from core.progress import log
from model.adapters.lora import Lora, cast_frozen, init_lora
from model.execution import COMPUTE_DTYPES
from model.families.registry import init
from scripts.bench.train_step import make_batches, make_optimizing_step, make_setup
from scripts.bench.train_workload import SIZES, Workload
from train.loss import next_token_loss
from train.step import place_batch

MB = 1e6


class Kind(NamedTuple):
    """A kind of step.

    Attributes:
        dtype: of matmuls.
        is_full: whether all parameters are trained.
        is_cast: whether the frozen ones are held in `dtype`.
    """

    dtype: str
    is_full: bool = False
    is_cast: bool = False

    @property
    def name(self) -> str:
        """As the table names it."""
        base = self.dtype if self.is_cast else "float32"
        return f"{self.dtype}, " + ("all parameters" if self.is_full else f"LoRA on {base}")


class Step:
    """One kind of step, compiled, with its state.

    Args:
        work: sizes; its dtype is the kind's.
    """

    def __init__(self, kind: Kind, work: Workload, lora: Lora):
        setup = make_setup(work)
        params = jax.jit(partial(init, setup.config))(jax.random.key(0))
        loss_fn = partial(next_token_loss, config=setup.config, execution=setup.execution)
        self._frozen = None
        if not kind.is_full:
            self._frozen = cast_frozen(params, setup.execution) if kind.is_cast else params
            params = jax.jit(partial(init_lora, setup.config, lora))(jax.random.key(1))
            loss_fn = with_adapter(loss_fn, lora)
        self.num_trained = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._mesh, self.secs = setup.mesh, []
        with jax.set_mesh(setup.mesh):
            self._state, step = make_optimizing_step(params, loss_fn, setup.mesh)
            self._batch = place_batch(make_batches(work)[0], setup.mesh)
            self._step = step.lower(self._state, self._batch, self._frozen).compile()

    def run(self) -> None:
        """Takes one step and keeps its seconds."""
        began = time.perf_counter()
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, self._batch, self._frozen)
        jax.block_until_ready((self._state, metrics))
        self.secs.append(time.perf_counter() - began)

    def figures(self) -> dict[str, Any]:
        """Bytes and the median of the seconds, without the first step."""
        memory = self._step.memory_analysis()
        return {"num_trained": self.num_trained,
                "frozen_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(self._frozen)),
                "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(
                    (self._state.params, self._state.opt_state))),
                "temporary_bytes": memory.temp_size_in_bytes,
                "peak_bytes": (memory.argument_size_in_bytes + memory.output_size_in_bytes
                               - memory.alias_size_in_bytes + memory.temp_size_in_bytes),
                "step_secs": statistics.median(self.secs[1:])}


def main() -> dict[str, Any]:
    """Reads the flags, measures, and prints a line for each kind."""
    given = flags.FLAGS
    if given.size not in SIZES:
        raise UserError(f"--size={given.size}", "is no known size",
                        f"choose among {', '.join(SIZES)}")
    lora, kinds = Lora(given.rank), [
        kind for dtype in COMPUTE_DTYPES for kind in (
            Kind(dtype, is_full=True), Kind(dtype),
            *([] if dtype == "float32" else [Kind(dtype, is_cast=True)]))]
    steps = {}
    for kind in kinds:
        log(f"{kind.name}: compiling")
        steps[kind] = Step(kind, Workload(given.size, given.batch_size, given.row_length,
                                          kind.dtype, given.steps), lora)
    for _ in range(1 + given.steps):
        for step in steps.values():
            step.run()
    result = {kind: step.figures() for kind, step in steps.items()}
    for kind, row in result.items():
        full = result[Kind(kind.dtype, is_full=True)]
        row |= {"memory_ratio": round(row["peak_bytes"] / full["peak_bytes"], 3),
                "time_ratio": round(row["step_secs"] / full["step_secs"], 3)}
        print(f"{kind.name:28} {row['num_trained'] / MB:6.2f}M trained, state "
              f"{row['state_bytes'] / MB:,.0f} MB, frozen {row['frozen_bytes'] / MB:,.0f}, "
              f"temporaries {row['temporary_bytes'] / MB:,.0f}, peak {row['peak_bytes'] / MB:,.0f} "
              f"({row['memory_ratio']:.2f}), {row['step_secs']:.3f} s a step "
              f"({row['time_ratio']:.2f})", flush=True)
    return {"size": given.size, "rank": given.rank, "batch_size": given.batch_size,
            "row_length": given.row_length, "device": jax.devices()[0].device_kind,
            "kinds": {kind.name: row for kind, row in result.items()}}


if __name__ == "__main__":
    flags.DEFINE_string("size", "30M", "Model shape.")
    flags.DEFINE_integer("rank", 8, "Rank of the adapter, of all projections.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 4, "Rows of a step.", lower_bound=1)
    flags.DEFINE_integer("row_length", 256, "Tokens of a row.", lower_bound=2)
    flags.DEFINE_integer("steps", 7, "Turns that are timed.", lower_bound=1)
    entry.run(main)
