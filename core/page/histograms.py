"""Histograms as inline SVG, with the values beyond a threshold marked and their share printed."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence

from core.page.charts import decimals, nice_ticks
from core.page.markup import Markup, count, decimal, percent, tag
from core.progress import format_count

WIDTH, HEIGHT = 300, 132                       # in CSS pixels at full size
SIDE, TOP, BOTTOM = 6, 18, 20                  # margins
NUM_TICKS, TICK_GAP = 5, 40                    # maximum number, and minimum distance in pixels


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts between edges, evenly spaced or, after a first edge of 0, geometrically.

    Attributes:
        edges: ascending, one more than `counts`.
        low, high: inclusive thresholds; None where there is none.
    """

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    low: float | None = None
    high: float | None = None

    def beyond_frac(self) -> tuple[float, bool]:
        """Share of counts beyond the thresholds, and whether it is exact.

        A bin that contains a threshold is not counted; if it is not empty, the share is a lower
        bound.
        """
        beyond = sum(number for i, number in enumerate(self.counts) if self.is_beyond(i))
        split = sum(number for i, number in enumerate(self.counts) if self._is_split(i))
        return beyond / max(sum(self.counts), 1), split == 0

    def is_beyond(self, index: int) -> bool:
        """Whether all of a bin lies beyond a threshold."""
        return ((self.low is not None and self.edges[index + 1] <= self.low)
                or (self.high is not None and self.edges[index] > self.high))

    def _is_split(self, index: int) -> bool:
        first, last = self.edges[index:index + 2]
        return ((self.low is not None and first < self.low < last)
                or (self.high is not None and first <= self.high < last))


class BinScale:
    """Maps values to pixels such that all bins are equally wide."""

    def __init__(self, edges: Sequence[float]):
        self.edges = edges
        self._bin_width = (WIDTH - 2 * SIDE) / (len(edges) - 1)
        widths = [last - first for first, last in itertools.pairwise(edges)]
        self.is_even = max(widths) <= 1.001 * min(widths)

    def __call__(self, value: float) -> float:
        value = min(max(value, self.edges[0]), self.edges[-1])
        index = min(bisect.bisect_right(self.edges, value), len(self.edges) - 1) - 1
        first, last = self.edges[index:index + 2]
        frac = (math.log(value / first) / math.log(last / first) if first > 0 and not self.is_even
                else (value - first) / (last - first))
        return round(SIDE + (index + frac) * self._bin_width, 2)

    def ticks(self) -> list[float]:
        """Round values to print below the axis, with a minimum distance."""
        low, high = self.edges[0], self.edges[-1]
        values = nice_ticks(low, high, NUM_TICKS)
        if not self.is_even:
            least = next(edge for edge in self.edges if edge > 0)
            powers = [10.0 ** power for power in range(math.ceil(math.log10(least) - 1e-9),
                                                       math.floor(math.log10(high) + 1e-9) + 1)]
            values = ([low] if low == 0 else []) + (powers if len(powers) > 1 else values)
        apart = values[:1]
        for value in values[1:]:
            if self(value) - self(apart[-1]) >= TICK_GAP:
                apart.append(value)
        return apart


def draw_histogram(histogram: Histogram) -> Markup:
    """A figure: title, share beyond the thresholds, bars, and a line at each threshold."""
    shown = _crop(histogram)
    scale, peak = BinScale(shown.edges), max(shown.counts, default=0)
    base = HEIGHT - BOTTOM
    bars = []
    for index, number in enumerate(shown.counts):
        if number:
            left, right = scale(shown.edges[index]), scale(shown.edges[index + 1])
            height = max((base - TOP) * number / peak, 1.5)
            bars.append(tag("rect", tag("title", f"{_bin(shown, index)}: {count(number)}"), x=left,
                            y=round(base - height, 2), width=round(max(right - left - 1, 1), 2),
                            height=round(height, 2),
                            class_="bin beyond" if shown.is_beyond(index) else "bin"))
    drawing = tag("svg", bars, tag("line", x1=SIDE, x2=WIDTH - SIDE, y1=base, y2=base,
                                   class_="grid"),
                  _thresholds(shown, scale), _tick_texts(scale),
                  viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=histogram.title)
    return tag("figure", tag("figcaption", tag("b", histogram.title),
                             tag("span", _caption(histogram))), drawing, class_="histogram")


def _crop(histogram: Histogram) -> Histogram:
    """The bins from the first to the last that is non-empty or contains a threshold."""
    used = [index for index, number in enumerate(histogram.counts) if number]
    for value in (histogram.low, histogram.high):
        if value is not None:
            place = bisect.bisect_right(histogram.edges, value) - 1
            used.append(min(max(place, 0), len(histogram.counts) - 1))
    if not used:
        return histogram
    first, last = min(used), max(used) + 1
    return dataclasses.replace(histogram, edges=histogram.edges[first:last + 1],
                               counts=histogram.counts[first:last])


def _caption(histogram: Histogram) -> str:
    if histogram.low is None and histogram.high is None:
        return "no threshold"
    bounds = [f"{word} {format_count(value)}"
              for word, value in (("from", histogram.low), ("to", histogram.high))
              if value is not None]
    share, is_exact = histogram.beyond_frac()
    return f"{' '.join(bounds)} · {'' if is_exact else '≥ '}{percent(share)} beyond"


def _bin(histogram: Histogram, index: int) -> str:
    return " to ".join(format_count(edge) for edge in histogram.edges[index:index + 2])


def _thresholds(histogram: Histogram, scale: BinScale) -> list[Markup]:
    return [tag("g", tag("line", x1=scale(value), x2=scale(value), y1=TOP - 6,
                         y2=HEIGHT - BOTTOM, class_="threshold"),
                tag("text", format_count(value), x=scale(value), y=TOP - 9,
                    text_anchor=_anchor(scale(value)), class_="threshold-name"))
            for value in (histogram.low, histogram.high) if value is not None]


def _tick_texts(scale: BinScale) -> list[Markup]:
    ticks = scale.ticks()
    digits = decimals(ticks) if scale.is_even else 0
    return [tag("text", decimal(tick, digits) if scale.is_even else format_count(tick),
                x=scale(tick), y=HEIGHT - 6, text_anchor=_anchor(scale(tick))) for tick in ticks]


def _anchor(place: float) -> str:
    return "start" if place < 24 else "end" if place > WIDTH - 24 else "middle"
