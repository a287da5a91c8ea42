"""Charts of the run report: whiskers of the models, lineage of the artifacts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.page.markup import Markup, tag
from serve.report.run import MODELS, Estimate


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
          "pairs": (5, 0), "reward": (6, 0), "dpo": (6, 1), "eval_base": (3, 2), "eval_sft": (4, 2),
          "eval_dpo": (6, 2), "rl": (7, 1), "eval_rl": (7, 2)}
# Edges from often-read artifacts pass around the boxes: distance from them, offset of the entry.
BUSES = {"corpus": (28, -10), "tokens": (16, 10)}


def draw_lineage(fingerprints: Mapping[str, str], edges: Sequence[tuple[str, str]]) -> Markup:
    """The graph of artifacts: a box per artifact, an arrow from every parent to its child."""
    width = 7 * COLUMN + NODE_WIDTH + 4
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
    """Path above all boxes, or below them for evaluations, with corners of radius 8."""
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
