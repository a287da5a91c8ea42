"""Charts as inline SVG and CSS: real text, colours from the page's own variables.

Colours are classes (`base`, `sft`, `dpo`, `quiet`), so one style sheet serves light and dark.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.report_markup import Markup, count, decimal, join, tag
from scripts.report_run import MODELS, Estimate, smooth

WIDTH, HEIGHT = 380, 236                       # of a panel, in CSS pixels at full size
LEFT, RIGHT, TOP, BOTTOM = 40, 76, 20, 40      # margins; the right one holds the lines' names
LABEL_GAP = 26                                 # least distance of two names, in pixels
SMOOTHED_FROM, REACH_FRAC = 40, 0.04           # curves of that many points get a running mean
NUM_DOTS = 12                                  # shorter curves show their points

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve: its name, (step, value) points and CSS classes."""

    name: str
    points: Points
    style: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart over training steps.

    Attributes:
        levels: horizontal lines to compare with, (name, value).
        phase: a shaded span of steps, (first, last, name).
        digits: decimals of the values printed beside the curves.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    phase: tuple[float, float, str] | None = None
    digits: int = 2


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
    # Differences that the printed decimals do not show are not blown up to a whole axis.
    pad = max(0.07 * (max(values) - min(values)), 5 * 10.0 ** -panel.digits)
    last_step = max(x for line in lines for x, _ in line.points)
    x = Scale(0, max(last_step, 1), LEFT, WIDTH - RIGHT)
    y = Scale(min(values) - pad, max(values) + pad, HEIGHT - BOTTOM, TOP)
    drawing = tag("svg", _phase(panel.phase, x), _axes(x, y),
                  [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="level")
                   for _, value in levels],
                  [_curve(line, x, y) for line in lines], _names(lines, levels, y, panel.digits),
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


def _axes(x: Scale, y: Scale) -> Markup:
    y_ticks, x_ticks = nice_ticks(y.low, y.high, 6), nice_ticks(x.low, x.high, 5)
    digits = _decimals(y_ticks)
    return join(
        [join(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid"),
              tag("text", decimal(tick, digits), x=LEFT - 8, y=y(tick) + 4, text_anchor="end"))
         for tick in y_ticks],
        [tag("text", count(tick), x=x(tick), y=HEIGHT - BOTTOM + 17, text_anchor="middle")
         for tick in x_ticks if tick == round(tick)],
        tag("text", "optimizer steps", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5,
            text_anchor="middle", class_="axis-name"))


def _decimals(ticks: Sequence[float]) -> int:
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return max(0, -math.floor(math.log10(gap) + 1e-9))


def _curve(line: Line, x: Scale, y: Scale) -> Markup:
    def path(points: Points, style: str) -> Markup:
        places = " L".join(f"{x(step)} {y(value)}" for step, value in points)
        return tag("path", d=f"M{places}", class_=f"curve {line.style} {style}")

    if len(line.points) >= SMOOTHED_FROM:
        return join(path(line.points, "raw"), path(_smooth(line.points), "mean"))
    dots = line.points if len(line.points) <= NUM_DOTS else line.points[-1:]
    return join(path(line.points, "mean"),
                [tag("circle", cx=x(step), cy=y(value), r=3, class_=f"dot {line.style}")
                 for step, value in dots])


def _names(lines: Sequence[Line], levels: Sequence[tuple[str, float]], y: Scale,
           digits: int) -> list[Markup]:
    """Names and values right of the curves, pushed apart where they would touch."""
    marks = [(last_value(line.points), line.name, line.style) for line in lines]
    marks += [(value, name, "quiet") for name, value in levels]
    marks.sort(key=lambda mark: y(mark[0]))
    return [join(tag("text", decimal(value, digits), x=WIDTH - RIGHT + 8, y=place + 1,
                     class_=f"value {style}"),
                 tag("text", name, x=WIDTH - RIGHT + 8, y=place + 13, class_=f"name {style}"))
            for (value, name, style), place in zip(
                marks, spread([y(mark[0]) for mark in marks], LABEL_GAP, TOP + 6,
                              HEIGHT - BOTTOM - 4))]


def last_value(points: Points) -> float:
    """The value that a curve ends with: of its running mean where it has one."""
    return _smooth(points)[-1][1] if len(points) >= SMOOTHED_FROM else points[-1][1]


def _smooth(points: Points) -> Points:
    return smooth(points, round(REACH_FRAC * len(points)))


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves ascending places as little as needed for a distance of `gap`, within low..high."""
    moved = list(places)
    for i in range(len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap if i else low)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], moved[i + 1] - gap if i + 1 < len(moved) else high)
    return [round(place, 2) for place in moved]


def draw_bar(value: float, longest: float, label: str, style: str) -> Markup:
    """A horizontal bar with its value printed behind it."""
    width = 100 * value / longest if longest > 0 and math.isfinite(value) else 0.0
    return tag("span", tag("span", class_=f"bar {style}", style=f"width:{width:.2f}%"),
               tag("span", label, class_="bar-value"), class_="bar-track")


def draw_stack(parts: Sequence[tuple[str, float, str]], total: float) -> Markup:
    """Segments of one bar: (text inside, amount, style)."""
    return tag("span", [tag("span", text, class_=f"segment {style}",
                            style=f"width:{100 * amount / max(total, 1):.3f}%")
                        for text, amount, style in parts if amount > 0], class_="stack")


def draw_whiskers(estimates: Mapping[str, Estimate], level: float | None = None) -> Markup:
    """Dots with 95 % whiskers from 0 to 1, one lane per model; `level` is marked by a line."""
    marks: list[Any] = [
        tag("span", class_="chance", style=f"left:{100 * level:.2f}%")] if level is not None else []
    for lane, model in enumerate(MODELS, 1):
        estimate = estimates.get(model)
        if estimate is None or not math.isfinite(estimate.value):
            continue
        top = f"top:{100 * lane / (len(MODELS) + 1):.0f}%"
        if math.isfinite(estimate.low):
            marks.append(tag("span", class_=f"whisker {model}", style=(
                f"{top};left:{100 * estimate.low:.2f}%;"
                f"width:{100 * (estimate.high - estimate.low):.2f}%")))
        marks.append(tag("span", class_=f"mark {model}",
                         style=f"{top};left:{100 * estimate.value:.2f}%"))
    return tag("span", marks, class_="plot")


NODE_WIDTH, NODE_HEIGHT = 104, 46
COLUMN, ROW, ROW_TOP = 142, 96, 34
# Column and row of every artifact: data and models in the middle, evaluations below.
PLACES = {"corpus": (0, 1), "tokenizer": (1, 1), "tokens": (2, 1), "base": (3, 1), "sft": (4, 1),
          "pairs": (5, 0), "dpo": (6, 1), "eval_base": (3, 2), "eval_sft": (4, 2),
          "eval_dpo": (6, 2)}
# What many artifacts read runs on a bus around the boxes: distance from them, entry beside middle.
BUSES = {"corpus": (28, -10), "tokens": (16, 10)}


def draw_lineage(fingerprints: Mapping[str, str], edges: Sequence[tuple[str, str]]) -> Markup:
    """The graph of artifacts: a box per artifact, an arrow from every parent to its child."""
    width = 6 * COLUMN + NODE_WIDTH + 4
    height = ROW_TOP + 2 * ROW + NODE_HEIGHT + BUSES["corpus"][0] + 4
    arrow = tag("marker", tag("path", d="M0 0 L8 4 L0 8 z"), id="arrow", viewBox="0 0 8 8", refX=8,
                refY=4, markerWidth=7, markerHeight=7, orient="auto", markerUnits="userSpaceOnUse")
    return tag("svg", tag("defs", arrow), [_edge(*edge) for edge in edges],
               [_node(name, mark) for name, mark in fingerprints.items()],
               viewBox=f"0 0 {width} {height}", role="img", aria_label="Lineage of the artifacts",
               class_="lineage")


def _edge(parent: str, child: str) -> Markup:
    (from_column, from_row), (to_column, to_row) = PLACES[parent], PLACES[child]
    is_neighbour = from_row == to_row and to_column == from_column + 1
    if parent in BUSES and not is_neighbour:
        d, style = _bus(parent, child), "edge bus"
    else:
        d, style = _direct(parent, child), "edge"
    return tag("path", tag("title", f"{parent} → {child}"), d=d, class_=style,
               marker_end="url(#arrow)")


def _corner(name: str) -> tuple[int, int]:
    column, row = PLACES[name]
    return 2 + column * COLUMN, ROW_TOP + row * ROW


def _direct(parent: str, child: str) -> str:
    (x1, y1), (x2, y2) = _corner(parent), _corner(child)
    if x1 == x2:
        return f"M{x1 + NODE_WIDTH // 2} {y1 + NODE_HEIGHT} V{y2}"
    x1, y1, y2 = x1 + NODE_WIDTH, y1 + NODE_HEIGHT // 2, y2 + NODE_HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"


def _bus(parent: str, child: str) -> str:
    """Above all boxes, or below them for the evaluations; round corners of 8 pixels."""
    away, beside = BUSES[parent]
    (x1, y1), (x2, y2) = _corner(parent), _corner(child)
    x1, x2 = x1 + NODE_WIDTH // 2, x2 + NODE_WIDTH // 2 + beside
    if PLACES[child][1] > PLACES[parent][1]:
        y1, y2, sign = y1 + NODE_HEIGHT, y2 + NODE_HEIGHT, 1
        lane = ROW_TOP + 2 * ROW + NODE_HEIGHT + away
    else:
        sign, lane = -1, ROW_TOP - away
    return (f"M{x1} {y1} V{lane - 8 * sign} Q{x1} {lane} {x1 + 8} {lane} "
            f"H{x2 - 8} Q{x2} {lane} {x2} {lane - 8 * sign} V{y2}")


def _node(name: str, fingerprint: str) -> Markup:
    x, y = _corner(name)
    middle = x + NODE_WIDTH // 2
    return tag("g", tag("rect", x=x, y=y, width=NODE_WIDTH, height=NODE_HEIGHT, rx=7),
               tag("text", name, x=middle, y=y + 20, text_anchor="middle", class_="node-name"),
               tag("text", fingerprint[:8], x=middle, y=y + 36, text_anchor="middle",
                   class_="node-mark"), class_=f"node {name.removeprefix('eval_')}")
