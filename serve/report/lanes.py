"""Measures of several models or runs as lanes: dots with whiskers, and bars, with their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.page.charts import draw_bar
from core.page.markup import Markup, percent, tag
from serve.report.evaluations import Estimate

Lane = tuple[str, str, Estimate]        # name, CSS classes, measure


def draw_lanes(name: str, note: str, lanes: Sequence[Lane],
               level: float | None = None) -> Markup:
    """A measure from 0 to 1: a dot with its 95 % whisker for each lane; `level` is a line."""
    if not math.isfinite(level if level is not None else math.nan):
        level = None
    return tag("div", tag("h3", name), tag("p", note, class_="note"),
               [_lane(*lane, level) for lane in lanes], _axis(), class_="lanes")


def _lane(name: str, style: str, estimate: Estimate, level: float | None) -> Markup:
    marks = [] if level is None else [
        tag("span", class_="chance", style=f"left:{100 * level:.2f}%")]
    ends = None
    if math.isfinite(estimate.high - estimate.low):
        marks.append(tag("span", class_=f"whisker {style}", style=(
            f"left:{100 * estimate.low:.2f}%;width:{100 * (estimate.high - estimate.low):.2f}%")))
        ends = f"{100 * estimate.low:.1f} – {100 * estimate.high:.1f}"
    if math.isfinite(estimate.value):
        marks.append(tag("span", class_=f"mark {style}", style=f"left:{100 * estimate.value:.2f}%"))
    return tag("div", tag("span", name, class_=f"key {style}"), tag("span", marks, class_="plot"),
               tag("span", tag("b", percent(estimate.value)), tag("small", ends),
                   class_=f"num {style}"), class_="lane")


def _axis() -> Markup:
    ticks = [tag("span", f"{tick} %", style=f"left:{tick}%") for tick in (0, 50, 100)]
    return tag("div", tag("span"), tag("span", ticks, class_="axis"), tag("span"), class_="lane")


def draw_bars(rows: Sequence[tuple[str, str, float, str]]) -> Markup:
    """A bar for each (name, CSS classes, amount, printed amount)."""
    longest = max((amount for _, _, amount, _ in rows if math.isfinite(amount)), default=1.0)
    return tag("div", [tag("div", tag("span", name, class_=f"what {style}"),
                           draw_bar(amount, longest, label, style), class_="bar-row")
                       for name, style, amount, label in rows], class_="bars")


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """Names of lines with their colours, (name, CSS classes)."""
    return tag("p", [tag("span", name, class_=f"key {style}") for name, style in names],
               class_="legend")
