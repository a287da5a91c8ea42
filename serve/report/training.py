"""Curves of trainings: each by itself, or one measure of several overlaid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.page.charts import Line, Panel, draw_panel
from core.page.layout import section
from core.page.markup import Markup, percent, tag
from core.progress import format_count, format_secs
from serve.report.runs import Artifact, Run, finite, is_number

STYLES = ("s0", "s1", "s2 dashed")      # of the lines of one chart
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SUFFIXES = ("_low", "_high", "_items")  # of measures, beside them


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of some measures in `metrics.jsonl`, by (name, key)."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    levels: tuple[tuple[str, float], ...] = ()
    stages: tuple[str, ...] = ()        # for which it is meant; () for all


CHARTS = (
    Chart("Reward", "mean of sampled answers to new questions", (("mean", "reward"),)),
    Chart("Divergence", "KL of an answer from the first policy, nats", (("estimate", "kl"),)),
    Chart("Loss", "nats", (("training", "loss"), ("held out", "heldout_loss"))),
    Chart("Held-out bits per byte", "lower is better", (("held out", "heldout_bpb"),)),
    Chart("Pairs ranked right", "share", (("training", "accuracy"),
                                          ("held out", "heldout_accuracy")), (("coin", 0.5),),
          ("dpo", "reward")),
    Chart("Implicit rewards", "β · log-probability ratio to the reference, nats",
          (("margin", "margin"), ("chosen", "chosen_reward"), ("rejected", "rejected_reward")),
          stages=("dpo",)),
    Chart("Length of answers", "tokens", (("mean", "answer_tokens"),)),
    Chart("Answers that ended", "share, the others were cut at the limit",
          (("mean", "ended_frac"),)),
    Chart("Learning rate", "", (("schedule", "learning_rate"),)),
    Chart("Gradient norm", "before clipping", (("norm", "gradient_norm"),)))
FINAL = ("heldout_bpb", "heldout_loss", "heldout_loss_nats", "heldout_accuracy")
KNOWN = {key for chart in CHARTS for _, key in chart.lines}


def is_training(artifact: Artifact) -> bool:
    """Whether an artifact holds the log of a training."""
    return (artifact.folder / "metrics.jsonl").exists()


def charts_of(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts for which a training of a stage logged something, and one for each task."""
    keys = {key for row in rows for key, value in row.items()
            if is_number(value) and math.isfinite(value)}
    own = sorted(key for key in keys - KNOWN if key.endswith("_acc")
                 or (key.startswith("heldout_") and f"{key}_low" in keys))
    charts = [*CHARTS, *(Chart(key.removeprefix("heldout_").removesuffix("_acc").capitalize(),
                               "share of right answers", (("right", key),)) for key in own)]
    return [chart for chart in charts if not chart.stages or stage in chart.stages
            if any(key in keys for _, key in chart.lines)]


def final_measures(artifact: Artifact) -> list[str]:
    """The held-out measures among the last numbers of a training."""
    metrics = artifact.metrics
    return [key for key in metrics if not key.endswith(SUFFIXES)
            and (key in FINAL or (f"{key}_low" in metrics
                                  and (key == "accuracy" or key.startswith("heldout_"))))]


def curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """A measure over the steps, without values that are not finite."""
    return finite((row["step"], row.get(key)) for row in rows)


def make_line(name: str, key: str, rows: Sequence[Mapping[str, Any]], style: str) -> Line:
    """A measure over the steps as a line of a chart."""
    return Line(name, curve(rows, key), style, is_exact=key == "learning_rate")


def draw_chart(title: str, unit: str, lines: Sequence[Line],
               levels: Sequence[tuple[str, float]] = (), *,
               phase: tuple[float, float, str] | None = None, labels: bool = True) -> Markup:
    """A panel whose decimals suit the values; tiny ones are printed times a power of ten."""
    values = [abs(y) for line in lines for _, y in line.points]
    largest = max([*values, *(abs(value) for _, value in levels)], default=1.0)
    power = math.floor(math.log10(largest)) if 0 < largest < 0.05 else 0
    if power:
        lines = [dataclasses.replace(line, points=[(x, y * 10.0**-power) for x, y in line.points])
                 for line in lines]
        unit = f"{unit}{', ' if unit else ''}times 10{str(power).translate(SUPERSCRIPTS)}"
        largest *= 10.0**-power
    digits = 2 if largest >= 1 else 3
    return draw_panel(Panel(title, unit, lines, levels, phase, digits if largest < 1000 else 0,
                            labels=labels))


def training(run: Run) -> Markup | None:
    """The curves of all trainings of a run; damaged ones are left out, and the run records why."""
    parts = []
    for artifact in run.artifacts:
        if not is_training(artifact):
            continue
        try:
            rows = artifact.log()
        except UserError as error:
            run.leave_out(artifact.name,
                          str(error).replace(str(artifact.folder), artifact.name))
            continue
        parts += [tag("h3", artifact.name, tag("small", f" {_summary(artifact)}")),
                  tag("div", [_panel(run, artifact, chart, rows)
                              for chart in charts_of(artifact.stage, rows)], class_="panels")
                  if charts_of(artifact.stage, rows) else
                  tag("p", "No finite value was logged.", class_="note")]
    if not parts:
        return None
    return section("Training", "Long curves: every logged value faint, their running mean bold, "
                   "and its last value printed. Shaded: the last part of pretraining, on another "
                   "mixture.", parts)


def _panel(run: Run, artifact: Artifact, chart: Chart, rows: Sequence[Mapping[str, Any]]) -> Markup:
    lines = [make_line(name, key, rows, style)
             for (name, key), style in zip(chart.lines, STYLES)]
    levels = chart.levels
    if chart.lines[0][1] == "heldout_bpb":
        levels = _baselines(run, artifact)
    return draw_chart(chart.title, chart.unit, lines, levels, phase=_annealing(artifact))


def _baselines(run: Run, artifact: Artifact) -> tuple[tuple[str, float], ...]:
    """Bits per byte of xz and of single tokens, from an evaluation of the model."""
    for other in run.artifacts:
        if run.parents(other).get("model") is artifact and "xz_bpb" in other.metrics:
            return (("xz -9e", other.number("xz_bpb")), ("unigram", other.number("unigram_bpb")))
    return ()


def _annealing(artifact: Artifact) -> tuple[float, float, str] | None:
    share, steps = (artifact.config.get(name) for name in ("anneal_frac", "num_steps"))
    if not is_number(share) or not is_number(steps) or round(share * steps) < 1:
        return None
    return steps - round(share * steps), steps, "annealing"


def _summary(artifact: Artifact) -> str:
    parts = [artifact.stage]
    if artifact.config.get("algorithm"):
        parts.append(str(artifact.config["algorithm"]))
    for key, unit in (("params", "parameters"), ("tokens", "tokens"), ("steps", "steps"),
                      ("conversations", "conversations"), ("pairs", "pairs")):
        if math.isfinite(value := artifact.number(key)):
            parts.append(f"{format_count(value)} {unit}")
    if math.isfinite(secs := artifact.number("secs")):
        parts.append(format_secs(secs))
    if math.isfinite(share := artifact.number("goodput_frac")):
        parts.append(f"{percent(share, 0)} of it on steps")
    return " · ".join(parts)
