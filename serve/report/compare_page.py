"""The page of a comparison: measures side by side, curves overlaid, and what differs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from core.page import layout
from core.page.charts import Line
from core.page.markup import Markup, count, decimal, join, percent, tag
from serve.report.book import STYLE
from serve.report.compare import Comparison, Overlay, Row, config_differences
from serve.report.evaluations import Difference, Estimate
from serve.report.lanes import draw_lanes, legend
from serve.report.training import draw_chart

MAX_NAMED = 6       # curves of a chart with names beside them
NO_INTERVAL = "no interval"


def render_comparison(comparison: Comparison, title: str) -> str:
    """The whole page as HTML."""
    names = run_names(comparison)
    tiles = [("Runs", count(len(comparison.runs)), ""),
             ("Measures", count(len(comparison.rows)), "that are comparable"),
             ("Curves", count(len(comparison.overlays)), "laid over each other"),
             ("Left out", count(len(comparison.left_out)), "listed below, each with its reason")]
    return layout.render_page(
        f"Heartwood: {title}", layout.headline(
            "Heartwood · run book", "Side by side", "Compared is what was measured in the same "
            "way. What was not is listed with the setting that differs, and left out of charts "
            "and tables.", tiles),
        tag("main", measures(comparison, names), curves(comparison, names),
            not_compared(comparison), differences(comparison, names)), style=STYLE.read_text())


def run_names(comparison: Comparison) -> list[tuple[str, str]]:
    """Name and CSS classes of each run."""
    return [(run.name, style) for run, style in zip(comparison.runs, comparison.styles)]


def measures(comparison: Comparison, names: Sequence[tuple[str, str]]) -> Markup | None:
    """Whiskers of shares, and a table of all measures."""
    if not comparison.rows:
        return None
    blocks = [draw_lanes(
        f"{row.artifact}: {row.measure}", "", [(name, style, estimate) for (name, style), estimate
                                               in zip(names, row.estimates) if estimate])
        for row in comparison.rows if row.is_share]
    head = ["measure", *(name for name, _ in names)]
    rows = [[f"{row.artifact}: {row.measure}",
             *(join(_estimate(one, row), _difference(change, row))
               for one, change in zip(row.estimates, row.differences))] for row in comparison.rows]
    return layout.section(
        "Measures", "Intervals are of 95 %. The second line of a cell is the difference from the "
        "first run that has the measure: paired where both answered the same questions (Bonett "
        "and Price), else from the two intervals (Newcombe). One whose interval does not hold 0 is "
        "bold.",
        tag("div", blocks, class_="measures"), layout.table(head, rows, "compared"))


def _estimate(estimate: Estimate | None, row: Row) -> Markup | str:
    if estimate is None:
        return "–"
    if not row.is_share:
        return decimal(estimate.value)
    return join(percent(estimate.value), _range(estimate.low, estimate.high))


def _range(low: float, high: float) -> Markup | None:
    if not math.isfinite(high - low):
        return None
    return tag("small", f" {100 * low:.1f} to {100 * high:.1f}".replace("-", "−"))


def _difference(one: Difference | None, row: Row) -> Markup | None:
    if one is None:
        return None
    sign = "+" if one.value > 0 else ""
    if not row.is_share:
        return tag("div", f"{sign}{decimal(one.value)}", tag("small", f" {NO_INTERVAL}"))
    text = f"{sign}{decimal(100 * one.value, 1)} points"
    is_clear = one.low > 0 or one.high < 0
    return tag("div", tag("b", text) if is_clear else text, _range(one.low, one.high),
               tag("small", f" {one.kind or NO_INTERVAL}"))


def curves(comparison: Comparison, names: Sequence[tuple[str, str]]) -> Markup | None:
    """The curves of trainings that belong together, overlaid."""
    if not comparison.overlays:
        return None
    parts = []
    for artifact, overlays in itertools.groupby(comparison.overlays, key=lambda one: one.artifact):
        parts += [tag("h3", artifact),
                  tag("div", [_panel(one, names) for one in overlays], class_="panels")]
    return layout.section("Curves", "Measured in the same way in all the runs of a chart.",
                          legend(names), parts)


def _panel(overlay: Overlay, names: Sequence[tuple[str, str]]) -> Markup:
    lines = [Line(_short(name), line.points, line.style, line.is_exact)
             for (name, _), line in zip(names, overlay.lines) if line is not None]
    return draw_chart(overlay.chart.title, overlay.chart.unit, lines, overlay.chart.levels,
                      labels=len(lines) <= MAX_NAMED)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def not_compared(comparison: Comparison) -> Markup | None:
    """What was left out, with the reason, and what only one run has."""
    alone = comparison.alone()
    if not comparison.left_out and not alone:
        return None
    items = [tag("li", reason) for reason in comparison.reasons()]
    items += [tag("li", f"only in {run}: {', '.join(names)}") for run, names in alone.items()]
    return layout.section("Not compared", "A comparison of these would not mean what it says.",
                          tag("ul", items, class_="not-compared"))


def differences(comparison: Comparison, names: Sequence[tuple[str, str]]) -> Markup | None:
    """The fields in which the configs differ."""
    parts = []
    for pair in comparison.matches:
        if sum(one is not None for one in pair.artifacts) < 2:
            continue
        rows = [[tag("code", field), *(tag("code", value) for value in values)]
                for field, values in config_differences(pair)]
        parts.append(tag("h3", pair.name))
        parts.append(layout.table(["field", *(name for name, _ in names)], rows, "differences")
                     if rows else tag("p", "No difference.", class_="note"))
    if not parts:
        return None
    return layout.section("Differences of settings", "Only the fields that differ: of the config, "
                          "the inputs' fingerprints, the commit and the libraries.", parts)
