"""Benchmark of reinforcement learning: an iteration of PPO and of GRPO, next to TRL's GRPOTrainer.

    python -m scripts.bench.rl --peer_python=.venv-peers/bin/python [--size=30M]

An iteration samples answers to all prompts, scores them under policy and reference, and updates the
policy on them. Both sides train the same Llama from the same weights, in float32 on a CPU and in
bfloat16 on a GPU, with AdamW and clipping, on the same prompts of random words; no token ends an
answer, so that all have the same length; the reward is a rule on tokens. TRL samples with
transformers. Each trainer has a process of its own; they take turns, and a time is the median of
all iterations after the first turn. `ratio` is TRL's seconds of an iteration of GRPO over ours.

Before that, both score answers that are given and update on them: `check` holds the mean
log-probability and reward, the norm of the first gradient, and the losses, of which the first is 0
and the second is that after an update. Memory is a process's peak on a CPU, an allocator's on a
GPU.
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
from scripts.bench.align_workload import read_work, write_work
from scripts.bench.rl_workload import new_tokens
from scripts.bench.train_workload import SIZES

MB = 1e6
OURS, PEER = "ours_grpo", "trl_grpo"
TRAINERS = {OURS: ("rl_ours", "grpo"), PEER: ("peer_trl_grpo", "grpo"),
            "ours_ppo": ("rl_ours", "ppo")}
PARTS = ("rollout", "score", "update")


def check_flags(given: Any) -> None:
    """Raises `UserError` for sizes that there are not, or that do not fit each other."""
    if given.size not in SIZES:
        raise UserError(f"--size={given.size}", "is no known size",
                        f"choose among {', '.join(SIZES)}")
    if given.prompts % given.minibatches:
        raise UserError(f"--minibatches={given.minibatches}",
                        f"does not divide the {given.prompts} prompts of an iteration",
                        "change it or --prompts")


def summarise(results: Mapping[str, Mapping[str, Any]], num_tokens: int) -> dict[str, Any]:
    """Medians and shares by trainer, or why it has none.

    Args:
        results: of `scripts.bench.align_turns.measure`.
        num_tokens: that every answer must have: else the sides did not do the same work.
    """
    found: dict[str, Any] = {}
    for name, row in results.items():
        if "error" in row:
            found[name] = {"error": row["error"]}
        elif set(row["answer_tokens"]) != {num_tokens}:
            found[name] = {"error": f"its answers do not all have {num_tokens} tokens"}
        else:
            secs = statistics.median(row["secs"])
            found[name] = {"secs": secs, "peak_bytes": row["peak_bytes"]} | {
                f"{part}_frac": statistics.median(row[f"{part}_secs"]) / secs for part in PARTS}
    return found


def compare(summary: Mapping[str, Mapping[str, Any]],
            results: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """TRL's GRPO over ours: by part, the peak of memory, and last the whole iteration; and the
    largest relative difference of what both find of the given answers. None where one failed."""
    if any("error" in summary[name] for name in (OURS, PEER)):
        return dict.fromkeys(("check_difference", *(f"ratio_{part}" for part in PARTS),
                              "ratio_memory", "ratio"))
    secs = {name: [summary[name]["secs"] * summary[name][f"{part}_frac"] for part in PARTS]
            for name in (OURS, PEER)}
    checks = [[*(row["check"][key] for key in ("logp", "reward", "gradient_norm")),
               row["check"]["losses"][-1]] for row in (results[OURS], results[PEER])]
    ratios = {f"ratio_{part}": round(peer / ours, 3)
              for part, ours, peer in zip(PARTS, secs[OURS], secs[PEER])}
    return {"check_difference": max(abs(ours - peer) / abs(peer) for ours, peer in zip(*checks)),
            **ratios,
            "ratio_memory": round(summary[PEER]["peak_bytes"] / summary[OURS]["peak_bytes"], 3),
            "ratio": round(summary[PEER]["secs"] / summary[OURS]["secs"], 3)}


def print_table(summary: Mapping[str, Mapping[str, Any]],
                results: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each trainer."""
    print("| trainer | seconds an iteration | rollouts | scoring | updates | peak, MB | log-prob. "
          "| gradient | loss after an update |\n|" + "---|" * 9)
    for name, row in summary.items():
        if "error" in row:
            cells = [row["error"], *[""] * 7]
        else:
            check = results[name]["check"]
            cells = [f"{row['secs']:.3f}", *(f"{row[f'{part}_frac']:.0%}" for part in PARTS),
                     f"{row['peak_bytes'] / MB:,.0f}", f"{check['logp']:.5f}",
                     f"{check['gradient_norm']:.5f}", f"{check['losses'][-1]:.5f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> dict[str, Any]:
    """Reads the flags, measures, prints a table."""
    given = flags.FLAGS
    check_flags(given)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(folder, SIZES[given.size], row_length=given.row_length, num_pairs=given.prompts)
        write_weights(folder, SIZES[given.size])
        results = measure(TRAINERS, folder, peer_python=given.peer_python,
                          num_steps=given.iterations, num_turns=given.turns,
                          num_samples=given.samples, num_minibatches=given.minibatches)
        num_tokens = new_tokens(read_work(name))
    summary = summarise(results, num_tokens)
    print_table(summary, results)
    return {"size": given.size, "prompts": given.prompts, "samples": given.samples,
            "minibatches": given.minibatches, "row_length": given.row_length,
            "new_tokens": num_tokens, "device": jax.devices()[0].device_kind,
            "trainers": results, "summary": summary, **compare(summary, results)}


if __name__ == "__main__":
    flags.DEFINE_string("peer_python", ".venv-peers/bin/python", "A Python that has TRL.")
    flags.DEFINE_string("size", "30M", "Model shape.")
    flags.DEFINE_integer("prompts", 4, "Prompts of an iteration.", lower_bound=1)
    flags.DEFINE_integer("samples", 8, "Answers to each prompt.", lower_bound=2)
    flags.DEFINE_integer("minibatches", 2, "Updates of an iteration; with one, TRL scores the "
                         "reference alone.", lower_bound=1)
    flags.DEFINE_integer("row_length", 96, "The longest prompt and answer; half of it is the "
                         "answer.", lower_bound=16)
    flags.DEFINE_integer("iterations", 2, "Iterations of a turn: all is compiled after two.",
                         lower_bound=2)
    flags.DEFINE_integer("turns", 3, "Turns that are timed.", lower_bound=1)
    entry.run(main)
