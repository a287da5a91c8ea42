"""Compares pretraining recipes: paired differences over seeds, with confidence intervals.

    python -m scripts.bench.recipe --runs=runs/sweep --baseline=muon_plain \\
        --against=muon_anneal,adamw_anneal

Reads finished models in folders RECIPE_SEED, e.g. muon_plain_0. Seeds pair runs, because a seed
fixes the initial weights and the order of the rows; the interval is Student's over the pairs'
differences. Runs must have the same data, model and tokens; other differences of their configs are
printed as the recipe. Fewer bits per byte are better.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from scipy.special import stdtrit

from core import entry
from core.artifacts import read_json, read_lineage
from core.errors import UserError
from eval.statistics import mean_and_stderr

# Fields that are not part of the recipe.
INCIDENTAL = {"pretrain.out", "pretrain.seed"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished model.

    Attributes:
        config: its config, flat: dotted field to value, without `INCIDENTAL` ones.
        inputs: fingerprints of what it was trained on.
    """

    bpb: float
    secs: float
    tokens: int
    config: dict[str, Any]
    inputs: dict[str, str]


def read_runs(folder: Path, recipe: str) -> dict[int, Run]:
    """All finished runs of a recipe, by seed.

    Raises:
        UserError: there is none, or two of them differ in more than the seed.
    """
    runs = {}
    for path in sorted(folder.glob(f"{recipe}_*")):
        seed = re.fullmatch(rf"{re.escape(recipe)}_(\d+)", path.name)
        if seed is None or not (path / "metrics.json").exists():
            continue
        metrics, lineage = read_json(path / "metrics.json"), read_lineage(path)
        if "heldout_bpb" not in metrics:
            raise UserError(str(path), "has no heldout_bpb: its corpus holds no page out",
                            "curate with --config.curate.heldout.frac above 0")
        runs[int(seed[1])] = Run(metrics["heldout_bpb"], metrics["secs"], metrics["tokens"],
                                 _flat(lineage["config"]), lineage["inputs"])
    if not runs:
        raise UserError(f"{folder}/{recipe}_*", "has no finished run",
                        "train with --config.pretrain.out=RECIPE_SEED")
    first, *others = runs.values()
    for run in others:
        if changed := _changes(first.config, run.config):
            raise UserError(f"{recipe}: {min(changed)}", "differs between seeds",
                            "give each recipe a name of its own")
    return runs


def compare(baseline: Mapping[int, Run], other: Mapping[int, Run]) -> dict[str, Any]:
    """Differences other - baseline in bits per byte and seconds over their common seeds.

    Raises:
        UserError: fewer than two common seeds, or the runs used other data or numbers of tokens.
    """
    seeds = sorted(set(baseline) & set(other))
    if len(seeds) < 2:
        raise UserError(f"seeds {seeds}", "are too few to compare", "run at least two per recipe")
    pairs = [(baseline[seed], other[seed]) for seed in seeds]
    for a, b in pairs:
        if (a.inputs, a.tokens) != (b.inputs, b.tokens):
            raise UserError(f"{a.tokens} and {b.tokens} tokens of {a.inputs} and {b.inputs}",
                            "differ", "compare runs on the same tokens")
    first = pairs[0]
    return {"seeds": seeds, "changes": _changes(first[0].config, first[1].config),
            "bpb": difference([a.bpb for a, _ in pairs], [b.bpb for _, b in pairs]),
            "secs": difference([a.secs for a, _ in pairs], [b.secs for _, b in pairs])}


def difference(baseline: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Mean of other - baseline over pairs, and the 95 % interval of Student's t."""
    mean, stderr = mean_and_stderr([b - a for a, b in zip(baseline, other, strict=True)])
    half = float(stdtrit(len(baseline) - 1, 0.975)) * stderr
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{path}.")
        elif path not in INCIDENTAL:
            flat[path] = value
    return flat


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [a.get(name), b.get(name)] for name in sorted({*a, *b})
            if a.get(name) != b.get(name)}


def bench(folder: Path, baseline: str, against: Sequence[str]) -> dict[str, Any]:
    """Prints both tables; returns their figures."""
    runs = {recipe: read_runs(folder, recipe) for recipe in (baseline, *against)}
    summary = {}
    for recipe, by_seed in runs.items():
        summary[recipe] = {"bpb": {seed: run.bpb for seed, run in by_seed.items()},
                           "mean_bpb": statistics.mean(run.bpb for run in by_seed.values()),
                           "median_secs": statistics.median(run.secs for run in by_seed.values())}
        print(f"{recipe:16} {summary[recipe]['mean_bpb']:.4f} bits per byte  "
              + "  ".join(f"{seed}: {run.bpb:.4f}" for seed, run in by_seed.items())
              + f"  {summary[recipe]['median_secs']:.0f} s")
    compared = {}
    for recipe in against:
        compared[recipe] = result = compare(runs[baseline], runs[recipe])
        bpb, secs = result["bpb"], result["secs"]
        print(f"{recipe} - {baseline}: {bpb['mean']:+.4f} bits per byte ({bpb['low']:+.4f} to "
              f"{bpb['high']:+.4f}), {secs['mean']:+.0f} s, {len(result['seeds'])} seeds")
        for name, (a, b) in result["changes"].items():
            print(f"  {name}: {a} -> {b}")
    return {"baseline": baseline, "recipes": summary, "differences": compared}


def main() -> dict[str, Any]:
    """Reads the flags and compares."""
    for name in ("runs", "baseline"):
        if not flags.FLAGS[name].value:
            raise UserError(f"--{name}", "is missing",
                            "try --runs=runs/sweep --baseline=muon_plain --against=muon_anneal")
    return bench(Path(flags.FLAGS.runs), flags.FLAGS.baseline, flags.FLAGS.against)


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "Folder of finished models, RECIPE_SEED each.")
    flags.DEFINE_string("baseline", None, "Recipe that the others are compared with.")
    flags.DEFINE_list("against", [], "The other recipes.")
    entry.run(main)
