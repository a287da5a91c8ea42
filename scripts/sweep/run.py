"""Sweeps: runs stages for every setting of some config fields, and prints a table of results.

    python -m scripts.sweep.run --config=configs/quickstart.py:smoke --workdir=runs/sweep \\
        --parents=runs/quickstart-smoke --stages=train.pretrain \\
        --grid=pretrain.optimizer.learning_rate=0.01,0.02 --grid=pretrain.seed=0,1,2

Every `--grid` is an axis, and so is every `--zip="a=1,2;b=3,4"`, whose fields change together; the
points are their product. `--random=field=loguniform(1e-4,1e-1)` (also uniform, randint, choice)
draws a value for each of `--trials` trials, which form one more axis. Settings are checked against
the config before anything runs.

A point is a workdir of its own, named by its settings, under `--workdir`; artifacts that its stages
read and do not build are in `--parents`. If the same command is called again, finished points are
skipped and failed ones retried; another grid in the same workdir adds its points. `results.jsonl`
has a line per point of all calls; the printed table has a line per setting of those with the same
stages and config, averaged over seeds, with standard errors and what cannot be told from the best;
`--figure` draws it where one field is swept.
--launcher=slurm renders (and --submit submits) one job array; afterwards --launcher=none prints its
table.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.artifacts import read_json, write_jsonl
from core.errors import UserError
from core.points import (
    Point,
    Runner,
    are_comparable,
    plan_points,
    read_earlier_results,
    read_results,
)
from core.progress import log
from core.stages import config_arguments, load_config, read_stages
from scripts.launch.job import deliver
from scripts.launch.slurm import Allocation, define_slurm_flags, read_allocation, submit
from scripts.sweep.axes import grid_axis, make_points, random_axis, zip_axis
from scripts.sweep.figure import draw
from scripts.sweep.table import average_seeds, fill_settings, find_ties, show_table


def read_points() -> list[Point]:
    """The sweep's points by the flags, each checked against the config.

    Raises:
        UserError: an axis, a field or a value is invalid, or a parent is missing.
    """
    given = flags.FLAGS
    config, workdir = entry.config_and_workdir()
    stages = read_stages(given.stages, config)
    axes = [*(grid_axis(text) for text in given.grid), *(zip_axis(text) for text in given.zip)]
    if given.random:
        axes.append(random_axis(given.random, trials=given.trials, seed=given.seed))
    if not axes:
        raise UserError("--grid, --zip, --random", "are all missing",
                        "try --grid=pretrain.optimizer.learning_rate=0.01,0.02")
    points = plan_points(stages, make_points(axes), config, config_arguments(),
                         workdir=workdir.absolute(),
                         parents=Path(given.parents).absolute() if given.parents else None)
    for point in points:
        load_config(point.arguments, f"point {point.folder.name}")
    return points


def render_array(points: list[Point], allocation: Allocation, parallel: int) -> str:
    """A batch script that runs one point in each task of a job array."""
    own = [word for word in sys.argv[1:] if word.lstrip("-").partition("=")[0] not in (
        "launcher", "submit", "out", "parallel")]
    command = shlex.join([sys.executable, "-m", "scripts.sweep.run", *own])
    lines = [*allocation.header("sweep", signalled="B:"),
             f"#SBATCH --array=0-{len(points) - 1}%{parallel}",
             f"#SBATCH --output={points[0].folder.parent}/sweep-%A_%a.log", "",
             f"cd {shlex.quote(str(Path.cwd()))} || exit 2",
             f'exec {command} --point="$SLURM_ARRAY_TASK_ID"']
    return "\n".join(lines) + "\n"


def submit_array(points: list[Point]) -> dict[str, Any]:
    """Prints or writes the job array's script, and submits it on request."""
    given, workdir = flags.FLAGS, points[0].folder.parent
    path = Path(given.out) if given.out else None
    if given.submit and path is None:
        path = workdir / "sweep.sbatch"
    result = {"points": len(points), "failed": 0,
              **deliver(render_array(points, read_allocation(), given.parallel), path)}
    return result | ({"job": submit(path)} if given.submit else {})


def run_one(points: list[Point], number: int) -> dict[str, Any]:
    """Runs one point, as a task of a job array; prints no table."""
    if not 0 <= number < len(points):
        raise UserError(f"--point={number}", f"is not among 0 to {len(points) - 1}",
                        "leave it out to run all")
    Runner("sweep").run([points[number]], parallel=1)
    row = read_json(points[number].folder / "result.json")
    return row | {"failed": int(row["status"] == "failed")}


def main() -> dict[str, Any]:
    """Runs the unfinished points, here or by SLURM; returns the table's figures."""
    given, points = flags.FLAGS, read_points()
    workdir = points[0].folder.parent
    log(f"sweep: {len(points)} points in {workdir}")
    if given.point is not None:
        return run_one(points, given.point)
    if given.launcher == "slurm":
        return submit_array(points)
    if given.launcher == "local":
        Runner("sweep").run(points, given.parallel)
    rows, earlier = read_results(points), read_earlier_results(points)
    workdir.mkdir(parents=True, exist_ok=True)
    write_jsonl(workdir / "results.jsonl", [*earlier, *rows])
    comparable = [row for row in earlier if are_comparable(row, points[0])]
    if left_out := len(earlier) - len(comparable):
        log(f"sweep: {left_out} earlier points had other stages or another config, and are not in "
            "the table")
    filled = fill_settings([*comparable, *rows], entry.config_and_workdir()[0])
    averaged = average_seeds(filled, given.metric, lowest=given.best == "lowest")
    print(show_table(filled, averaged, given.metric))
    if given.figure:
        draw(Path(given.figure), averaged, given.metric)
    count = {status: sum(row["status"] == status for row in rows)
             for status in ("finished", "failed", "missing")}
    return {"points": len(points), **count, "earlier": len(comparable),
            "best": averaged[0] | {"tied_with": [group["settings"] for group in
                                                 find_ties(averaged)]} if averaged else None,
            "results": str(workdir / "results.jsonl")}


if __name__ == "__main__":
    entry.define_config_flags()
    define_slurm_flags()
    flags.DEFINE_list("stages", [], "Modules that a point runs in order, e.g. train.pretrain.")
    flags.DEFINE_multi_string("grid", [], "field=value,value: an axis.")
    flags.DEFINE_multi_string("zip", [], "field=value,value;field=value,value: one axis of both.")
    flags.DEFINE_multi_string("random", [], "field=loguniform(a,b), uniform, randint, choice.")
    flags.DEFINE_integer("trials", 8, "Random draws.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the random draws.")
    flags.DEFINE_string("parents", None, "Workdir of the artifacts that the points share.")
    flags.DEFINE_enum("launcher", "local", ["local", "slurm", "none"], "What runs the points.")
    flags.DEFINE_integer("parallel", 1, "Points at once.", lower_bound=1)
    flags.DEFINE_integer("point", None, "Run only this one.")
    flags.DEFINE_string("metric", "heldout_bpb", "Result of the last stage to sort by.")
    flags.DEFINE_enum("best", "lowest", ["lowest", "highest"], "Which mean comes first.")
    flags.DEFINE_string("figure", None, "File for a figure of the metric over the one field.")
    flags.DEFINE_string("out", None, "File for the batch script, instead of printing it.")
    entry.run(main, status=lambda result: 1 if result["failed"] else 0)
