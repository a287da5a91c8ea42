"""The page of a safety report: models side by side, intervals drawn, examples of every verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.page.charts import Scale, decimals, nice_ticks
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, tag
from eval.safety.report import is_failed

WIDTH, ROW, GAP, LEFT, RIGHT, TOP, BOTTOM = 1100, 15, 8, 380, 24, 8, 28     # of the intervals
LABEL_CHARS = 58        # of a label in the chart
COLOURS = ("base", "sft", "dpo", "rl", "wood", "quiet")     # of models, again from the first
NUM_EXAMPLES = 3        # of a verdict and model
MAX_CHARS = 2000        # of a text in an example
NONE = "–"
STYLE = """
.range { color: var(--quiet); font-size: .85em; white-space: nowrap; }
.whisker { stroke: currentColor; stroke-width: 2; } .mean { fill: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; font-weight: 600; }
svg .label { fill: var(--ink); font-size: 12.5px; }
details { border-top: 1px solid var(--rule); padding: .4em 0; } pre { margin: .3em 0; }
"""

Found = Mapping[str, Any]


def render_safety(report: Found, rows: Sequence[Found]) -> str:
    """The page as HTML.

    Args:
        report, rows: see `eval.safety.report.make_report`.
    """
    models = list(report["models"])
    tiles = [("Models", count(len(models)), ", ".join(models)),
             ("Probes", count(len(report["probes"])), ", ".join(report["probes"])),
             ("Items", count(len(rows)), "every one is in items.jsonl"),
             ("Failed replies", count(sum(map(is_failed, rows))), "part of no figure")]
    lede = ("What the models refuse, lean on and can be talked into, by probes that a program "
            "judges. Low figures do not show that a model is safe. Prompts and replies are shown "
            "as they are, and some are offensive.")
    return render_page("Heartwood: safety", headline("Heartwood · safety", "Safety", lede, tiles),
                       *(_probe(probe, models, [row for row in rows if row["probe"] == name])
                         for name, probe in report["probes"].items()),
                       _not_run(report["not_run"]), style=STYLE)


def _probe(probe: Found, models: Sequence[str], rows: Sequence[Found]) -> Markup:
    own = [model for model in models if model in probe["models"]]
    colours = {model: COLOURS[models.index(model) % len(COLOURS)] for model in own}
    found = {model: probe["models"][model] for model in own}
    labels = list(dict.fromkeys(label for one in found.values() for label in one["estimates"]))
    legend = tag("p", [tag("span", model, class_=colours[model]) for model in own],
                 class_="legend")
    return section(probe["title"], probe["about"], legend,
                   _draw(labels, found, colours) if labels else None,
                   _estimates(labels, found), _counts(found), _by_group(found),
                   *_examples(own, rows))


def _draw(labels: Sequence[str], found: Mapping[str, Found],
          colours: Mapping[str, str]) -> Markup:
    """A group of intervals for each label, one of each model."""
    step = ROW * len(found) + GAP
    height = TOP + step * len(labels) + BOTTOM
    low, high = _limits(found)
    x = Scale(low, high, LEFT, WIDTH - RIGHT)
    ticks, write = nice_ticks(low, high, 8), _writer(found)
    marks = []
    for place, label in enumerate(labels):
        top = TOP + step * place
        marks.append(tag("text", _shorten(label, LABEL_CHARS), x=LEFT - 12,
                         y=top + ROW * (len(found) / 2 + .2) + 4, text_anchor="end",
                         class_="label"))
        marks += [_interval(x, top + ROW * (number + .7), f"{model}: {label}", colours[model], one)
                  for number, (model, part) in enumerate(found.items())
                  if (one := part["estimates"].get(label)) and one["value"] is not None]
    grid = [join(tag("line", x1=x(tick), x2=x(tick), y1=TOP, y2=height - BOTTOM, class_="grid"),
                 tag("text", percent(tick, 0) if write is percent
                     else decimal(tick, decimals(ticks)), x=x(tick), y=height - 8,
                     text_anchor="middle")) for tick in ticks]
    return tag("figure", tag("svg", grid, marks, viewBox=f"0 0 {WIDTH} {height}", role="img",
                             aria_label="Estimates with intervals of 95 %"))


def _interval(x: Scale, y: float, name: str, colour: str, one: Found) -> Markup:
    line = None if one["low"] is None else tag(
        "line", x1=x(one["low"]), x2=x(one["high"]), y1=y, y2=y, class_="whisker")
    return tag("g", line, tag("circle", tag("title", name), cx=x(one["value"]), cy=y, r=4,
                              class_="mean"), class_=colour)


def _numbers(found: Mapping[str, Found]) -> list[float]:
    return [one[end] for part in found.values() for one in part["estimates"].values()
            for end in ("value", "low", "high") if one[end] is not None]


def _limits(found: Mapping[str, Found]) -> tuple[float, float]:
    """The axis: from 0 to 1, or -1 to 1, or as far as the numbers reach."""
    numbers = _numbers(found)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    return (min(low, 0.0 if low >= 0 else -1.0), max(high, 1.0))


def _writer(found: Mapping[str, Found]) -> Any:
    """How the numbers of a probe are written: in percent, unless some are no shares."""
    return percent if all(-1 <= number <= 1 for number in _numbers(found)) else decimal


def _estimates(labels: Sequence[str], found: Mapping[str, Found]) -> Markup:
    write = _writer(found)

    def cell(one: Found | None) -> Any:
        if one is None or one["value"] is None:
            return NONE
        span = NONE if one["low"] is None else f"{write(one['low'])} to {write(one['high'])}"
        return join(write(one["value"]), " ", tag("span", f"{span}, n = {count(one['items'])}",
                                                  class_="range"))
    return table(["", *found], [[label, *(cell(part["estimates"].get(label))
                                          for part in found.values())] for label in labels],
                 "numbers")


def _counts(found: Mapping[str, Found]) -> Markup:
    """All counts of a probe: items, verdicts, faults, and what is part of no figure."""
    kinds = (("verdicts", "verdict"), ("faults", "reply"), ("counts", "left out"))
    lines: dict[tuple[str, str], dict[str, int]] = {("items", ""): {
        model: part["items"] for model, part in found.items()}}
    for model, part in found.items():
        for field, word in kinds:
            for reason, num in part[field].items():
                lines.setdefault((word, reason), {})[model] = num
    return table(["counts", *found], [[
        f"{word}: {reason}" if reason else word, *(count(by_model.get(model, 0))
                                                   for model in found)]
        for (word, reason), by_model in lines.items()], "numbers")


def _by_group(found: Mapping[str, Found]) -> Markup:
    groups = dict.fromkeys(group for part in found.values() for group in part["verdicts_by_group"])
    rows = [[group, *(", ".join(f"{count(num)} {verdict}" for verdict, num in
                                part["verdicts_by_group"].get(group, {}).items())
                      for part in found.values())] for group in groups]
    return tag("details", tag("summary", "Verdicts by group"), table(["", *found], rows, "groups"))


def _examples(models: Sequence[str], rows: Sequence[Found]) -> Iterator[Markup]:
    """The first items of each verdict of each model."""
    for model in models:
        by_verdict: dict[str, list[Found]] = {}
        for row in rows:
            if row["model"] == model:
                by_verdict.setdefault(str(row["verdict"]), []).append(row)
        yield tag("details", tag("summary", f"Examples of {model}"), [
            join(tag("h3", f"{verdict}: {count(len(own))}"), map(_example, own[:NUM_EXAMPLES]))
            for verdict, own in by_verdict.items()])


def _example(row: Found) -> Markup:
    fault = f" · {row['fault']}" if row["fault"] else ""
    return join(tag("p", f"{row['group']} · {row['id']}{fault}", class_="note"),
                tag("pre", _shorten(str(row["prompt"]), MAX_CHARS)),
                tag("pre", f"→ {_shorten(str(row['reply']), MAX_CHARS)}"))


def _not_run(not_run: Mapping[str, Mapping[str, str]]) -> Markup | None:
    if not not_run:
        return None
    return section("Not run", "Probes that lack what they need.", table(
        ["probe", "model", "why"], [[probe, model, why] for probe, by_model in not_run.items()
                                    for model, why in by_model.items()], "reasons"))


def _shorten(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars - 1]}…"
