"""The graph of artifacts, of any shape: at most three boxes a row, parents above their children.

Rows follow Coffman and Graham (1972): a box goes into the first row below all of its parents that
has room. An arrow to the next row is a curve; one to a row further down runs in a lane at the left,
one lane for each parent, so that no arrow crosses a box.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from core.page.markup import Markup, join, tag

BOXES = 3                               # in a row
BOX_WIDTH, BOX_HEIGHT = 112, 44         # in CSS pixels at full size
BESIDE, BETWEEN = 14, 44                # between boxes, and between rows
LANE, MARGIN = 9, 8
MAX_NAME = 16                           # characters of a name in a box; its title has it whole


@dataclasses.dataclass(frozen=True)
class Place:
    """Row and place in the row of a box."""

    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Box:
    """A box: its name, the line below it, and CSS classes."""

    name: str
    note: str
    style: str


def place(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, Place]:
    """Rows and columns of boxes, whose names come parents first."""
    parents: dict[str, list[str]] = {name: [] for name in names}
    for parent, child in edges:
        parents[child].append(parent)
    places: dict[str, Place] = {}
    sizes: dict[int, int] = {}
    for name in names:
        row = max((places[parent].row + 1 for parent in parents[name] if parent in places),
                  default=0)
        while sizes.get(row, 0) == BOXES:
            row += 1
        places[name] = Place(row, sizes.get(row, 0))
        sizes[row] = sizes.get(row, 0) + 1
    return places


def draw_graph(boxes: Sequence[Box], edges: Sequence[tuple[str, str]]) -> Markup:
    """The graph as a drawing; boxes come parents first, edges are (parent, child)."""
    places = place([box.name for box in boxes], edges)
    far = list(dict.fromkeys(parent for parent, child in edges
                             if places[child].row != places[parent].row + 1))
    left = MARGIN + LANE * len(far)
    drawing = _Drawing(places, {name: MARGIN + LANE * number
                                for number, name in enumerate(reversed(far))}, left)
    num_rows = 1 + max(spot.row for spot in places.values())
    num_columns = 1 + max(spot.column for spot in places.values())
    width = left + MARGIN + num_columns * (BOX_WIDTH + BESIDE)
    height = 2 * MARGIN + num_rows * (BOX_HEIGHT + BETWEEN) - BETWEEN
    arrow = tag("marker", tag("path", d="M0 0 L8 4 L0 8 z"), id="arrow", viewBox="0 0 8 8", refX=8,
                refY=4, markerWidth=6, markerHeight=6, orient="auto", markerUnits="userSpaceOnUse")
    return tag("svg", tag("defs", arrow), [drawing.edge(*edge) for edge in edges],
               [drawing.box(box) for box in boxes], viewBox=f"0 0 {width} {height}",
               width=width, role="img", aria_label="Lineage of the artifacts", class_="lineage")


class _Drawing:
    """Boxes and arrows in their places; `lanes` are the places of the lanes by parent."""

    def __init__(self, places: Mapping[str, Place], lanes: Mapping[str, float], left: float):
        self._places, self._lanes, self._left = places, lanes, left

    def _corner(self, name: str) -> tuple[float, float]:
        spot = self._places[name]
        return (self._left + MARGIN + spot.column * (BOX_WIDTH + BESIDE),
                MARGIN + spot.row * (BOX_HEIGHT + BETWEEN))

    def edge(self, parent: str, child: str) -> Markup:
        """An arrow from a parent to its child."""
        (x1, y1), (x2, y2) = self._corner(parent), self._corner(child)
        x1, x2, y1 = x1 + BOX_WIDTH / 2, x2 + BOX_WIDTH / 2, y1 + BOX_HEIGHT
        if self._places[child].row == self._places[parent].row + 1:
            middle = (y1 + y2) / 2
            d, style = f"M{x1:g} {y1} C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2}", "edge"
        else:
            d, style = self._detour(parent, x1 - BOX_WIDTH / 4, y1, x2 - BOX_WIDTH / 4, y2), \
                "edge far"
        return tag("path", tag("title", f"{parent} → {child}"), d=d, class_=style,
                   marker_end="url(#arrow)")

    def _detour(self, parent: str, x1: float, y1: float, x2: float, y2: float) -> str:
        """Down, to the parent's lane, along it, and to the child, with corners of radius 4."""
        lane = self._lanes[parent]
        order = list(self._lanes).index(parent)
        shift = 4 + (order * 5) % (BETWEEN // 2 - 8)      # lanes of several parents lie apart
        leave, enter = y1 + shift, y2 - 8 - shift
        return (f"M{x1:g} {y1} V{leave - 4} Q{x1:g} {leave} {x1 - 4:g} {leave} H{lane + 4:g} "
                f"Q{lane:g} {leave} {lane:g} {leave + 4} V{enter - 4} "
                f"Q{lane:g} {enter} {lane + 4:g} {enter} H{x2 - 4:g} "
                f"Q{x2:g} {enter} {x2:g} {enter + 4} V{y2}")

    def box(self, box: Box) -> Markup:
        """A box with its name and a line below."""
        x, y = self._corner(box.name)
        middle = x + BOX_WIDTH / 2
        short = box.name if len(box.name) <= MAX_NAME else f"…{box.name[1 - MAX_NAME:]}"
        return tag("g", tag("title", box.name),
                   tag("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=7),
                   join(tag("text", short, x=middle, y=y + 19, text_anchor="middle",
                            class_="node-name"),
                        tag("text", box.note, x=middle, y=y + 34, text_anchor="middle",
                            class_="node-mark")), class_=f"node {box.style}")
