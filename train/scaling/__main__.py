"""Scaling laws of runs: fits with intervals, ladders of small runs, and forecasts.

    python -m train.scaling fit --runs=runs/ladder/runs --count=non_embedding --out=runs/law
    python -m train.scaling fit --runs=chinchilla.csv --count=total --drop_highest=5 --figures \\
        --columns="params=Model Size,flops=Training FLOP" --budgets=5.76e23 --out=runs/chinchilla
    python -m train.scaling fit --runs=runs.csv.gz --count=total --law=overtraining \\
        --columns=loss=loss_c4_val,accuracy=acc_hellaswag,corpus=train_data --only=train_data=rpj \\
        --items=10042 --chance=0.25 --holdout_flops=1e21 --out=runs/overtraining
    python -m train.scaling ladder --config=configs/ladder.py:cpu --count=with_head \\
        --parents=runs/quickstart-cpu --out=runs/ladder --dry_run
    python -m train.scaling compare --runs=runs/experts/runs --against=runs/ladder/runs \\
        --count=products --out=runs/experts-law
    python -m train.scaling noise --model=runs/quickstart-cpu/base \\
        --tokens=runs/quickstart-cpu/tokens --out=runs/noise --figures

fit: `--runs` is a run of pretraining, a workdir or a sweep with such runs, or a table: CSV, JSON
lines or Parquet, plain or compressed, with the columns params, tokens and loss (or flops in place
of one of the first two). `--count` says which parameters are counted, as laws of different counts
cannot be compared. Runs of several tokenizers, corpora or lengths of evaluation are refused. Writes
`fit.json`, `runs.jsonl` with the law's prediction of each run, and figures on request.

ladder: trains the runs that the config's section `ladder` names, of several sizes and lengths, on
tokens in `--parents`; fits the law to them, and writes `forecast.json`, the loss of the target by
it, before `--run_target` trains the target and adds how it came out; with no target it ends with
the law. `--dry_run` prints the runs with their FLOPs and time, by `--flops_per_sec` or the speed of
finished runs. The same command again trains what is not finished.

compare: fits the law to `--runs` and to each `--against`, of which there may be several, and writes
`compare.json`: the best loss of each by budget, and the compute multiplier, how many times the
budget of `--runs` the other needs for the same loss, each with its bootstrap interval.

noise: measures gradients of a model on random rows of its training's mixture, or of `--domains`,
in small and in large batches, and writes `noise.json`: the gradient noise scale in tokens with its
interval, and how many more steps and tokens than the fewest possible it implies for the batch of
the training and for others (arXiv 1812.06162).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import write_json
from core.errors import UserError, require_file
from core.overrides import define_config_flag
from core.pairs import parse_pairs
from core.progress import log
from train.scaling.compare import compare_sides, describe_comparison, make_sides
from train.scaling.downstream import LINKS
from train.scaling.figures import draw_all, draw_comparison
from train.scaling.folders import read_folders
from train.scaling.forms import FORMS
from train.scaling.ladder.command import ladder
from train.scaling.noise import noise
from train.scaling.report import Task, describe, fit_all, split_runs
from train.scaling.runs import COUNTS, Runs
from train.scaling.table import read_table
from train.scaling.written import write_fit


def main(words: list[str]) -> dict[str, Any]:
    """Runs the command given by `words`."""
    name = " ".join(words)
    if name not in COMMANDS:
        raise UserError(name or "no command", "is not a command of train.scaling",
                        f"write one of {', '.join(COMMANDS)}")
    command, own = COMMANDS[name]
    for flag in sorted({flag for _, flags_of in COMMANDS.values() for flag in flags_of} - own):
        if flags.FLAGS[flag].present:
            raise UserError(f"--{flag}", f"is no flag of {name}", "leave it out")
    return command(flags.FLAGS)


def fit(values: Any) -> dict[str, Any]:
    """Reads the runs, fits a law, writes it, and returns it."""
    if not values.out:
        raise UserError("--out", "is missing", "name a folder: --out=PATH")
    runs, left_out = read_runs(values, values.runs)
    runs, num_dropped = drop_highest(runs, values.drop_highest)
    if num_dropped:
        left_out = {**left_out, "highest": num_dropped}
    fitted, held = split_runs(runs, values.holdout_flops)
    budgets = _read_budgets(values.budgets)
    report = fit_all(FORMS[values.law], fitted, held, _read_task(values))
    loss_name = _loss_name(values)
    result = {"loss": loss_name, "left_out": left_out} | describe(report, budgets)
    out = Path(values.out)
    write_fit(out, report, result | {"source": str(values.runs)})
    if values.figures:
        result["figures"] = [str(path) for path in draw_all(out, report, loss_name, budgets)]
    return result


def compare(values: Any) -> dict[str, Any]:
    """Reads sets of runs, compares the others with the first, writes that, and returns it."""
    if not values.out:
        raise UserError("--out", "is missing", "name a folder: --out=PATH")
    given = [("runs", values.runs), *(("against", path) for path in values.against or [None])]
    sets, left_out = [], {}
    for flag, path in given:
        runs, left_out[str(path)] = read_runs(values, path, flag)
        sets.append((str(path), runs))
    sides = make_sides(sets, FORMS[values.law])
    for side in sides:
        for warning in side.warnings:
            log(f"compare: {side.name}: {warning}")
    own, *others = sides
    found, loss_name = [compare_sides(own, other) for other in others], _loss_name(values)
    budgets = _read_budgets(values.budgets)
    result = {"loss": loss_name, "left_out": left_out,
              "comparisons": [describe_comparison(each, budgets) for each in found]}
    out = Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", result)
    for other, described in zip(others, result["comparisons"]):
        overall = described["multiplier"]
        log(f"compare: at equal {loss_name}, {other.name} needs {overall['value']:.3g} times the "
            f"compute of {own.name}" + ("" if overall["low"] is None else
                                        f" ({overall['low']:.3g} to {overall['high']:.3g})"))
    if values.figures:
        result["figures"] = [str(draw_comparison(out, found, loss_name))]
    return result


def read_runs(values: Any, given: str | None, flag: str = "runs") -> tuple[Runs, dict[str, int]]:
    """The runs that are given by a flag, and how many were left out by reason.

    Raises:
        UserError: a flag is missing, or does not fit what is read.
    """
    if not given:
        raise UserError(f"--{flag}", "is missing", "name a folder of runs, or a table")
    if not values.count:
        raise UserError("--count", "is missing, and laws of different counts of parameters cannot "
                        "be compared", f"write --count=NAME with one of {', '.join(COUNTS)}")
    path = require_file(f"--{flag}", given, "name a folder of runs, or a table")
    columns, only = parse_pairs("columns", values.columns), parse_pairs("only", values.only)
    if not path.is_dir():
        return read_table(path, values.count, columns=columns, only=only)
    if columns or only:
        raise UserError("--columns and --only", "are for tables", "leave them out")
    return read_folders(path, values.count, values.metric)


def drop_highest(runs: Runs, num: int) -> tuple[Runs, int]:
    """The runs without those of the highest losses, and how many these are."""
    if not num:
        return runs, 0
    if num >= len(runs.names):
        raise UserError(f"--drop_highest={num}", f"leaves none of {len(runs.names)} runs",
                        "drop fewer")
    chosen_R = np.ones(len(runs.names), bool)
    chosen_R[np.argsort(runs.loss_R, kind="stable")[-num:]] = False
    return runs.choose(chosen_R), int((~chosen_R).sum())


def _read_budgets(texts: list[str]) -> list[float]:
    try:
        budgets = [float(text) for text in texts]
    except ValueError:
        budgets = [-1.0]
    if not all(0 < budget < np.inf for budget in budgets):
        raise UserError(f"--budgets={','.join(texts)}", "are no positive numbers",
                        "write FLOPs: --budgets=1e21,1e22")
    return budgets


def _read_task(values: Any) -> Task | None:
    """The task of the column `accuracy`, if one is named."""
    if "accuracy" not in parse_pairs("columns", values.columns):
        return None
    if not values.items:
        raise UserError("--items", "is missing, and the weight of an accuracy follows from it",
                        "write the task's number of items: --items=1000")
    return Task(values.items, values.chance, values.link)


def _loss_name(values: Any) -> str:
    if Path(values.runs).is_dir():
        return values.metric
    return parse_pairs("columns", values.columns).get("loss", "loss")


# Each command, and the flags that it takes.
READING = {"runs", "count", "law", "metric", "columns", "only", "budgets", "out", "figures"}
COMMANDS = {
    "fit": (fit, READING | {"drop_highest", "holdout_flops", "items", "chance", "link"}),
    "ladder": (ladder, {"config", "parents", "count", "law", "metric", "out", "figures", "dry_run",
                        "run_target", "parallel", "flops_per_sec"}),
    "compare": (compare, READING | {"against"}),
    "noise": (noise, {"model", "tokens", "domains", "batch_rows", "batches", "out", "figures"})}


if __name__ == "__main__":
    flags.DEFINE_string("runs", None, "Folder of runs, of a workdir or of a sweep; or a table.")
    flags.DEFINE_multi_string("against", None, "Compare: other runs, as --runs; may be repeated.")
    flags.DEFINE_enum("count", None, list(COUNTS), "Parameters that are counted: "
                      + "; ".join(f"{name}: {words}" for name, words in COUNTS.items()) + ".")
    flags.DEFINE_enum("law", "hoffmann", list(FORMS), "Law of the loss over parameters and tokens.")
    flags.DEFINE_string("metric", "heldout_bpb", "Folders: loss of the evaluations.")
    flags.DEFINE_list("columns", [], "Table: its names of our columns, OURS=THEIRS.")
    flags.DEFINE_list("only", [], "Table: rows whose columns have these values, COLUMN=VALUE.")
    flags.DEFINE_integer("drop_highest", 0, "Leaves out so many runs of the highest losses.",
                         lower_bound=0)
    flags.DEFINE_float("holdout_flops", 0.0, "Runs from so many FLOPs on are predicted, not "
                       "fitted; 0: none.", lower_bound=0.0)
    flags.DEFINE_list("budgets", [], "FLOPs for which the best size is forecast.")
    flags.DEFINE_integer("items", 0, "Items of the task of the column accuracy.", lower_bound=0)
    flags.DEFINE_float("chance", 0.0, "Accuracy of guessing at that task.", lower_bound=0.0,
                       upper_bound=1.0)
    flags.DEFINE_enum("link", "sigmoid", list(LINKS), "Curve of its accuracy over the loss: of "
                      "the loss, or of the perplexity.")
    flags.DEFINE_string("out", None, "Folder that is written.")
    flags.DEFINE_bool("figures", False, "Draws figures into it too; needs matplotlib.")
    define_config_flag()
    flags.DEFINE_string("parents", None, "Ladder: workdir of the tokens that its runs read.")
    flags.DEFINE_bool("dry_run", False, "Ladder: prints its runs, and trains none.")
    flags.DEFINE_bool("run_target", False, "Ladder: trains the target too, after its forecast.")
    flags.DEFINE_integer("parallel", 1, "Ladder: runs at once.", lower_bound=1)
    flags.DEFINE_float("flops_per_sec", 0.0, "Ladder: speed of a run, for its time; 0: that of "
                       "finished runs.", lower_bound=0.0)
    flags.DEFINE_string("model", None, "Noise: model directory.")
    flags.DEFINE_string("tokens", None, "Noise: folder of tokens of the model's tokenizer.")
    flags.DEFINE_list("domains", [], "Noise: domains of the rows, by their sizes; by default the "
                      "mixture of the model's training.")
    flags.DEFINE_list("batch_rows", ["8", "64"], "Noise: rows of a small and of a large batch.")
    flags.DEFINE_integer("batches", 8, "Noise: large batches.", lower_bound=3)
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
