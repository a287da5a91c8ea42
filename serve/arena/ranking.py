"""The ranking page: what `eval.arena` makes of the votes so far."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from core.page.layout import headline, render_page
from core.page.markup import Markup, join, tag
from data.layouts.faults import Faults
from serve.arena.store import VoteStore

NUM_SAMPLES = 200       # of the bootstrap: the page is for a glance, `eval.arena` for a paper


class Ranking:
    """Renders the page, anew only after another vote."""

    def __init__(self) -> None:
        self._num_votes, self._page = -1, ""
        self._lock = asyncio.Lock()

    async def render(self, store: VoteStore, names: Sequence[str]) -> str:
        """The page as HTML; it is made beside the requests.

        Args:
            names: of the models that are served.
        """
        async with self._lock:
            num_votes = store.num_votes
            if self._num_votes != num_votes:
                voted = {name for outcome in store.outcomes[:num_votes] for name in outcome[:2]}
                top = _top([name for name in names if name not in voted] if voted else [])
                self._page = await asyncio.to_thread(render_votes, store.path, top) if num_votes \
                    else _render_empty(top, names)
                self._num_votes = num_votes
        return self._page


def render_votes(path: Path, top: Markup) -> str:
    """The page of a file that holds a vote."""
    # They take longer to import than the server to start.
    from eval.arena.page import render_arena
    from eval.arena.report import Settings, make_report
    from eval.arena.votes import read_votes
    faults = Faults("leaderboard")
    votes = read_votes(path, faults)
    report = {"inputs": str(path), "left_out": dict(faults.counts)} | make_report(
        votes, Settings(num_samples=NUM_SAMPLES))
    report["quality"]["voters"] = []    # the page is for everyone, their names are not
    return render_arena(report, top=top)


def _render_empty(top: Markup, names: Sequence[str]) -> str:
    return render_page("Heartwood: arena", top, headline(
        "Heartwood · arena", "Leaderboard", "No votes yet.", [
            ("Votes", "0", ""), ("Models", str(len(names)), ", ".join(names))]))


def _top(unvoted: Sequence[str]) -> Markup:
    """What stands above the headline: the way to the arena, and models that no vote names."""
    note = tag("p", f"No vote yet on {', '.join(unvoted)}.", class_="note") if unvoted else None
    return join(tag("p", tag("a", "Vote in the arena", href="/arena", class_="wood")), note)
