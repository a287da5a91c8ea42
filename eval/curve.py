"""Learning curves over the checkpoints of a run: what emerges when, with noise bands.

    python -m eval.curve --run=runs/quickstart/base --corpus=runs/quickstart/corpus \\
        --tasks=documentation=100,verifiable=100 --out=runs/quickstart/curve
    python -m eval.curve --table=evals.csv.gz --only=model=pythia-1b-bf16,shots=zero-shot \\
        --items=piqa=1838,sciq=1000 --chance=piqa=0.5,sciq=0.25 --out=runs/pythia

With `--run` the saved checkpoints are evaluated one after the other; with `--table` the scores are
read from a file whose rows have step, task, metric and value. Writes `points.jsonl`, which is such
a table, `curves.jsonl` with what each curve says, and `page.html`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import read_lineage, write_jsonl
from core.errors import UserError
from core.file_sums import sum_file
from core.pairs import parse_pairs
from core.progress import log
from data.layouts.rows import find_files
from eval.aggregate.curve_page import render
from eval.aggregate.curves import Curve, Summary, find_missing, make_curves, read_curves, summarise
from eval.checkpoints import measure_checkpoints, open_run, recorded
from eval.tasks.registry import open_tasks


def write_curves(out: Path, title: str, curves: Sequence[Curve]) -> dict[str, Any]:
    """Writes the points, what they say, and the page; the metrics for the last line."""
    summaries, missing = [summarise(curve) for curve in curves], find_missing(curves)
    for (series, task, metric), steps in missing.items():
        log(f"curve: {task} {metric}{f' of {series}' if series else ''}: {len(steps)} checkpoints "
            f"have no score, the first is step {steps[0]}")
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "points.jsonl", (row for curve in curves for row in _point_rows(curve)))
    write_jsonl(out / "curves.jsonl", (
        {"series": curve.series, "task": curve.task, "metric": curve.metric,
         "checkpoints": len(curve.points), **dataclasses.asdict(found)}
        for curve, found in zip(curves, summaries)))
    (out / "page.html").write_text(render(title, curves, summaries, missing), "utf-8")
    return {"curves": len(curves), "series": len({curve.series for curve in curves}),
            "points": sum(len(curve.points) for curve in curves),
            "emerges_at": _by_name(curves, summaries),
            "missing": {_name(*names): steps for names, steps in missing.items()},
            "page": str(out / "page.html")}


def _point_rows(curve: Curve) -> list[dict[str, Any]]:
    rows = []
    for point, interval in zip(curve.points, curve.intervals):
        low, high = interval or (None, None)
        rows.append({"series": curve.series, "task": curve.task, "metric": curve.metric,
                     "step": point.step, "tokens": point.tokens,
                     **dataclasses.asdict(point.score), "low": low, "high": high})
    return rows


def _by_name(curves: Sequence[Curve], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Of each accuracy the step at which it emerges, or why there is none."""
    return {_name(curve.series, curve.task, curve.metric):
            found.emergence if found.emerges_at is None else found.emerges_at
            for curve, found in zip(curves, summaries) if found.emergence != "no accuracy"}


def _name(series: str, task: str, metric: str) -> str:
    return f"{task} {metric}" + (f" ({series})" if series else "")


def _from_table(values: Mapping[str, Any]) -> tuple[str, list[Curve], dict[str, Any]]:
    path = Path(values["table"].value)
    curves, left_out = read_curves(
        path, only=parse_pairs("only", values["only"].value),
        items=parse_pairs("items", values["items"].value, int),
        chance=parse_pairs("chance", values["chance"].value, float),
        tokens_per_step=values["tokens_per_step"].value)
    return path.name, curves, {"left_out": left_out}


def _from_run(values: Mapping[str, Any], out: Path) -> tuple[str, list[Curve], dict[str, Any]]:
    counts = parse_pairs("tasks", values["tasks"].value, int)
    corpus = Path(values["corpus"].value) if values["corpus"].value else None
    tasks = open_tasks(counts, corpus, values["inputs"].value)
    if not tasks:
        raise UserError("--tasks", "names no task", "write --tasks=NAME=NUMBER, or --inputs=FILE")
    run = open_run(Path(values["run"].value))
    log(f"curve: {len(run.steps)} checkpoints of {run.folder}, "
        f"{', '.join(task.name for task, _ in tasks)}")
    origin = {"corpus": read_lineage(corpus)["build"] if corpus else "",
              "inputs": [[str(file), sum_file(file)] for text in values["inputs"].value.split(",")
                         if text for file in find_files(Path(text))]}
    rows, failed = measure_checkpoints(
        run, tasks, out / "steps", raw=values["raw"].value, origin=origin,
        row_length=values["row_length"].value, batch_size=values["batch_size"].value,
        seed=values["seed"].value)
    curves, _ = make_curves([*rows, *recorded(run)])
    return run.folder.name, curves, {"checkpoints": len(run.steps) - len(failed),
                                     "left_out": failed}


def main() -> dict[str, Any]:
    """Reads the flags, makes the curves and writes them."""
    values = flags.FLAGS
    if not values.out:
        raise UserError("--out", "is missing", "name a folder: --out=PATH")
    if bool(values.run) == bool(values.table):
        raise UserError("--run and --table", "exactly one of them is needed",
                        "name the folder of a run, or a file of scores")
    out = Path(values.out)
    title, curves, metrics = (_from_run(values, out) if values.run else _from_table(values))
    return metrics | write_curves(out, title, curves)


if __name__ == "__main__":
    flags.DEFINE_string("run", None, "Folder of a run, whose saved checkpoints are evaluated.")
    flags.DEFINE_list("tasks", [], "--run: tasks with their numbers of questions, TASK=NUMBER.")
    flags.DEFINE_string("corpus", None, "--run: folder of the corpus that tasks are drawn from.")
    flags.DEFINE_string("inputs", "", "--run: files of questions, separated by commas.")
    flags.DEFINE_bool("raw", False, "--run: the raw parameters, where a running average is kept.")
    flags.DEFINE_integer("row_length", 256, "--run: tokens of a row of questions.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 16, "--run: rows, or answers, at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 1, "--run: of the draw of the questions.")
    flags.DEFINE_string("table", None, "Scores: CSV, JSON lines or Parquet.")
    flags.DEFINE_list("only", [], "--table: rows whose columns have these values, COLUMN=VALUE.")
    flags.DEFINE_list("items", [], "--table: number of items, TASK=NUMBER, where no column is.")
    flags.DEFINE_list("chance", [], "--table: value of guessing, TASK=SHARE, where no column is.")
    flags.DEFINE_integer("tokens_per_step", 0, "--table: tokens of a step, where no column is.",
                         lower_bound=0)
    flags.DEFINE_string("out", None, "Folder that is written.")
    entry.run(main)
