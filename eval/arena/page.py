"""The page of an arena: a leaderboard with intervals, win rates, and what qualifies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.page.charts import Line, Panel, Scale, draw_panel, nice_ticks
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, tag
from eval.arena.elo import K

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 1100, 24, 230, 24, 8, 28    # of the chart of intervals
NAME_CHARS, LINE_CHARS = 32, 11     # of a name in a chart, and beside a curve
COLOURS = ("base", "sft", "dpo", "rl", "wood", "quiet")     # of the curves, best model first
MAX_DRAWN, MAX_MATRIX, MAX_CATEGORIES, MAX_VOTERS = 60, 24, 10, 40
STYLE = """
.matrix td, .matrix th { padding: 4px 7px; text-align: right; white-space: nowrap; }
.matrix td:first-child, .matrix th:first-child { text-align: left; }
.rate { display: block; margin: -4px -7px; padding: 4px 7px; }
.range { color: var(--quiet); font-size: .85em; white-space: nowrap; }
.whisker { stroke: var(--base); stroke-width: 2; } .rating { fill: var(--base); }
svg .who { fill: var(--ink); font-size: 12.5px; }
"""

Report = Mapping[str, Any]


def render_arena(report: Report, *, top: Markup | None = None) -> str:
    """The page as HTML.

    Args:
        report: see `eval.arena.report.make_report`, with `inputs` and `left_out`.
        top: stands above the headline.
    """
    first, agreement = report["order"]["first_shown"], report["quality"]["agreement"]
    left_out = sum(report["left_out"].values())
    tiles = [
        ("Votes", count(report["votes"]), f"{count(report['comparisons'])} comparisons, "
         f"{percent(report['ties_frac'])} ties; {count(left_out)} lines left out"),
        ("Models", count(len(report["models"])), _groups(report)),
        ("Shown first wins", "n/a" if first is None else percent(first["value"]),
         "of the decided comparisons" + _range(first, percent)),
        ("Voters agree", "n/a" if agreement is None else percent(_value(agreement["raw"])),
         "no item has two named voters" if agreement is None
         else f"on {count(agreement['items'])} items that several judged")]
    return render_page(
        "Heartwood: arena", top, headline(
            "Heartwood · arena", "Leaderboard", "Ratings of models by votes between their answers: "
            "Bradley-Terry, by maximum likelihood. 400 points are odds of ten to one.", tiles),
        *_leaderboards(report), _win_rates(report), _over_time(report), _style(report),
        _order(report), _categories(report), _quality(report), _next_pairs(report), style=STYLE)


def _groups(report: Report) -> str:
    num = len(report["components"])
    unrated = len(report["unrated"])
    return (f"{num} groups that no vote connects" if num > 1 else "all connected by votes") + (
        f"; {unrated} without a vote" if unrated else "")


def _value(found: Mapping[str, Any]) -> float:
    return float("nan") if found["value"] is None else found["value"]


def _range(found: Mapping[str, Any] | None, form: Any) -> str:
    if found is None or found["low"] is None:
        return ""
    return f", {form(found['low'])} to {form(found['high'])}"


def _points(found: Mapping[str, float], digits: int = 0) -> Markup:
    """A rating with its interval."""
    return join(decimal(found["rating"], digits), " ", tag(
        "span", f"{decimal(found['low'], digits)} to {decimal(found['high'], digits)}",
        class_="range"))


def _shorten(name: str, chars: int) -> str:
    return name if len(name) <= chars else f"{name[:chars - 1]}…"


def _leaderboards(report: Report) -> list[Markup]:
    """A section for each group of connected models."""
    found = []
    for number, part in enumerate(report["components"]):
        rows = [row for row in report["models"] if row["component"] == number]
        several = len(report["components"]) > 1
        found.append(section(
            f"Ratings, group {number + 1}" if several else "Ratings",
            f"{count(part['votes'])} votes. Intervals are of 95 %; models share a rank where "
            "intervals do not tell them apart." + (
                " No vote connects this group with the others: ratings compare only within it."
                if several else "")
            + f" The chart shows the first {MAX_DRAWN}." * (len(rows) > MAX_DRAWN),
            _prior(part), _draw_intervals(rows[:MAX_DRAWN]), _rating_table(rows)))
    if report["unrated"]:
        found.append(tag("p", f"Without a vote that counts: {', '.join(report['unrated'])}.",
                         class_="note"))
    return found


def _prior(part: Mapping[str, Any]) -> Markup | None:
    if part["prior_ties"]:
        extremes = "; ".join(f"{title}: {', '.join(part[name])}" for name, title in (
            ("undefeated", "never lost or tied against the others"),
            ("winless", "never won or tied against the others")))
        return tag("p", "The likelihood has no maximum, so each model is given "
                   f"{part['prior_ties']:g} tie with an opponent of average strength, and "
                   f"intervals are those of the curvature. {extremes}.", class_="warning")
    if part["samples_with_prior"]:
        return tag("p", f"In {count(part['samples_with_prior'])} samples of the bootstrap the "
                   "likelihood has no maximum; there each model is given a tie with an opponent of "
                   "average strength.", class_="note")
    return None


def _draw_intervals(rows: Sequence[Mapping[str, Any]]) -> Markup:
    low, high = min(row["low"] for row in rows), max(row["high"] for row in rows)
    pad = 0.03 * (high - low) + 1
    height = TOP + ROW * len(rows) + BOTTOM
    x = Scale(low - pad, high + pad, LEFT, WIDTH - RIGHT)
    ticks = nice_ticks(x.low, x.high, 7)
    marks = []
    for place, row in enumerate(rows):
        y = TOP + ROW * place + ROW / 2
        marks.append(join(
            tag("text", _shorten(row["model"], NAME_CHARS), x=LEFT - 12, y=y + 4,
                text_anchor="end", class_="who"),
            tag("line", x1=x(row["low"]), x2=x(row["high"]), y1=y, y2=y, class_="whisker"),
            tag("circle", tag("title", f"{row['model']}: {decimal(row['rating'], 1)}"),
                cx=x(row["rating"]), cy=y, r=4, class_="rating")))
    grid = [join(tag("line", x1=x(tick), x2=x(tick), y1=TOP, y2=height - BOTTOM, class_="grid"),
                 tag("text", count(tick), x=x(tick), y=height - 8, text_anchor="middle"))
            for tick in ticks]
    return tag("figure", tag("svg", grid, marks, viewBox=f"0 0 {WIDTH} {height}", role="img",
                             aria_label="Ratings with intervals"))


def _rating_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    styled = any("style_rating" in row for row in rows)
    head = ["model", "rank", "rating", "sandwich", "bootstrap", "comparisons", "wins",
            *["at equal style"] * styled, "online Elo"]

    def span(row: Mapping[str, Any], prefix: str) -> str:
        return f"{decimal(row[f'{prefix}low'], 1)} to {decimal(row[f'{prefix}high'], 1)}"

    return table(head, [[
        row["model"], count(row["rank"]), decimal(row["rating"], 1), span(row, ""),
        span(row, "bootstrap_"), count(row["games"]), percent(row["win_rate"]),
        *([decimal(row["style_rating"], 1) if "style_rating" in row else "–"] * styled),
        decimal(row["elo"], 1)] for row in rows], "numbers")


def _win_rates(report: Report) -> Markup:
    found = report["win_rates"]
    names, wins, games = found["models"][:MAX_MATRIX], found["wins"], found["games"]
    left = len(found["models"]) - len(names)

    def cell(i: int, j: int) -> Any:
        if i == j or not games[i][j]:
            return "" if i == j else "–"
        share = wins[i][j] / games[i][j]
        tint, colour = round(70 * abs(2 * share - 1)), "right" if share > 0.5 else "wrong"
        predicted = found["predicted"][i][j]
        return tag("span", percent(share, 0), class_="rate",
                   title=f"{count(games[i][j])} comparisons, {percent(predicted)} by the ratings",
                   style=f"background:color-mix(in srgb,var(--{colour}) {tint}%,transparent)")

    rows = [[name, *(cell(i, j) for j in range(len(names)))] for i, name in enumerate(names)]
    return section("Win rates", "How often the model of the row wins against that of the column, a "
                   "tie counting half; – where no vote compares them."
                   + f" The first {len(names)}; {left} more are in arena.json." * bool(left),
                   table(["", *(_shorten(name, LINE_CHARS) for name in names)], rows, "matrix"))


def _over_time(report: Report) -> Markup:
    found = report["over_time"]
    best = [row["model"] for row in report["models"] if row["component"] == 0][:len(COLOURS)]

    def panel(title: str, unit: str, kind: str) -> Markup:
        lines = [Line(_shorten(name, LINE_CHARS), [
            (num, value) for num, value in zip(found["votes"], found[kind][name])
            if np.isfinite(value)], colour) for name, colour in zip(best, COLOURS)]
        return draw_panel(Panel(title, unit, lines, digits=0, x_name="votes"))

    order = {"time": "time", "file": "the file, as not every vote has a time"}[found["by"]]
    return section("Over time", f"After so many votes, in the order of {order}; the first "
                   f"{len(best)} models.",
                   tag("div", panel("Bradley-Terry", "all votes so far", "ratings"),
                       panel("Online Elo", f"K = {K:g}: depends on the order of the votes",
                             "elo"), class_="panels"))


def _style(report: Report) -> Markup | None:
    style = report["style"]
    if style is None:
        return None
    penalty = style["penalty"]
    rows = [[name, decimal(found["value"]), f"{decimal(found['low'])} to {decimal(found['high'])}"]
            for name, found in style["coefficients"].items()]
    plain = {row["model"]: row["rating"] for row in report["models"]}
    moved = [[name, decimal(plain[name], 1), _points(found, 1),
              decimal(found["rating"] - plain[name], 1)]
             for name, found in sorted(style["ratings"].items(),
                                       key=lambda item: -item[1]["rating"])]
    return section(
        "Style", f"Of {count(style['comparisons'])} comparisons with counts of style. Coefficients "
        "are log odds for a typical difference of the two answers. The loss is the "
        f"{penalty['reduction']} over comparisons plus {penalty['coefficients'] / 2:g} times the "
        "squared coefficients" + f" and {penalty['strengths'] / 2:g} times the squared strengths"
        * bool(penalty["strengths"]) + ".",
        table(["measure", "log odds", "95 %"], rows, "numbers"),
        table(["model", "rating", "at equal style", "difference"], moved, "numbers"))


def _order(report: Report) -> Markup:
    rows = []
    for name, title, part in (("first_shown", "answer shown first wins", "wins"),
                              ("consistency", "same verdict in both orders", "same")):
        found = report["order"][name]
        rows.append([title, "–", "–", "–"] if found is None else [
            title, percent(found["value"], 2), f"{percent(found['low'])} to "
            f"{percent(found['high'])}", f"{count(found[part])} of {count(found['num'])}"])
    return section("Order", "50 % of the decided comparisons are expected without a bias; verdicts "
                   "in both orders are of one voter, or of nameless ones, on the same answers.",
                   table(["measure", "share", "95 %", "counts"], rows, "numbers"))


def _categories(report: Report) -> Markup | None:
    by_votes = sorted(report["categories"].items(), key=lambda item: -item[1]["votes"])
    shown = by_votes[:MAX_CATEGORIES]
    if not shown:
        return None
    rows = [[row["model"], decimal(row["rating"], 0), *(
        _points(found["ratings"][row["model"]]) if row["model"] in found["ratings"] else "–"
        for _, found in shown)] for row in report["models"]]
    head = ["model", "all", *(f"{name} ({count(found['votes'])})" for name, found in shown)]
    left = len(by_votes) - len(shown)
    return section("Categories", "Ratings by the votes of a category, shifted so that their mean "
                   "is that of the same models' ratings; – where a category's votes do not connect "
                   "a model." + f" {left} more are in arena.json." * bool(left),
                   table(head, rows, "numbers"))


def _quality(report: Report) -> Markup:
    found = report["quality"]
    counts = [[title, "not known" if found[name] is None else count(found[name])]
              for name, title in (
                  ("repeated", "votes of a voter on answers that they had judged in this order"),
                  ("instant", f"votes in less than {found['instant_secs']:g} seconds"),
                  ("without_voter", "votes that name no voter"))]
    counts += [[f"lines left out: {reason}", count(num)]
               for reason, num in report["left_out"].items()]
    if report["same_model"]:
        counts.append(["comparisons left out: two answers of one model",
                       count(report["same_model"])])
    if "largest_shift" in found:
        counts.append(["largest shift of a rating without repeated and instant votes",
                       f"{decimal(found['largest_shift'], 1)} points"])
    return section("Votes", "What the votes are worth. None of the repeated and instant ones is "
                   "left out of the ratings.", table(["", "number"], counts, "numbers"),
                   _agreement(found["agreement"]), _voters(found["voters"]))


def _agreement(found: Mapping[str, Any] | None) -> Markup | None:
    if found is None:
        return None
    names = {"raw": "raw", "fleiss_kappa": "Fleiss' kappa",
             "krippendorff_alpha": "Krippendorff's alpha"}
    rows = [[title, decimal(_value(found[name])), _range(found[name], decimal).removeprefix(", ")]
            for name, title in names.items()]
    return join(tag("h3", f"Agreement on {count(found['items'])} items with several voters"),
                table(["coefficient", "value", "95 %"], rows, "numbers"))


def _voters(voters: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not voters:
        return None
    shown = sorted(voters, key=lambda row: -row["votes"])[:MAX_VOTERS]
    rows = [[row["voter"], count(row["votes"]), percent(row["first_frac"]),
             percent(row["ties_frac"]), count(row["repeated"]), count(row["instant"]),
             "–" if row["agreement"] is None else percent(row["agreement"])] for row in shown]
    left = len(voters) - len(shown)
    return join(tag("h3", f"{count(len(voters))} voters" + (
        f", those of most votes; {count(left)} more are in arena.json" if left else "")),
        table(["voter", "votes", "first shown wins", "ties", "repeated", "instant",
               "others agree"], rows, "numbers"))


def _next_pairs(report: Report) -> Markup:
    rows = [[" and ".join(found["models"]), count(found["games"]),
             f"{found['gain_nats']:.2e}", percent(found["probability"], 2)]
            for found in report["next_pairs"]]
    return section("Next votes", "The pairs whose next vote is expected to narrow the ratings "
                   "most, and the probability of each where pairs are drawn in proportion.",
                   table(["pair", "comparisons", "gain, nats", "probability"], rows, "numbers"))
