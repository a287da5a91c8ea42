"""The page of counts, speed and agreement of the annotators."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from core.page.layout import headline, section, table
from core.page.markup import Markup, count, decimal, join, percent, tag
from data.layouts.faults import Faults
from serve.labelling.store import LABEL, PREFERENCES, Event
from serve.labelling.work import Work

NUM_SAMPLES = 200       # of the bootstrap: the page is for a glance, `eval.agreement` for a paper
NOTHING = "n/a"


class Agreement:
    """Measures how far annotators agree, anew only after another label."""

    def __init__(self) -> None:
        self._version, self._measured = -1, None
        self._lock = asyncio.Lock()

    async def measure(self, work: Work) -> Mapping[str, Any] | None:
        """See `measure`; it runs beside the requests."""
        async with self._lock:
            version = work.version
            if self._version != version:
                self._measured = await asyncio.to_thread(
                    measure, work.store.folder / PREFERENCES) if work.store.rows(
                        PREFERENCES) else None
                self._version = version
        return self._measured


def measure(path: Path) -> Mapping[str, Any] | None:
    """The coefficients of `eval.agreement` of the choices in a file; None where no two annotators
    share an item."""
    # They take longer to import than the server to start.
    from eval.agreement import Bootstrap, measure_agreement
    from eval.measures.annotations import (
        FIRST,
        SECOND,
        TIE,
        make_ratings,
        merge_repeats,
        read_ratings,
    )
    kept, _ = merge_repeats(read_ratings(path, "choices", faults=Faults("progress")))
    if not kept:
        return None
    ratings = make_ratings(kept, (FIRST, TIE, SECOND))
    if len(set(ratings.items.tolist())) == len(ratings.items):
        return None
    return measure_agreement(ratings, "choices", Bootstrap(0, NUM_SAMPLES))


def render_progress(work: Work, measured: Mapping[str, Any] | None, annotator: str) -> str:
    """The page as HTML; its style is that of `/page.css`.

    Args:
        measured: see `measure`.
        annotator: who comes from labelling, and goes back there; "" if unknown.
    """
    by_name: dict[str, list[Event]] = {}
    for event in work.store.live.values():
        by_name.setdefault(event["annotator"], []).append(event)
    num_labels = sum(event["event"] == LABEL for event in work.store.live.values())
    num_items, num_done = len(work.items), work.num_done_items()
    raw = measured and measured["raw"]
    tiles = [("Labels", count(num_labels), f"annotators: {count(len(by_name))}"),
             ("Items done", percent(num_done / num_items),
              f"{count(num_done)} of {count(num_items)}, with "
              f"{count(work.settings.labels_per_item)} labels each"),
             ("Skipped", count(len(work.store.live) - num_labels), _skipped(work)),
             ("Annotators agree", NOTHING if raw is None else _share(raw["value"]),
              "no two have labelled the same answers" if raw is None else
              f"{_range(raw, percent)} on {count(raw['items'])} comparisons")]
    head = join(tag("meta", charset="utf-8"),
                tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
                tag("meta", name="color-scheme", content="light dark"),
                tag("title", "Heartwood: progress of labelling"),
                tag("link", rel="stylesheet", href="/page.css"))
    body = (headline("Heartwood · labelling", "Progress", "Labels that nobody has undone, and how "
                     "far those who labelled the same answers agree.", tiles),
            _annotators(by_name, measured), _coefficients(measured),
            tag("p", tag("a", "Back to labelling", href="/?" + urlencode(
                {"annotator": annotator} if annotator else {}))))
    page = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _skipped(work: Work) -> str:
    reasons = Counter(event["reason"] for event in work.store.live.values() if "reason" in event)
    return "; ".join(f"{reason} {num}" for reason, num in reasons.most_common()) or "none"


def _annotators(by_name: Mapping[str, list[Event]],
                measured: Mapping[str, Any] | None) -> Markup:
    rows = []
    for name, events in sorted(by_name.items()):
        labels = [event for event in events if event["event"] == LABEL]
        secs = [event["row"]["meta"]["secs"] for event in labels if "secs" in event["row"]["meta"]]
        middle = statistics.median(secs) if secs else None
        own = measured and measured["annotators"].get(name)
        rows.append((name, count(len(labels)), count(len(events) - len(labels)),
                     NOTHING if middle is None else decimal(middle, 1),
                     NOTHING if not middle else count(3600 / middle),
                     join(_share(own["value"]), " ", tag("small", _range(own, percent)))
                     if own else NOTHING))
    return section(
        "Annotators", "Seconds are the median from an item's appearance to its label. Agreement is "
        "the share of the others who chose the same, with its 95 % interval over prompts.",
        table(("annotator", "labels", "skipped", "seconds", "per hour", "agree with others"), rows,
              "numbers"))


def _coefficients(measured: Mapping[str, Any] | None) -> Markup | None:
    if measured is None:
        return None
    alpha = measured["krippendorff_alpha"]
    named = {"same choice": measured["raw"], "same choice, ties aside":
             measured["decided_agreement"], "Fleiss' kappa": measured["fleiss_kappa"],
             "Krippendorff's alpha, nominal": alpha["nominal"],
             "Krippendorff's alpha, ordinal": alpha["ordinal"]}
    return section(
        "Agreement", "Between every two answers that several compared; 95 % intervals of the "
        "bootstrap over prompts.",
        table(("coefficient", "value", "interval", "comparisons"), [
            (name, _number(found["value"]), _range(found, decimal), count(found["items"]))
            for name, found in named.items()], "numbers"))


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def _number(value: float | None) -> str:
    return NOTHING if value is None else decimal(value)


def _range(found: Mapping[str, Any], form: Any) -> str:
    return "" if found["low"] is None else f"{form(found['low'])} to {form(found['high'])}"
