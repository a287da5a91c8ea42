"""All that runs say about scaling: the law with its intervals, and what it foretells."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from core.errors import UserError
from train.scaling.budgets import (
    PowerLaw,
    Valley,
    find_valleys,
    fit_envelope,
    fit_valleys,
    frontier,
    sample_envelope,
    sample_vertices,
)
from train.scaling.checks import check_runs
from train.scaling.downstream import Accuracy, fit_accuracy
from train.scaling.forms import COMPUTE, KAPLAN, Form
from train.scaling.runs import COUNTS, Runs
from train.scaling.surface import NUM_SAMPLES, Fit, fit_law, fit_projected

QUANTILES = (0.025, 0.975)
FAR = 100.0         # beyond the largest budget of the runs, where a forecast is doubtful
SPREAD_EXPONENTS = (0.02, 2.0)      # outside of which an exponent says that a term is not decided


@dataclasses.dataclass(frozen=True)
class Report:
    """Fits to runs.

    Attributes:
        runs: those that were fitted.
        held: those that were held out; may be none.
        fit: the law (approach 3).
        projected: constants of Hoffmann's law by least squares.
        envelope, vertices: parameters over budgets, by approaches 1 and 2; None where the runs do
            not decide them.
        valleys: the budgets of approach 2.
        compute: Kaplan's law in compute, of the runs on the frontier; None with another law.
        accuracy: of a task over the loss; None without one.
        warnings: what is doubtful.
    """

    runs: Runs
    held: Runs
    fit: Fit
    projected: dict[str, float]
    envelope: PowerLaw | None
    vertices: PowerLaw | None
    valleys: Sequence[Valley]
    compute: Fit | None
    accuracy: Accuracy | None
    warnings: Sequence[str]

    @property
    def largest_flops(self) -> float:
        """The largest budget that was fitted."""
        return float(self.runs.flops_R.max())


@dataclasses.dataclass(frozen=True)
class Task:
    """A task whose accuracy the runs have: its items, the accuracy of guessing, and the curve."""

    items: int
    chance: float
    link: str


def fit_all(form: Form, runs: Runs, held: Runs, task: Task | None = None) -> Report:
    """Fits a law, and the best sizes by the other two approaches.

    Raises:
        UserError: the runs cannot decide the law; see `check_runs`.
    """
    warnings = check_runs(runs, form)
    fit = fit_law(form, runs)
    compute = None
    if form is KAPLAN and frontier(runs).sum() >= 3:
        compute = fit_law(COMPUTE, runs.choose(frontier(runs)))
    valleys = find_valleys(runs)
    report = Report(runs, held, fit, fit_projected(runs), fit_envelope(runs.curves),
                    fit_valleys(runs), valleys, compute, _fit_task(runs, task), ())
    return dataclasses.replace(report, warnings=[*warnings, *_doubts(report)])


def split_runs(runs: Runs, holdout_flops: float) -> tuple[Runs, Runs]:
    """The runs below a budget, to fit, and those from it on, to predict; 0 holds none out.

    Raises:
        UserError: no run lies on one of the two sides.
    """
    held_R = runs.flops_R >= holdout_flops if holdout_flops else np.zeros(len(runs.names), bool)
    if holdout_flops and (held_R.all() or not held_R.any()):
        raise UserError(f"--holdout_flops={holdout_flops:g}", f"holds {int(held_R.sum())} of "
                        f"{len(held_R)} runs out", f"choose a number between "
                        f"{runs.flops_R.min():.3g} and {runs.flops_R.max():.3g}")
    return runs.choose(~held_R), runs.choose(held_R)


def describe(report: Report, budgets: Sequence[float]) -> dict[str, Any]:
    """The report as plain data: what is fitted, what is held fixed, and forecasts.

    Args:
        budgets: FLOPs for which the best size is forecast.
    """
    runs, fit = report.runs, report.fit
    faults = Counter(valley.fault for valley in report.valleys if valley.fault)
    return {
        "law": fit.form.name, "runs": len(runs.names), "count": runs.count,
        "counted": COUNTS[runs.count], "origin": dict(runs.origin),
        "parameters": dict(zip(fit.form.names, fit.theta_P.tolist())),
        "constants": describe_constants(fit),
        "objective": fit.objective, "starts": fit.num_starts, "agreeing": fit.num_agreeing,
        "residual_rms": float(np.sqrt(np.mean(fit.residual_R**2))),
        "projected": report.projected,
        "exponents": describe_exponents(report),
        "vertices": [{"flops": valley.flops, "runs": len(valley.members),
                      "params": valley.best_params}
                     for valley in report.valleys if not valley.fault],
        "budgets_without": {fault.replace(" ", "_"): num for fault, num in faults.items()},
        "compute": None if report.compute is None else describe_constants(report.compute),
        "accuracy": None if report.accuracy is None else {
            "link": report.accuracy.link, "runs": int(np.isfinite(runs.accuracy_R).sum()),
            "theta": report.accuracy.theta_P.tolist(),
            "dispersion": report.accuracy.dispersion},
        "forecast": [forecast(report, flops) for flops in budgets],
        "heldout": describe_heldout(report),
        "warnings": [*report.warnings, *(
            f"{flops:.3g} FLOPs are {flops / report.largest_flops:.0f} times the largest budget "
            "of the runs" for flops in budgets if flops > FAR * report.largest_flops)]}


def describe_constants(fit: Fit) -> dict[str, dict[str, float]]:
    """Each constant with its bootstrap standard error and percentile 95 % interval."""
    values = fit.form.constants(fit.theta_P)
    with np.errstate(over="ignore"):    # what few runs do not determine may be of any size
        samples = [fit.form.constants(theta_P) for theta_P in fit.samples_SP]
    return {name: {"value": value, **spread(np.array([sample[name] for sample in samples]))}
            for name, value in values.items()}


def describe_exponents(report: Report) -> dict[str, dict[str, float | None] | None]:
    """The exponent a of the best size N = k C^a by each approach, with bootstrap intervals.

    Runs are drawn for the surface, runs within budgets for vertices, curves for the envelope.
    """
    fit = report.fit
    found: dict[str, Any] = {"surface": {"value": _exponent(fit.form, fit.theta_P), **spread(
        np.array([_exponent(fit.form, theta_P) for theta_P in fit.samples_SP]))}}
    for name, law, sample in (
            ("vertices", report.vertices, partial(sample_vertices, report.runs)),
            ("envelope", report.envelope, partial(sample_envelope, report.runs.curves))):
        found[name] = law and {"value": law.exponent, **spread(sample(NUM_SAMPLES, 0))}
    return found


def forecast(report: Report, flops: float) -> dict[str, Any]:
    """The best size for a budget and its loss, with bootstrap intervals; C = 6 N D."""
    fit = report.fit
    params, tokens = (float(size) for size in fit.optimal_sizes(flops))
    sampled = best_sizes(fit, np.array([flops]))
    found = {"flops": flops, "params": params, "tokens": tokens,
             "tokens_per_param": tokens / params,
             "loss": float(fit.predict(params=params, tokens=tokens)[0]),
             "params_interval": spread(sampled[0][:, 0]),
             "loss_interval": spread(sampled[1][:, 0])}
    for name, law in (("envelope", report.envelope), ("vertices", report.vertices)):
        if law is not None:
            found[f"params_by_{name}"] = float(law(flops))
    if report.accuracy is not None:
        found["accuracy"] = float(report.accuracy.predict(np.array([found["loss"]]))[0])
        found["accuracy_interval"] = spread(report.accuracy.sample(sampled[1], 0)[:, 0])
    return found


def best_sizes(fit: Fit, flops_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and losses [S, R] of the best sizes by each bootstrap sample."""
    params_SR, loss_SR = [], []
    for theta_P in fit.samples_SP:
        one = dataclasses.replace(fit, theta_P=theta_P)
        with np.errstate(all="ignore"):     # a sample may have no optimum
            params_R, tokens_R = one.optimal_sizes(flops_R) if min(
                fit.form.terms(theta_P)[1::2]) > 0 else (np.nan * flops_R,) * 2
            params_SR.append(params_R)
            loss_SR.append(one.predict(params=params_R, tokens=tokens_R))
    return np.array(params_SR), np.array(loss_SR)


def describe_heldout(report: Report) -> dict[str, Any] | None:
    """How well the law predicts the runs that were held out; None without any.

    `low` and `high` are the 95 % interval of a new run: that of the law and of the scatter.
    """
    held = report.held
    if not held.names:
        return None
    sizes = {name: held.column(name) for name in report.fit.form.inputs}
    loss_R = report.fit.predict(**sizes)
    drawn_SR = report.fit.predict_runs(0, **sizes)
    low_R, high_R = np.quantile(drawn_SR, QUANTILES, axis=0)
    error_R = loss_R / held.loss_R - 1
    inside_R = (low_R <= held.loss_R) & (held.loss_R <= high_R)
    rows = [{"run": name, "flops": float(flops), "loss": float(own), "predicted": float(loss),
             "relative_error": float(error), "low": float(low), "high": float(high)}
            for name, flops, own, loss, error, low, high in zip(
                held.names, held.flops_R, held.loss_R, loss_R, error_R, low_R, high_R)]
    if report.accuracy is not None:
        found_R = report.accuracy.predict(loss_R)
        ends = np.quantile(report.accuracy.sample(drawn_SR, 0), QUANTILES, axis=0)
        for row, *found in zip(rows, held.accuracy_R, found_R, *ends):
            row |= dict(zip(("accuracy", "predicted_accuracy", "accuracy_low", "accuracy_high"),
                            map(float, found)))
    return {"runs": len(rows), "max_relative_error": float(np.abs(error_R).max()),
            "mean_relative_error": float(np.abs(error_R).mean()),
            "inside": int(inside_R.sum()), "of_runs": rows}


def spread(samples_S: np.ndarray) -> dict[str, float | None]:
    """Standard error and 95 % interval of samples; None where there is no finite one."""
    finite_S = samples_S[np.isfinite(samples_S)]
    if len(finite_S) < 2:
        return {"stderr": None, "low": None, "high": None}
    low, high = np.quantile(finite_S, QUANTILES)
    with np.errstate(over="ignore"):
        stderr = float(finite_S.std(ddof=1))
    return {"stderr": stderr if np.isfinite(stderr) else None,
            "low": float(low), "high": float(high)}


def _fit_task(runs: Runs, task: Task | None) -> Accuracy | None:
    if task is None:
        return None
    known_R = np.isfinite(runs.accuracy_R)
    return fit_accuracy(runs.loss_R[known_R], runs.accuracy_R[known_R], task.items, link=task.link,
                        chance=task.chance)


def _doubts(report: Report) -> list[str]:
    fit, warnings = report.fit, []
    names = [name for name in fit.form.names if name.startswith("alpha") or name == "beta"]
    for name in names:
        value = fit.theta_P[fit.form.names.index(name)]
        if not SPREAD_EXPONENTS[0] <= value <= SPREAD_EXPONENTS[1]:
            warnings.append(f"the exponent {name} is {value:.3g}: the runs do not decide its term")
    if fit.num_agreeing == 1:
        warnings.append(f"only one of {fit.num_starts} starts found the best fit")
    if report.vertices is None:
        faults = [valley.fault for valley in report.valleys]
        warnings.append("no best size by approach 2: fewer than two budgets have a minimum within "
                        f"their sizes ({faults.count('too few sizes')} have too few sizes)")
    if report.envelope is None:
        warnings.append("no best size by approach 1: it needs losses along the training of three "
                        "models or more, of which two are the best at some budget")
    return warnings


def _exponent(form: Form, theta_P: np.ndarray) -> float:
    """Of the best number of parameters in the budget."""
    _, alpha, _, beta = form.terms(theta_P)
    return float(beta / (alpha + beta))
