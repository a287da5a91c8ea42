"""Charts as inline SVG and CSS: real text, colours from the page's own variables.

Colours are classes (`wood`, `quiet`, a model's name), so one style sheet has both light and dark
colours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from core.page.markup import Markup, count, decimal, join, tag

WIDTH, HEIGHT = 380, 236                       # of a panel, in CSS pixels at full size
LEFT, RIGHT, TOP, BOTTOM = 40, 76, 20, 40      # margins; the names of lines are in the right one
LABEL_GAP = 26                                 # minimum distance of two names, in pixels
SMOOTHED_FROM, REACH_FRAC = 40, 0.04           # longer curves get a running mean
NUM_DOTS = 12                                  # curves of at most this many points show them

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: its name, (x, y) points and CSS classes.

    Attributes:
        is_exact: whether it is drawn as it is however long, e.g. a schedule, without running mean.
    """

    name: str
    points: Points
    style: str
    is_exact: bool = False

    @property
    def is_smoothed(self) -> bool:
        """Whether a running mean is drawn."""
        return len(self.points) >= SMOOTHED_FROM and not self.is_exact

    @property
    def last_value(self) -> float:
        """The last value, or that of the running mean where one is drawn."""
        return (_smooth(self.points) if self.is_smoothed else self.points)[-1][1]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart of curves over an axis that begins at zero.

    Attributes:
        levels: horizontal lines to compare with, (name, value).
        phase: a shaded span of the axis, (first, last, name).
        digits: decimals of the values printed beside the curves.
        x_name: quantity on the axis.
        x_digits: decimals of its ticks.
        labels: whether names and last values stand beside the curves; else a legend names them.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    phase: tuple[float, float, str] | None = None
    digits: int = 2
    x_name: str = "optimizer steps"
    x_digits: int = 0
    labels: bool = True


class Scale:
    """Maps values from `low` to `high` linearly to pixels from `start` to `stop`."""

    def __init__(self, low: float, high: float, start: float, stop: float):
        self.low, self.high = low, high
        self._start, self._per_unit = start, (stop - start) / (high - low)

    def __call__(self, value: float) -> float:
        return round(self._start + (value - self.low) * self._per_unit, 2)


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within low..high, at most `most`."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)][:most + 1]


def draw_panel(panel: Panel) -> Markup:
    """A figure: title, unit, curves with their last values beside them."""
    lines = [line for line in panel.lines if line.points]
    heading = tag("figcaption", tag("b", panel.title), tag("span", panel.unit))
    if not lines:
        return tag("figure", heading, tag("p", "No finite value was logged.", class_="quiet"))
    levels = [(name, value) for name, value in panel.levels if math.isfinite(value)]
    values = [y for line in lines for _, y in line.points] + [value for _, value in levels]
    # Differences below the printed decimals must not fill the whole axis.
    pad = max(0.07 * (max(values) - min(values)), 5 * 10.0 ** -panel.digits)
    last = max(x for line in lines for x, _ in line.points)
    x = Scale(0, max(last, 10.0 ** -panel.x_digits), LEFT, WIDTH - RIGHT)
    y = Scale(min(values) - pad, max(values) + pad, HEIGHT - BOTTOM, TOP)
    drawing = tag("svg", _phase(panel.phase, x), _axes(panel, x, y),
                  [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="level")
                   for _, value in levels],
                  [_curve(line, x, y) for line in lines],
                  _names(lines if panel.labels else (), levels, y, panel.digits),
                  viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=panel.title)
    return tag("figure", heading, drawing)


def _phase(phase: tuple[float, float, str] | None, x: Scale) -> Markup | None:
    if phase is None:
        return None
    first, last, name = phase
    return join(
        tag("rect", x=x(first), y=TOP, width=round(x(last) - x(first), 2),
            height=HEIGHT - BOTTOM - TOP, class_="phase"),
        tag("text", name, x=x(last), y=TOP - 6, text_anchor="end", class_="phase-name"))


def _axes(panel: Panel, x: Scale, y: Scale) -> Markup:
    y_ticks, x_ticks = nice_ticks(y.low, y.high, 6), nice_ticks(x.low, x.high, 5)
    digits = decimals(y_ticks)

    def number(tick: float) -> str:
        return decimal(tick, panel.x_digits) if panel.x_digits else count(tick)

    return join(
        [join(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"),
              tag("text", decimal(tick, digits), x=LEFT - 8, y=y(tick) + 4, text_anchor="end"))
         for tick in y_ticks],
        [tag("text", number(tick), x=x(tick), y=HEIGHT - BOTTOM + 17, text_anchor="middle")
         for tick in x_ticks if abs(tick - round(tick, panel.x_digits)) < 1e-9],
        tag("text", panel.x_name, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5,
            text_anchor="middle", class_="axis-name"))


def decimals(ticks: Sequence[float]) -> int:
    """Number of decimals that distinguishes neighbouring ticks."""
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return max(0, -math.floor(math.log10(gap) + 1e-9))


def _curve(line: Line, x: Scale, y: Scale) -> Markup:
    def path(points: Points, style: str) -> Markup:
        places = " L".join(f"{x(step)} {y(value)}" for step, value in points)
        return tag("path", d=f"M{places}", class_=f"curve {line.style} {style}")

    if line.is_smoothed:
        return join(path(line.points, "raw"), path(_smooth(line.points), "mean"))
    dots = line.points if len(line.points) <= NUM_DOTS else line.points[-1:]
    return join(path(line.points, "mean"),
                [tag("circle", cx=x(step), cy=y(value), r=3, class_=f"dot {line.style}")
                 for step, value in dots])


def _names(lines: Sequence[Line], levels: Sequence[tuple[str, float]], y: Scale,
           digits: int) -> list[Markup]:
    """Names and values right of the curves, moved apart where they would overlap."""
    marks = [(line.last_value, line.name, line.style) for line in lines]
    marks += [(value, name, "quiet") for name, value in levels]
    marks.sort(key=lambda mark: y(mark[0]))
    return [join(tag("text", decimal(value, digits), x=WIDTH - RIGHT + 8, y=place + 1,
                     class_=f"value {style}"),
                 tag("text", name, x=WIDTH - RIGHT + 8, y=place + 13, class_=f"name {style}"))
            for (value, name, style), place in zip(
                marks, spread([y(mark[0]) for mark in marks], LABEL_GAP, TOP + 6,
                              HEIGHT - BOTTOM - 4))]


def _smooth(points: Points) -> Points:
    return smooth(points, round(REACH_FRAC * len(points)))


def smooth(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Mean over each point and its `reach` neighbours on either side, fewer at the ends."""
    near = [[y for _, y in points[max(0, i - reach):i + reach + 1]] for i in range(len(points))]
    return [(x, math.fsum(values) / len(values)) for (x, _), values in zip(points, near)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves ascending places so that their distance is at least `gap`, within low..high."""
    moved = list(places)
    for i in range(len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap if i else low)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], moved[i + 1] - gap if i + 1 < len(moved) else high)
    return [round(place, 2) for place in moved]


def draw_bar(value: float, longest: float, label: str, style: str) -> Markup:
    """A horizontal bar with its value printed after it."""
    width = 100 * value / longest if longest > 0 and math.isfinite(value) else 0.0
    return tag("span", tag("span", class_=f"bar {style}", style=f"width:{width:.2f}%"),
               tag("span", label, class_="bar-value"), class_="bar-track")


def draw_stack(parts: Sequence[tuple[str, float, str]], total: float) -> Markup:
    """Segments of one bar: (text inside, amount, style)."""
    return tag("span", [tag("span", text, class_=f"segment {style}",
                            style=f"width:{100 * amount / max(total, 1):.3f}%")
                        for text, amount, style in parts if amount > 0], class_="stack")
