"""Sections about what stages counted and measured themselves, apart from evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.page.layout import section, table
from core.page.markup import Markup, count, decimal, percent, tag
from serve.report.evaluations import Estimate, series
from serve.report.lanes import draw_lanes
from serve.report.runs import Artifact, Run, is_number
from serve.report.settings import group_alike, unlike_training
from serve.report.training import SUFFIXES, final_measures, is_training

CLOCKS = ("secs", "peak_memory_bytes", "stage_secs")
MAX_ROWS = 60       # numbers of one artifact


def held_out(run: Run) -> Markup | None:
    """Whiskers of what trainings measured on held-out questions at their end."""
    trainings = [one for one in run.artifacts if is_training(one)]
    styles = {one.name: series(number) for number, one in enumerate(trainings)}
    keys = dict.fromkeys((one.stage, key) for one in trainings for key in final_measures(one)
                         if math.isfinite(_estimate(one, key).high))
    blocks = []
    for stage, key in keys:
        own = [one for one in trainings
               if one.stage == stage and math.isfinite(_estimate(one, key).high)]
        for members, unlike in group_alike(
                own, lambda ours, theirs, key=key: unlike_training((run, run), ours, theirs, key)):
            lanes = []
            for one in members:
                before = _estimate(one, f"untouched_{key}")
                if math.isfinite(before.value):
                    lanes.append((f"{one.name}, before", "quiet m0", before))
                lanes.append((one.name, styles[one.name], _estimate(one, key)))
            items = members[0].number(f"{key}_items")
            note = f"{count(items)} questions" if math.isfinite(items) else ""
            blocks.append(draw_lanes(
                f"{stage}: {key.replace('_', ' ')}",
                note + (f". Apart from those above, as {unlike}" if unlike else ""), lanes))
    if not blocks:
        return None
    return section("Held out", "What trainings measured at their end, and before the first step; "
                   "whiskers are 95 % intervals.", tag("div", blocks, class_="measures"))


def _estimate(artifact: Artifact, key: str) -> Estimate:
    return Estimate(*(artifact.number(f"{key}{end}") for end in ("", "_low", "_high")))


def numbers(run: Run, shown: Sequence[str]) -> Markup | None:
    """The numbers of stages that have no section of their own.

    Args:
        shown: names of the artifacts that have one.
    """
    parts = []
    for artifact in run.artifacts:
        rows = [] if artifact.name in shown else _rows(artifact.metrics)
        if rows:
            parts.append(tag("div", tag("h3", artifact.name, tag("small", artifact.stage)),
                             table(["", ""], rows, "numbers")))
    if not parts:
        return None
    return section("Other numbers", "What the other stages counted and measured.",
                   tag("div", parts, class_="counted"))


def _rows(metrics: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += _rows(value, f"{name}/")
        elif (is_number(value) and math.isfinite(value) and key not in CLOCKS
              and not (key.endswith(SUFFIXES) and key.rpartition("_")[0] in metrics)):
            rows.append([name.replace("_", " "), _number(metrics, key, value)])
    return rows[:MAX_ROWS]


def _number(metrics: Mapping[str, Any], key: str, value: float) -> str:
    show = (percent if key.endswith(("_frac", "_rate", "accuracy")) else
            count if isinstance(value, int) else decimal)
    ends = [metrics.get(f"{key}{end}") for end in ("_low", "_high")]
    if all(is_number(end) and math.isfinite(end) for end in ends):
        return f"{show(value)} ({show(ends[0])} to {show(ends[1])})"
    return show(value)
