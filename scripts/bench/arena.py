"""Benchmark of the arena: a leaderboard of planted votes, from the file to the page.

    python -m scripts.bench.arena --votes=100000 --models=100

Writes votes of models whose strengths are drawn from a normal distribution, with voters, times,
categories, prompts and counts of style, and runs `python -m eval.arena` on them in a process of its
own, with its bootstrap of 1,000 samples. Prints the seconds of each round, start of Python
included, and one JSON line last: their median, and the share of models whose interval holds the
planted rating.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import ROOT, read_json, write_jsonl
from core.errors import UserError
from eval.arena.bradley_terry import CENTRE, SCALE

MAX_TIES = 0.2      # their share between equal models
CATEGORIES = ("coding", "maths", "writing", "other")
STYLES = {"words": 500, "header": 4, "list": 10, "bold": 10}      # and more than the largest count


def plant_votes(path: Path, num_votes: int, num_models: int, seed: int) -> np.ndarray:
    """Writes votes between random models; returns the models' ratings, [models]."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(size=num_models)
    first = rng.integers(num_models, size=num_votes)
    second = (first + rng.integers(1, num_models, size=num_votes)) % num_models
    p_first, drawn = 1 / (1 + np.exp(strengths[second] - strengths[first])), rng.random(num_votes)
    half_ties = 2 * MAX_TIES * p_first * (1 - p_first)      # which leave the mean score as it is
    wins, ties = drawn < p_first - half_ties, np.abs(drawn - p_first) <= half_ties
    numbers = {name: rng.integers(high, size=num_votes) for name, high in {
        "annotator": num_votes // 30 + 1, "prompt": num_votes // 2 + 1,
        "category": len(CATEGORIES)}.items()}
    styles = {f"{name}_{side}": rng.integers(high, size=num_votes)
              for name, high in STYLES.items() for side in "ab"}
    secs = rng.exponential(30, size=num_votes)
    write_jsonl(path, ({
        "id": n, "model_a": f"model-{first[n]}", "model_b": f"model-{second[n]}",
        "winner": "tie" if ties[n] else "model_a" if wins[n] else "model_b",
        "annotator": f"voter-{numbers['annotator'][n]}", "prompt": f"prompt {numbers['prompt'][n]}",
        "category": CATEGORIES[numbers["category"][n]], "time": 1.7e9 + 30 * n,
        "secs": round(float(secs[n]), 1),
        **{name: int(counts[n]) for name, counts in styles.items()}} for n in range(num_votes)))
    return CENTRE + SCALE * (strengths - strengths.mean())


def time_command(votes: Path, out: Path) -> float:
    """Seconds of `python -m eval.arena`; raises `UserError` where it fails."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "eval.arena", str(votes), f"--out={out}"],
                          capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise UserError("eval.arena", f"failed with {done.stderr.strip()[-200:]}",
                        "this is a defect: report it")
    return time.perf_counter() - start


def measure(num_votes: int, num_models: int, rounds: int, seed: int) -> dict[str, Any]:
    """Times the command on planted votes; see the module."""
    with tempfile.TemporaryDirectory() as folder:
        votes, out = Path(folder) / "votes.jsonl", Path(folder) / "out"
        truth = plant_votes(votes, num_votes, num_models, seed)
        secs = [time_command(votes, out) for _ in range(rounds)]
        rows = {row["model"]: row for row in read_json(out / "arena.json")["models"]}
        sizes = {"file_bytes": votes.stat().st_size,
                 "page_bytes": (out / "arena.html").stat().st_size}
    inside = [rows[name]["low"] < truth[i] < rows[name]["high"]
              for i in range(num_models) if (name := f"model-{i}") in rows]
    for number, value in enumerate(secs, start=1):
        print(f"round {number}: {value:.2f} s")
    return {"votes": num_votes, "models": num_models, "secs": round(statistics.median(secs), 2),
            "inside_frac": float(np.mean(inside)), **sizes}


def main() -> dict[str, Any]:
    """Reads the flags and measures."""
    values = flags.FLAGS
    return measure(values.votes, values.models, values.rounds, values.seed)


if __name__ == "__main__":
    flags.DEFINE_integer("votes", 100_000, "Votes in the file.", lower_bound=1)
    flags.DEFINE_integer("models", 100, "Models that they compare.", lower_bound=2)
    flags.DEFINE_integer("rounds", 3, "How often the command runs.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the votes.", lower_bound=0)
    entry.run(main)
