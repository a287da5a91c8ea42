"""The page of an arena: a leaderboard with intervals, win rates, and what qualifies them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.page.layout import headline, render_page, section, table
from core.page.markup import count, decimal, percent

Report = Mapping[str, Any]


def render_arena(report: Report) -> str:
    """The page as HTML.

    Args:
        report: see `eval.arena.report.make_report`.
    """
    rows = [[count(row["rank"]), row["model"], decimal(row["rating"], 1),
             f"{decimal(row['low'], 1)} to {decimal(row['high'], 1)}", count(row["games"]),
             percent(row["win_rate"])] for row in report["models"]]
    return render_page("Heartwood: arena", headline(
        "Heartwood · arena", "Leaderboard", "Ratings by votes.",
        [("votes", count(report["votes"]), ""), ("models", count(len(report["models"])), "")]),
        section("Ratings", "", table(["rank", "model", "rating", "95 %", "games", "win rate"],
                                     rows, "numbers")))
