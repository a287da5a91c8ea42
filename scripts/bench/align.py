"""Benchmark of fine-tuning: a step of SFT and of DPO, next to TRL's trainers.

    python -m scripts.bench.align --peer_python=.venv-peers/bin/python [--size=30M]

Both sides train the same Llama from the same weights on the same pairs of random words, in float32
on a CPU and in bfloat16 on a GPU, with AdamW and clipping. Each trainer has a process of its own;
they take turns, and a time is the median of all steps after the first turn. DPO of ours scores the
reference once; TRL's does so at each step by default (`trl_dpo`), or once as well
(`trl_dpo_precomputed`), which `ratio` is taken of: TRL's seconds over ours. The first losses say
that both sides compute the same. Memory is a process's peak on a CPU, an allocator's on a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import flags

from core import entry
from core.errors import UserError
from scripts.bench.align_turns import measure, write_weights
from scripts.bench.align_workload import write_work
from scripts.bench.train_workload import SIZES

MB = 1e6
OURS, PEER = "align_ours", "peer_trl"
TRAINERS = {"ours_sft": (OURS, "sft"), "trl_sft": (PEER, "sft"), "ours_dpo": (OURS, "dpo"),
            "trl_dpo": (PEER, "dpo"), "trl_dpo_precomputed": (PEER, "dpo_precomputed")}


def compare(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios of medians, the peer's over ours, and the largest difference of the first loss."""
    secs = {name: statistics.median(row["secs"]) for name, row in results.items() if "secs" in row}
    pairs = {"ratio_sft": ("trl_sft", "ours_sft"), "ratio_dpo_default": ("trl_dpo", "ours_dpo"),
             "ratio": ("trl_dpo_precomputed", "ours_dpo")}
    return {name: round(secs[peer] / secs[ours], 3) if {peer, ours} <= secs.keys() else None
            for name, (peer, ours) in pairs.items()}


def main() -> dict[str, Any]:
    """Reads the flags, measures, prints a table."""
    given = flags.FLAGS
    if given.size not in SIZES:
        raise UserError(f"--size={given.size}", "is no known size",
                        f"choose among {', '.join(SIZES)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(folder, SIZES[given.size], row_length=given.row_length,
                   num_pairs=given.batch_size * given.steps)
        write_weights(folder, SIZES[given.size])
        results = measure(TRAINERS, folder, peer_python=given.peer_python, num_steps=given.steps,
                          num_turns=given.turns, batch_size=given.batch_size)
    print("| trainer | seconds a step | first loss | peak, MB |\n|---|---|---|---|")
    for name, row in results.items():
        cells = [row["error"], "", ""] if "error" in row else [
            f"{statistics.median(row['secs']):.3f}", f"{row['losses'][0]:.5f}",
            f"{row['peak_bytes'] / MB:,.0f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return {"size": given.size, "batch_size": given.batch_size, "row_length": given.row_length,
            "device": jax.devices()[0].device_kind, "trainers": results, **compare(results)}


if __name__ == "__main__":
    flags.DEFINE_string("peer_python", ".venv-peers/bin/python", "A Python that has TRL.")
    flags.DEFINE_string("size", "30M", "Model shape.")
    flags.DEFINE_integer("batch_size", 8, "Conversations or pairs of a step.", lower_bound=1)
    flags.DEFINE_integer("row_length", 256, "The longest row.", lower_bound=16)
    flags.DEFINE_integer("steps", 3, "Steps of a turn.", lower_bound=1)
    flags.DEFINE_integer("turns", 3, "Turns that are timed.", lower_bound=1)
    entry.run(main)
