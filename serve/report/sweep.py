"""The page of a sweep: its points with their last numbers, and their curves overlaid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import read_json, read_jsonl
from core.errors import UserError
from core.page import layout
from core.page.markup import Markup, count, decimal, join, percent, tag
from core.points import short_names
from core.progress import format_count, format_secs
from serve.report.book import STYLE
from serve.report.compare import Comparison, Row
from serve.report.compare_page import curves, not_compared, run_names
from serve.report.evaluations import series
from serve.report.runs import find_run, is_number

MAX_POINTS = 24         # whose curves colours and dashes tell apart
MAX_OTHERS = 8          # numbers of a stage that is neither a training nor an evaluation
STATUSES = ("finished", "failed", "missing")
FACTS = {"params": format_count, "tokens": format_count, "steps": count, "secs": format_secs}
CLOCKS = ("secs", "peak_memory_bytes", "goodput_frac")


class Sweep:
    """A folder that `python -m scripts.sweep.run` wrote.

    Attributes:
        points: the rows of its results, in the order of their settings.
        comparison: of the first `MAX_POINTS` finished points.

    Raises:
        UserError: a result is damaged.
    """

    def __init__(self, folder: Path):
        self.name = folder.resolve().name
        rows = {}
        if (folder / "results.jsonl").exists():
            rows = {row["point"]: row for row in map(_check, read_jsonl(folder / "results.jsonl"))}
        for path in sorted(folder.glob("*/result.json")):
            row = _check(read_json(path))
            rows[row["point"]] = row
        self.points = sorted(rows.values(), key=_order)
        self.left_out: list[tuple[str, str, str]] = []
        runs = []
        for row in self.of_status("finished")[:MAX_POINTS]:
            try:
                run = find_run(folder / row["point"])
            except UserError as error:
                self.left_out.append((row["point"], "", str(error)))
                continue
            run.name = row["point"]
            runs.append(run)
        self.comparison = Comparison(runs, [series(number) for number in range(len(runs))])
        self.comparison.left_out += self.left_out

    def of_status(self, status: str) -> list[Mapping[str, Any]]:
        """The points that are finished, failed or missing."""
        return [row for row in self.points if row["status"] == status]

    def numbers(self) -> dict[str, Any]:
        """Figures for a script."""
        return ({"points": len(self.points)}
                | {status: len(self.of_status(status)) for status in STATUSES}
                | self.comparison.numbers())


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds the points of a sweep."""
    return any(folder.glob("*/result.json"))


def render_sweep(sweep: Sweep) -> str:
    """The whole page as HTML."""
    names, finished = run_names(sweep.comparison), sweep.of_status("finished")
    fields = short_names(list(_fields(sweep.points))).values()
    note = (f" Curves are those of the first {MAX_POINTS} points."
            if len(finished) > MAX_POINTS else "")
    tiles = [("Points", count(len(sweep.points)), "settings of the swept fields"),
             *((status.capitalize(), count(len(sweep.of_status(status))), "")
               for status in STATUSES)]
    return layout.render_page(
        f"Heartwood: {sweep.name}", layout.headline(
            "Heartwood · run book", sweep.name,
            f"A sweep over {', '.join(fields) or 'points of their own'}.{note}", tiles),
        tag("main", _failed(sweep), _table(sweep), curves(sweep.comparison, names),
            not_compared(sweep.comparison)), style=STYLE.read_text())


def _failed(sweep: Sweep) -> Markup | None:
    rows = sweep.of_status("failed")
    if not rows:
        return None
    return layout.section("Failed", "The stage, and the last line that it printed.", tag("ul", [
        tag("li", tag("b", row["point"]), f", {row.get('stage', '')}: {row.get('error', '')}",
            class_="failed") for row in rows]))


def _table(sweep: Sweep) -> Markup:
    """A line for each point; bold is the best of its column."""
    names = short_names(list(_fields(sweep.points)))
    place = {run.name: number for number, run in enumerate(sweep.comparison.runs)}
    rows = sweep.comparison.rows
    best = [_best(row) for row in rows]
    others = {} if rows else _others(sweep.of_status("finished"))
    facts = {key: show for key, show in (FACTS | others).items()
             if any(_number(row, key) is not None for row in sweep.points)}
    head = [*(names.values() or ["point"]), *(f"{row.artifact}: {row.measure}" for row in rows),
            *facts, "status"]
    lines = []
    for point in sweep.points:
        number = place.get(point["point"])
        cells = [_cell(row, number, best[i]) for i, row in enumerate(rows)]
        style = "" if number is None else f"key {sweep.comparison.styles[number]}"
        settings = [point["settings"].get(field, "–") for field in names] or [point["point"]]
        lines.append([tag("span", settings[0], class_=style), *settings[1:], *cells,
                      *(show(value) if (value := _number(point, key)) is not None else "–"
                        for key, show in facts.items()), point["status"]])
    return layout.section(
        "Points", "Last numbers of each point. Bold is the best of its column, whatever its error: "
        "python -m scripts.sweep.run prints which cannot be told from it.",
        layout.table(head, lines, "compared"))


def _cell(row: Row, number: int | None, best: float) -> Markup | str:
    estimate = None if number is None else row.estimates[number]
    if estimate is None:
        return "–"
    text = percent(estimate.value) if row.is_share else decimal(estimate.value, 4)
    ends = (tag("small", f" {100 * estimate.low:.1f} to {100 * estimate.high:.1f}")
            if row.is_share and math.isfinite(estimate.high - estimate.low) else None)
    return join(tag("b", text) if estimate.value == best else text, ends)


def _best(row: Row) -> float:
    values = [one.value for one in row.estimates if one is not None and math.isfinite(one.value)]
    return (max if row.is_share else min)(values, default=math.nan)


def _others(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers that differ between points, where no measure is comparable."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row["metrics"].items():
            if is_number(value) and key not in (*CLOCKS, *FACTS):
                values.setdefault(key, []).append(value)
    kept = [key for key, found in values.items() if len(set(found)) > 1
            and not key.endswith(("_low", "_high", "_stderr"))]
    return dict.fromkeys(kept[:MAX_OTHERS], decimal)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get("metrics", {}).get(key)
    return value if is_number(value) else None


def _fields(points: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    return dict.fromkeys(field for point in points for field in point["settings"])


def _check(row: Any) -> Mapping[str, Any]:
    if (not isinstance(row, dict) or not isinstance(row.get("settings"), dict)
            or row.get("status") not in STATUSES or not isinstance(row.get("point"), str)
            or not isinstance(row.get("metrics", {}), dict)
            or (row["status"] == "finished" and "metrics" not in row)):
        raise UserError("the sweep's results", f"hold {str(row)[:80]}, which is no point",
                        "run the sweep again")
    return row


def _order(row: Mapping[str, Any]) -> tuple[list[tuple[int, float, str]], str]:
    """Settings as numbers where they are, else as texts; then the name."""
    return [_sortable(str(value)) for value in row["settings"].values()], row["point"]


def _sortable(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), ""
    except ValueError:
        return 1, 0.0, text
