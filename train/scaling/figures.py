"""Figures of a fit: loss over compute, valleys of equal compute, residuals, forecasts, accuracy;
and of a comparison and a noise scale."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from train.scaling.compare import Comparison
from train.scaling.forms import FLOPS_PER_PARAM
from train.scaling.noise_scale import relative_examples, relative_steps
from train.scaling.report import QUANTILES, Report, best_sizes

MAX_LINES = 8       # sizes that have a line of their own
NUM_POINTS = 80     # of a line
BEYOND = 10.0       # the forecast goes so far beyond the largest run, or to the last budget
SIZE_NAME = {"total": "parameters", "non_embedding": "parameters without embedding and head",
             "with_head": "parameters with the head", "products": "parameters in products"}


def draw_all(folder: Path, report: Report, loss_name: str,
             budgets: Sequence[float] = ()) -> list[Path]:
    """Draws the figures that a report has something for into a folder; returns their files.

    Raises:
        UserError: matplotlib is missing.
    """
    make_figure = load_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    without = {"valleys"} if all(valley.coefs is None for valley in report.valleys) else set()
    without |= {"accuracy"} if report.accuracy is None else set()
    paths = []
    for name, (draw, num_charts) in FIGURES.items():
        if name in without:
            continue
        figure = make_figure(figsize=(1 + 6 * num_charts, 4.8), layout="constrained")
        draw(figure, figure.subplots(1, num_charts), report, loss_name, budgets)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def draw_comparison(folder: Path, found: Sequence[Comparison], loss_name: str) -> Path:
    """Draws the curve of each side with its runs, and multipliers over the loss; returns the file.

    Args:
        found: comparisons of the same side with others.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = load_matplotlib()(figsize=(13, 4.8), layout="constrained")
    curves, multipliers = figure.subplots(1, 2)
    sides = [found[0].side, *(each.against for each in found)]
    labels = shorten([side.name for side in sides])
    for number, (side, label) in enumerate(zip(sides, labels)):
        runs, colour = side.runs, f"C{number}"
        flops = np.geomspace(runs.flops_R.min(), runs.flops_R.max(), NUM_POINTS)
        loss, samples = side.losses_at(flops)
        curves.fill_between(flops, *np.nanquantile(samples, QUANTILES, axis=0), color=colour,
                            alpha=0.25, linewidth=0)
        curves.plot(flops, loss, color=colour, label=label)
        curves.plot(runs.flops_R, runs.loss_R, ".", color=colour, markersize=4)
    _log(curves, "x")
    _log_losses(curves)
    _name(curves, "training compute, FLOPs", loss_name)
    curves.legend()
    for number, (each, label) in enumerate(zip(found, labels[1:]), start=1):
        multipliers.fill_between(each.loss_R, *np.nanquantile(each.samples_SR, QUANTILES, axis=0),
                                 color=f"C{number}", alpha=0.25, linewidth=0)
        multipliers.plot(each.loss_R, each.multiplier_R, "o-", color=f"C{number}", label=label)
    multipliers.axhline(1, color="C0", linewidth=1)
    multipliers.invert_xaxis()
    _log(multipliers, "y")
    _name(multipliers, f"{loss_name}, from worse to better",
          f"compute over that of {labels[0]}, with 95 % intervals")
    multipliers.legend()
    path = folder / "compare.png"
    figure.savefig(path, dpi=120)
    return path


def draw_noise(folder: Path, found: Mapping[str, Any]) -> Path:
    """Draws squared norms over the batch, and what follows for steps and tokens; returns the file.

    Args:
        found: a result of `train.scaling.noise`.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = load_matplotlib()(figsize=(13, 4.8), layout="constrained")
    norms, implied = figure.subplots(1, 2)
    scale, sizes = found["noise_scale_tokens"], [each["batch_tokens"] for each in found["norms"]]
    line = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, NUM_POINTS)
    norms.plot(line, found["squared_norm"]["value"] + found["trace"]["value"] / line, color="C0",
               label="|G|^2 + tr(Sigma) / B")
    norms.axhline(found["squared_norm"]["value"], color="0.5", linewidth=0.8, linestyle="--",
                  label="|G|^2")
    norms.plot(sizes, [each["squared_norm"] for each in found["norms"]], "o", color="C1",
               label="measured")
    line = np.geomspace(scale["value"] / 30, scale["value"] * 30, NUM_POINTS)
    for compute, name in ((relative_steps, "steps"), (relative_examples, "tokens")):
        implied.plot(line, compute(line, scale["value"]), label=f"{name} over the fewest")
    implied.axvspan(scale["low"], scale["high"], color="0.5", alpha=0.25, linewidth=0,
                    label="B_simple, 95 % interval")
    for each in found["implied"]:
        if each["is_training"]:
            implied.axvline(each["batch_tokens"], color="black", linestyle=":",
                            label="batch of the training")
    for chart, name in ((norms, "mean squared norm of the gradient"), (implied, "ratio")):
        _log(chart, "x")
        _log(chart, "y")
        _name(chart, "batch, tokens", name)
        chart.legend()
    path = folder / "noise.png"
    figure.savefig(path, dpi=120)
    return path


def shorten(names: Sequence[str]) -> list[str]:
    """Paths without what all share at both ends, but never empty; equal ones stay whole."""
    parts = [Path(name).parts for name in names]
    if len(set(parts)) < len(parts):
        return list(names)

    def num_shared(columns: Iterable[tuple[str, ...]]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

    first = min(num_shared(zip(*parts)), min(map(len, parts)) - 1)
    rest = [own[first:] for own in parts]
    last = min(num_shared(zip(*(own[::-1] for own in rest))), min(map(len, rest)) - 1)
    return [str(Path(*own[first:len(own) - last])) for own in parts]


def load_matplotlib() -> Any:
    """Its class of figures; raises `UserError` where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--figures", "needs matplotlib", "run pip install -e '.[report]'") from None
    return Figure


def _draw_fit(figure: Any, chart: Any, report: Report, loss_name: str,
              budgets: Sequence[float]) -> None:
    """The runs, the law at some sizes, and the best loss by budget."""
    runs, fit = report.runs, report.fit
    shades = _shades(np.concatenate([runs.params_R, report.held.params_R]))
    sizes = np.unique(runs.params_R)
    for params in sizes[np.unique(np.linspace(0, len(sizes) - 1, MAX_LINES).round().astype(int))]:
        own = runs.flops_R[runs.params_R == params]
        flops = np.geomspace(own.min() / 3, own.max() * 3, NUM_POINTS)
        loss = fit.predict(params=np.full(NUM_POINTS, params),
                           tokens=flops / (FLOPS_PER_PARAM * params))
        chart.plot(flops, loss, color=_colour(shades, params), linewidth=1)
    marks = chart.scatter(runs.flops_R, runs.loss_R, c=runs.params_R, norm=shades, s=14, zorder=3)
    if report.held.names:
        chart.scatter(report.held.flops_R, report.held.loss_R, c=report.held.params_R, norm=shades,
                      s=90, marker="*", edgecolors="black", zorder=4, label="held out")
    flops = np.geomspace(runs.flops_R.min(), _last_flops(report, ()), NUM_POINTS)
    params, tokens = fit.optimal_sizes(flops)
    chart.plot(flops, fit.predict(params=params, tokens=tokens), "k--", linewidth=1,
               label="best size for each budget")
    low, high = _limits(np.concatenate([runs.loss_R, report.held.loss_R]))
    chart.set_ylim(low, high)
    _log(chart, "x")
    _log_losses(chart)
    _name(chart, "training compute, FLOPs", loss_name)
    chart.legend()
    figure.colorbar(marks, ax=chart, label=SIZE_NAME[runs.count])


def _draw_valleys(figure: Any, chart: Any, report: Report, loss_name: str,
                  budgets: Sequence[float]) -> None:
    """The runs of each budget over their sizes: parabola, its vertex, and the law."""
    runs = report.runs
    valleys = [valley for valley in report.valleys if valley.coefs is not None]
    shades = _shades(np.array([valley.flops for valley in valleys]))
    for valley in valleys:
        own, colour = list(valley.members), _colour(shades, valley.flops)
        params_R = runs.params_R[own]
        chart.scatter(params_R, runs.loss_R[own], color=colour, s=14)
        line = np.geomspace(params_R.min() / 1.3, params_R.max() * 1.3, NUM_POINTS)
        c0, c1, c2 = valley.coefs
        loss = report.fit.predict(params=line, tokens=valley.flops / (FLOPS_PER_PARAM * line))
        chart.plot(line, loss, color=colour, linewidth=1, linestyle=":")
        chart.plot(line, c0 + c1 * np.log(line) + c2 * np.log(line)**2, color=colour, linewidth=1)
        if not valley.fault:
            best = valley.best_params
            chart.plot(best, c0 + c1 * np.log(best) + c2 * np.log(best)**2, "D", color=colour,
                       markeredgecolor="black", zorder=4)
    _log(chart, "x")
    _name(chart, SIZE_NAME[runs.count], loss_name)
    num = sum(not valley.fault for valley in valleys)
    chart.set_title(f"{num} of {len(valleys)} budgets have a minimum (diamond); lines: parabolas, "
                    "dots: the law", fontsize=9)
    from matplotlib.cm import ScalarMappable

    figure.colorbar(ScalarMappable(shades), ax=chart, label="training compute, FLOPs")


def _draw_residuals(figure: Any, charts: Any, report: Report, loss_name: str,
                    budgets: Sequence[float]) -> None:
    """Losses less the law's in per cent, over compute and over tokens per parameter."""
    held = report.held
    sizes = {name: held.column(name) for name in report.fit.form.inputs}
    runs_of = [(report.runs, report.fit.residual_R, ".")]
    if held.names:
        runs_of.append((held, np.log(held.loss_R / report.fit.predict(**sizes)), "*"))
    for runs, residual_R, marker in runs_of:
        label = "held out" if marker == "*" else "fitted"
        for chart, values_R in zip(charts, (runs.flops_R, runs.tokens_R / runs.params_R)):
            chart.plot(values_R, 100 * residual_R, marker, label=label,
                       markersize=11 if marker == "*" else 6)
    for chart, name in zip(charts, ("training compute, FLOPs", "tokens per parameter")):
        chart.axhline(0, color="black", linewidth=0.8)
        _log(chart, "x")
        _name(chart, name, "loss above the law, %")
    charts[0].legend()


def _draw_forecast(figure: Any, charts: Any, report: Report, loss_name: str,
                   budgets: Sequence[float]) -> None:
    """The best size and its loss by budget, with the bootstrap's 95 % bands."""
    fit, runs = report.fit, report.runs
    flops = np.geomspace(runs.flops_R.min(), _last_flops(report, budgets), NUM_POINTS)
    params, tokens = fit.optimal_sizes(flops)
    lines = (params, fit.predict(params=params, tokens=tokens))
    for chart, line, samples in zip(charts, lines, best_sizes(fit, flops)):
        if len(samples):
            low, high = np.nanquantile(samples, QUANTILES, axis=0)
            chart.fill_between(flops, low, high, alpha=0.25, linewidth=0, label="95 % interval")
        chart.plot(flops, line, label=f"law {fit.form.name} (approach 3)")
        chart.axvline(report.largest_flops, color="0.5", linewidth=0.8, linestyle="--")
        _log(chart, "x")
    for name, law, style in (("curves of training (approach 1)", report.envelope, "-."),
                             ("parabolas (approach 2)", report.vertices, ":")):
        if law is not None:
            charts[0].plot(flops, law(flops), style, label=name)
    vertices = [valley for valley in report.valleys if not valley.fault]
    if vertices:
        charts[0].plot([valley.flops for valley in vertices],
                       [valley.best_params for valley in vertices], "D", markersize=5, color="C3",
                       label="minima of budgets")
    for group, marker, size, label in ((runs, ".", 4, "fitted runs"),
                                       (report.held, "*", 11, "held out")):
        if group.names:
            charts[1].plot(group.flops_R, group.loss_R, marker, color="0.35", zorder=0,
                           markersize=size, label=label)
    for chart, name in zip(charts, (SIZE_NAME[runs.count], loss_name)):
        _name(chart, "training compute, FLOPs (dashed: the largest run)", name)
        chart.legend()
    _log(charts[0], "y")
    _log_losses(charts[1])
    best = [*lines[1], *report.held.loss_R]
    charts[1].set_ylim(min(best) / 1.03, np.quantile(runs.loss_R, 0.98) * 1.03)


def _draw_accuracy(figure: Any, chart: Any, report: Report, loss_name: str,
                   budgets: Sequence[float]) -> None:
    """Accuracies over losses, and the curve with its 95 % band."""
    curve, groups = report.accuracy, ((report.runs, ".", 7, "fitted runs"),
                                      (report.held, "*", 11, "held out"))
    losses = np.concatenate([runs.loss_R for runs, *_ in groups])
    line = np.linspace(losses.min(), losses.max(), NUM_POINTS)
    chart.fill_between(line, *curve.interval(line), alpha=0.25, linewidth=0, label="95 % interval")
    chart.plot(line, curve.predict(line), label=curve.link)
    chart.axhline(curve.chance, color="0.5", linewidth=0.8, linestyle="--", label="chance")
    for runs, marker, size, label in groups:
        if runs.names:
            chart.plot(runs.loss_R, runs.accuracy_R, marker, color="0.35", markersize=size,
                       label=label)
    _name(chart, loss_name, "accuracy")
    chart.legend()


def _last_flops(report: Report, budgets: Sequence[float]) -> float:
    held = report.held.flops_R.max() if report.held.names else 0.0
    return float(max(report.largest_flops * BEYOND, held, *budgets, 0.0))


def _limits(loss_R: np.ndarray) -> tuple[float, float]:
    pad = (loss_R.max() / loss_R.min()) ** 0.05
    return loss_R.min() / pad, loss_R.max() * pad


def _log(chart: Any, axis: str) -> None:
    (chart.set_xscale if axis == "x" else chart.set_yscale)("log")


def _log_losses(chart: Any) -> None:
    """A logarithmic axis of losses, which span less than a decade: plain numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    chart.set_yscale("log")
    chart.yaxis.set_major_locator(MaxNLocator(8))
    chart.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    chart.minorticks_off()


def _name(chart: Any, x: str, y: str) -> None:
    chart.set_xlabel(x)
    chart.set_ylabel(y)
    chart.grid(alpha=0.3)


def _shades(values: np.ndarray) -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(values.min(), max(values.max(), 1.001 * values.min()))


def _colour(shades: Any, value: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](shades(value))


FIGURES: Mapping[str, tuple[Callable, int]] = {
    "fit": (_draw_fit, 1), "valleys": (_draw_valleys, 1), "residuals": (_draw_residuals, 2),
    "forecast": (_draw_forecast, 2), "accuracy": (_draw_accuracy, 1)}
