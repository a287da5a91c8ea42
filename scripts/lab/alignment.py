"""Experiments on alignment, on a task whose answers can all be enumerated.

    python -m scripts.lab.alignment --experiment=label_noise --seeds=3 --out=runs/lab

overoptimisation: gold reward against divergence for a proxy reward fitted to few pairs.
label_noise: losses on pairs of which a share is swapped.
ranking: reward models fitted to rankings of K answers, at equal numbers of ranked answers.
hacking: PPO on a proxy reward with a flaw, at several strengths of the penalty.
length_bias: losses on pairs whose labels prefer long answers.
tax: what is forgotten on prompts without a reward, with and without pretraining text.

Rewards and divergences are sums over all answers (`align.rl.exact`), so that no error of sampling
is in them; intervals are Student's over seeds, each of which draws a source, rewards, labels and
weights of its own. `--out` gets a folder for the experiment, with its table and its figure. A run
that was stopped goes on with the rows that the folder lacks. docs/alignment_lab.md has the results
and what they mean.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from scripts.bench.frontier import make_world
from scripts.bench.frontier_results import add_rows, open_results, summarise
from scripts.lab import hacking, label_noise, length_bias, overoptimisation, ranking, tax
from scripts.lab.experiment import Experiment, format_table

EXPERIMENTS = {"overoptimisation": overoptimisation.EXPERIMENT,
               "label_noise": label_noise.EXPERIMENT, "ranking": ranking.EXPERIMENT,
               "hacking": hacking.EXPERIMENT, "length_bias": length_bias.EXPERIMENT,
               "tax": tax.EXPERIMENT}


def run_seed(experiment: Experiment, seed: int, folder: Path) -> dict[str, Any]:
    """The rows of a seed; what the folder holds of the same plan is not computed again.

    Raises:
        UserError: the folder holds results of another plan.
    """
    plan, path = experiment.plan, folder / f"seed_{seed}.json"
    folder.mkdir(parents=True, exist_ok=True)
    result = open_results(path, plan)
    world = make_world(plan.base, seed, folder / f"reference_{seed}.npz")
    add_rows(path, result, experiment.list_rows(plan, world, seed))
    return result


def main() -> dict[str, Any]:
    """Reads the flags, runs all seeds, prints a table and draws the figure."""
    name, seeds, out = flags.FLAGS.experiment, flags.FLAGS.seeds, flags.FLAGS.out
    if name not in EXPERIMENTS:
        raise UserError(f"--experiment={name!r}", "there is no such experiment",
                        f"choose one of {', '.join(EXPERIMENTS)}")
    if not out:
        raise UserError("--out", "is missing", "try --out=runs/lab")
    experiment, folder = EXPERIMENTS[name], Path(out) / name
    results = [run_seed(experiment, seed, folder) for seed in range(seeds)]
    summary = summarise(results)
    table = format_table(experiment.columns, summary)
    (folder / "table.md").write_text(table)
    print(table, end="", flush=True)
    experiment.draw(folder / "figure.png", experiment.plan, [each["rows"] for each in results])
    return {"experiment": name, "seeds": seeds, "rows": summary}


if __name__ == "__main__":
    flags.DEFINE_string("experiment", "", "One of the names above.")
    flags.DEFINE_integer("seeds", 3, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_string("out", "", "Folder of the results.")
    entry.run(main)
