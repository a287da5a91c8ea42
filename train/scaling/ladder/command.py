"""The command `ladder`: plans the runs, trains them, fits the law, and forecasts a target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from core.artifacts import write_json
from core.errors import UserError
from core.points import Runner
from core.progress import format_count, format_secs, log
from core.stages import config_arguments
from train.scaling.figures import draw_all, load_matplotlib
from train.scaling.forms import FORMS
from train.scaling.ladder.check import check_ladder, check_metric, note_vocabulary
from train.scaling.ladder.forecast import (
    compare_target,
    fit_ladder,
    forecast_largest,
    make_forecast,
)
from train.scaling.ladder.plan import Ladder, PlannedRun, plan_ladder
from train.scaling.ladder.speed import Speed, estimate_secs, measure_speed
from train.scaling.report import Report, describe
from train.scaling.written import write_fit


def ladder(values: Any) -> dict[str, Any]:
    """Runs the command with these flags; returns the plan or, in the end, the forecast.

    Raises:
        UserError: the ladder is refused before anything is trained, see `check_ladder`; or a run
            failed.
    """
    jax.config.update("jax_platforms", "cpu")   # devices are for the processes that train
    planned, form, out = read_plan(values), FORMS[values.law], Path(values.out).absolute()
    check_ladder(planned, form, with_target=values.run_target)
    check_metric(planned, values.metric)
    note_vocabulary(planned)
    rows = describe_plan(planned, find_speeds(planned, values))
    print(show_plan(rows))
    if values.dry_run:
        return {"runs": len(planned.runs), "flops": planned.flops, "planned": rows}
    if values.figures:
        load_matplotlib()   # it is missed now, and not after the training
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "plan.json", rows)
    train_unfinished(planned.runs, values.parallel)
    report, budgets = fit_ladder(planned, form, values.metric), []
    result = {"runs": len(planned.runs), "flops": planned.flops,
              "law": str(out / "law" / "fit.json")}
    if planned.target is not None:
        report, result["forecast"] = forecast_target(planned, report, values)
        budgets = [planned.target.flops]
    fitted = {"loss": values.metric} | describe(report, budgets)
    write_fit(out / "law", report, fitted | {"source": str(out / "runs")})
    if values.figures:
        result["figures"] = [str(path) for path in
                             draw_all(out / "law", report, values.metric, budgets)]
    return result


def forecast_target(planned: Ladder, report: Report, values: Any) -> tuple[Report, dict[str, Any]]:
    """Writes `forecast.json`, trains the target if the flags ask for it, and compares the two.

    Returns:
        The report, which holds a finished target out; and the forecast, with `measured` in it.
    """
    path = Path(values.out) / "forecast.json"
    forecast = make_forecast(planned, report) | {"largest": forecast_largest(report)}
    log(_sentence(forecast, values.metric))
    write_json(path, forecast)      # before the target's loss is known
    if values.run_target:
        train_unfinished([planned.target], parallel=1)
    if values.run_target or planned.target.is_finished:
        report, forecast["measured"] = compare_target(planned, report, values.metric)
        log(_comparison(forecast["measured"]))
        write_json(path, forecast)
    return report, forecast


def read_plan(values: Any) -> Ladder:
    """The ladder that the flags ask for; raises `UserError` as `plan_ladder`."""
    for name, example in (("config", "configs/ladder.py:cpu"), ("count", "with_head"),
                          ("parents", "runs/quickstart-cpu"), ("out", "runs/ladder")):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", f"try --{name}={example}")
    return plan_ladder(values.config, config_arguments(), values.count,
                       parents=Path(values.parents).absolute(), out=Path(values.out).absolute())


def find_speeds(planned: Ladder, values: Any) -> list[Speed]:
    """The speed that the flags give, or those of finished runs: of the ladder, its target and the
    run of the same name in `--parents`."""
    if values.flops_per_sec:
        return [Speed(planned.runs[-1].params, values.flops_per_sec)]
    folders = [run.folder for run in planned.with_target]
    folders.append(Path(values.parents) / values.config.pretrain.out)
    speeds = (measure_speed(folder, planned.count) for folder in folders)
    return [speed for speed in speeds if speed is not None]


def describe_plan(planned: Ladder, speeds: Sequence[Speed]) -> list[dict[str, Any]]:
    """A row for each run, the target's last; `secs` is None where no speed is known."""
    return [{"run": run.name, "part": "target" if run is planned.target else "ladder",
             "params": run.params, "tokens": run.tokens,
             "tokens_per_param": run.tokens / run.params, "flops": run.flops,
             "epochs": max(run.epochs.values()),
             "secs": estimate_secs(run.params, run.flops, speeds),
             "is_finished": run.is_finished} for run in planned.with_target]


def show_plan(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the plan, and the ladder's sum beside the target, if there is one."""
    cells = [["run", "params", "tokens", "tokens/param", "FLOPs (6ND)", "epochs", "time", ""]]
    cells += [[row["run"], format_count(row["params"]), format_count(row["tokens"]),
               f"{row['tokens_per_param']:.3g}", f"{row['flops']:.3g}", f"{row['epochs']:.2f}",
               _time(row["secs"]), _state(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
             for line in cells]
    runs = [row for row in rows if row["part"] == "ladder"]
    flops = sum(row["flops"] for row in runs)
    share = "".join(f", {100 * flops / row['flops']:.3g} % of the target's"
                    for row in rows if row["part"] == "target")
    left = [row["secs"] for row in runs if not row["is_finished"]]
    time = "an unknown time: give --flops_per_sec" if None in left else f"{format_secs(sum(left))}"
    return "\n".join([*lines, f"{len(runs)} runs, {flops:.3g} FLOPs{share}; {len(left)} are "
                      f"left, {time}"])


def train_unfinished(runs: Sequence[PlannedRun], parallel: int) -> None:
    """Trains the runs that are not finished; one that was killed goes on from its checkpoint."""
    points = [run.point for run in runs if not run.is_finished]
    if points:
        log(f"ladder: {len(points)} of {len(runs)} runs are left")
        Runner("ladder").run(points, parallel)


def _time(secs: float | None) -> str:
    return "?" if secs is None else format_secs(secs)


def _state(row: dict[str, Any]) -> str:
    words = ["target"] * (row["part"] == "target") + ["finished"] * row["is_finished"]
    return ", ".join(words)


def _sentence(forecast: dict[str, Any], metric: str) -> str:
    low, high = forecast["run"]["low"], forecast["run"]["high"]
    return (f"ladder: {metric} of {forecast['target']} is forecast as {forecast['loss']:.4f}, and "
            f"95 % of such runs lie between {low:.4f} and {high:.4f}; the ladder takes "
            f"{100 * forecast['ladder_flops_frac']:.3g} % of its FLOPs. From all smaller sizes the "
            f"losses of the largest are forecast within "
            f"{100 * forecast['largest']['max_relative_error']:.2f} %")


def _comparison(measured: dict[str, Any]) -> str:
    where = "inside" if measured["inside"] else "outside"
    return (f"ladder: it is {measured['loss']:.4f}, {where} that interval; the forecast is off by "
            f"{100 * measured['relative_error']:+.2f} %")
