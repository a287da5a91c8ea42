"""The page of learning curves: a chart for each measure, and a table of what emerges when."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from core.page.charts import Scale, decimals, nice_ticks, spread
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, tag
from eval.aggregate.curves import Curve, Point, Summary

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 250, 44, 110, 14, 40
NUM_COLOURS, NUM_DASHES, LABEL_GAP = 8, 3, 14
MAX_SERIES = NUM_COLOURS * NUM_DASHES       # that lines of one chart can tell apart
MAX_LABEL = 12      # characters of a series' name beside its curve; the legend has it whole
WIDE = 100      # an axis whose positive values differ by more is logarithmic
COLOURS = ("#3565a8", "#b0552d", "#4c8a4a", "#8b5aa3", "#b8912b", "#2f8f8f", "#b0446e", "#777f88")
STYLE = "".join(f".c{i} {{ color: {colour}; }} " for i, colour in enumerate(COLOURS)) + (
    ".legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; } "
    ".d1 { stroke-dasharray: 6 3; } .d2 { stroke-dasharray: 2 3; } "
    ".band { fill: currentColor; opacity: .16; stroke: none; } svg .label { fill: currentColor; }")


class Axis:
    """Places of the checkpoints: by tokens where all points have them, else by step.

    The axis is logarithmic where values differ much; 0 then stands half a decade below the rest.
    """

    def __init__(self, points: Sequence[Point]):
        self.name = ("training tokens" if all(point.tokens is not None for point in points)
                     else "steps")
        values = [self._value(point) for point in points]
        positive = [value for value in values if value > 0]
        self._is_log = bool(positive) and max(positive) > WIDE * min(positive)
        self._zero = math.log10(min(positive)) - 0.5 if self._is_log else 0.0
        low = self._map(min(values)) if self._is_log else 0.0
        self._scale = Scale(low, max(self._map(max(values)), low + 1e-9), LEFT, WIDTH - RIGHT)

    def place(self, point: Point) -> float:
        """The point's place, in pixels."""
        return self._scale(self._map(self._value(point)))

    def ticks(self) -> list[tuple[float, str]]:
        """Places and texts."""
        if not self._is_log:
            return [(self._scale(tick), short(tick))
                    for tick in nice_ticks(self._scale.low, self._scale.high, 5)]
        first, last = math.ceil(self._scale.low), math.floor(self._scale.high)
        apart = max(1, math.ceil((last - first) / 5))
        marks = [(self._scale(power), short(10.0**power))
                 for power in range(first, last + 1, apart)]
        return [(self._scale(self._zero), "0"), *marks] if self._scale.low == self._zero else marks

    def _value(self, point: Point) -> float:
        return point.step if self.name == "steps" else point.tokens

    def _map(self, value: float) -> float:
        if not self._is_log:
            return value
        return math.log10(value) if value > 0 else self._zero


def short(value: float) -> str:
    """A count in few characters: 20, 3k, 1.5M, 300B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def render(title: str, curves: Sequence[Curve], summaries: Sequence[Summary],
           missing: Mapping[tuple[str, str, str], Sequence[int]]) -> str:
    """The page as HTML.

    Args:
        summaries: of the curves, in their order.
        missing: of `eval.aggregate.curves.find_missing`.
    """
    series = list(dict.fromkeys(curve.series for curve in curves))
    styles = {name: f"c{i % NUM_COLOURS} d{i // NUM_COLOURS % NUM_DASHES}"
              for i, name in enumerate(series)}
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        if curve.series in series[:MAX_SERIES]:
            panels.setdefault((curve.task, curve.metric), []).append(curve)
    num_points = sum(len(curve.points) for curve in curves)
    tiles = [("Measures", count(len(panels)), "task and metric"),
             ("Series", count(len(series)), "runs"),
             ("Scores", count(num_points), "of checkpoints")]
    left = (f" The charts show {MAX_SERIES} of {len(series)} series." if len(series) > MAX_SERIES
            else "")
    lacking = [f"{task} {metric}" + (f" of {name}" if name else "")
               + f": {len(steps)} checkpoints without it, steps {_list(steps)}"
               for (name, task, metric), steps in missing.items()]
    return render_page(
        title, headline("Learning curves", title, "Each chart is one measure along training.",
                        tiles),
        section("Curves", "Bands are 95 % intervals over items, where the number of items or the "
                "standard error is known; the dashed line is chance." + left,
                _legend(series[:MAX_SERIES], styles) if len(series) > 1 else None,
                tag("div", [_draw(*names, drawn, styles) for names, drawn in panels.items()],
                    class_="panels")),
        section("What emerges when", "The first checkpoint from which every score stays more than "
                "two standard errors above chance; monotonicity is Spearman's correlation with the "
                "step; noise is a score's standard deviation about its neighbours.",
                _table(curves, summaries)),
        section("Missing", "Checkpoints that other measures of the same series have.",
                tag("ul", [tag("li", line) for line in lacking])) if lacking else None,
        style=STYLE)


def _legend(series: Sequence[str], styles: Mapping[str, str]) -> Markup:
    def line(style: str) -> Markup:
        return tag("svg", tag("path", d="M0 5 L26 5", class_=f"curve {style.split()[1]}"),
                   width=26, height=10, viewBox="0 0 26 10")

    return tag("p", [tag("span", line(styles[name]), " ", name or "the run",
                         class_=f"key {styles[name].split()[0]}") for name in series],
               class_="legend")


def _list(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:6]))
    return shown + (f" and {len(steps) - 6} more" if len(steps) > 6 else "")


def _table(curves: Sequence[Curve], summaries: Sequence[Summary]) -> Markup:
    def number(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else decimal(value, digits)

    head = ("series", "task", "metric", "checkpoints", "first", "last", "chance", "emerges at",
            "monotonicity", "noise", "signal / noise")
    rows = [(curve.series or "–", curve.task, curve.metric, count(len(curve.points)),
             number(curve.points[0].score.value), number(curve.points[-1].score.value),
             number(curve.chance), " ".join(filter(None, [
                 "" if found.emerges_at is None else f"step {found.emerges_at}",
                 found.emergence and f"({found.emergence})"])),
             number(found.monotonicity, 2), number(found.noise, 4),
             number(found.signal_to_noise, 1)) for curve, found in zip(curves, summaries)]
    return table(head, rows, "curves")


def _draw(task: str, metric: str, curves: Sequence[Curve], styles: Mapping[str, str]) -> Markup:
    points = [point for curve in curves for point in curve.points]
    x, intervals = Axis(points), [interval for curve in curves for interval in curve.intervals]
    chances = sorted({curve.chance for curve in curves} - {None})
    values = [point.score.value for point in points] + chances + [
        end for interval in intervals if interval for end in interval]
    pad = max(0.05 * (max(values) - min(values)), 0.002)
    y = Scale(min(values) - pad, max(values) + pad, HEIGHT - BOTTOM, TOP)
    ticks = nice_ticks(y.low, y.high, 6)
    digits = decimals(ticks)
    places = sorted(((y(curve.points[-1].score.value), curve) for curve in curves),
                    key=lambda mark: mark[0])
    moved = spread([place for place, _ in places], LABEL_GAP, TOP + 4, HEIGHT - BOTTOM)
    drawing = tag(
        "svg",
        [join(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"),
              tag("text", decimal(tick, digits), x=LEFT - 7, y=y(tick) + 4, text_anchor="end"))
         for tick in ticks],
        [tag("text", text, x=place, y=HEIGHT - BOTTOM + 16, text_anchor="middle")
         for place, text in x.ticks()],
        tag("text", x.name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle",
            class_="axis-name"),
        [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(chance), y2=y(chance), class_="level")
         for chance in chances],
        [_curve(curve, x, y, styles[curve.series]) for curve in curves],
        [tag("text", f"{decimal(curve.points[-1].score.value, 3)} {_shorten(curve.series)}",
             x=WIDTH - RIGHT + 7, y=place + 4, class_=f"label {styles[curve.series].split()[0]}")
         for place, (_, curve) in zip(moved, places)],
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{task} {metric}")
    return tag("figure", tag("figcaption", tag("b", task), tag("span", metric)), drawing)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LABEL else text[:MAX_LABEL - 1] + "…"


def _curve(curve: Curve, x: Axis, y: Scale, style: str) -> Markup:
    """The band over points that have an interval, the line, and a dot for each of few points."""
    ends = [(x.place(point), interval)
            for point, interval in zip(curve.points, curve.intervals) if interval]
    around = [f"{place} {y(high)}" for place, (_, high) in ends]
    around += [f"{place} {y(low)}" for place, (low, _) in reversed(ends)]
    line = " L".join(f"{x.place(point)} {y(point.score.value)}" for point in curve.points)
    dots = curve.points if len(curve.points) <= 12 else ()
    return tag("g", tag("title", curve.series) if curve.series else None,
               tag("path", d=f"M{' L'.join(around)} Z", class_="band") if ends else None,
               tag("path", d=f"M{line}", class_=f"curve {style.split()[1]}"),
               [tag("circle", cx=x.place(point), cy=y(point.score.value), r=2.6, class_="dot")
                for point in dots], class_=style.split()[0])
