"""The forecast of a ladder: the target's loss by the law of the runs, and how it came out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from core.errors import UserError
from core.points import read_results
from train.scaling.folders import read_run
from train.scaling.forms import Form
from train.scaling.ladder.plan import Ladder, PlannedRun
from train.scaling.report import QUANTILES, Report, describe_heldout, fit_all, spread
from train.scaling.runs import Runs
from train.scaling.surface import fit_law
from train.scaling.table import make_runs


def read_planned(runs: tuple[PlannedRun, ...], count: str, metric: str) -> Runs:
    """The losses of planned runs, all of which must be finished.

    Args:
        count, metric: see `train.scaling.folders.read_folders`.

    Raises:
        UserError: a run failed or is not finished, has no such metric, or runs differ in what must
            be held fixed.
    """
    unfinished = [run for run in runs if not run.is_finished]
    if unfinished:
        row = read_results([unfinished[0].point])[0]
        raise UserError(f"{len(unfinished)} of {len(runs)} runs", f"are not finished; "
                        f"{row['point']}: {row.get('error', 'has not been run')}",
                        f"see {unfinished[0].point.folder / 'log.txt'}, and run the same command "
                        "again: finished runs are kept")
    return make_runs([point for run in runs
                      for point in read_run(run.folder, run.name, count, metric)], count)


def fit_ladder(ladder: Ladder, form: Form, metric: str) -> Report:
    """Fits the law to the losses of the ladder's runs; raises `UserError` as `read_planned`."""
    runs = read_planned(ladder.runs, ladder.count, metric)
    return fit_all(form, runs, runs.choose(np.zeros(len(runs.names), bool)))


def make_forecast(ladder: Ladder, report: Report) -> dict[str, Any]:
    """The target's loss by the law.

    Returns:
        The target's sizes, its `loss`, the `law`'s bootstrap error and 95 % interval of that, and
        that of a `run`, which adds the scatter of the runs about the law; `ladder_flops_frac`, the
        ladder's FLOPs over the target's; and `times_largest`, the target's FLOPs over those of the
        largest run.
    """
    target, fit = ladder.target, report.fit
    sizes = {"params": target.params, "tokens": target.tokens}
    given = {name: sizes[name] for name in fit.form.inputs}
    low, high = np.quantile(fit.predict_runs(0, **given)[:, 0], QUANTILES)
    return {"target": target.name, **sizes, "flops": target.flops,
            "loss": float(fit.predict(**given)[0]),
            "law": spread(fit.predict_samples(**given)[:, 0]),
            "run": {"low": float(low), "high": float(high)},
            "ladder_flops_frac": ladder.flops / target.flops,
            "times_largest": target.flops / report.largest_flops}


def forecast_largest(report: Report) -> dict[str, Any]:
    """How well the runs of all smaller sizes forecast those of the largest.

    The target lies further beyond the runs than the largest size beyond the others, as a rule; the
    errors here are then the least that its forecast will have.

    Returns:
        `params` of the largest size, its number of `runs`, the `max_relative_error` of their
        forecasts, and how many are `inside` the intervals of a run.
    """
    runs = report.runs
    held_R = runs.params_R == runs.params_R.max()
    smaller = dataclasses.replace(report, fit=fit_law(report.fit.form, runs.choose(~held_R)),
                                  held=runs.choose(held_R))
    found = describe_heldout(smaller)
    return {"params": int(runs.params_R.max())} | {
        name: found[name] for name in ("runs", "max_relative_error", "inside")}


def compare_target(ladder: Ladder, report: Report, metric: str) -> tuple[Report, dict[str, Any]]:
    """The report with the finished target held out, and how far its loss is from the forecast.

    Returns:
        The report; and `loss`, `relative_error` of the forecast, and whether the loss is `inside`
        the interval of a run.
    """
    held = read_planned((ladder.target,), ladder.count, metric)
    report = dataclasses.replace(report, held=held)
    row, = describe_heldout(report)["of_runs"]
    return report, {"loss": row["loss"], "relative_error": row["relative_error"],
                    "inside": bool(row["low"] <= row["loss"] <= row["high"])}
