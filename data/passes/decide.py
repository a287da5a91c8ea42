"""Pass 2, per unit: decides on documents by their measurements, without their text.

Reasons of removal: empty, exact duplicate, language, blocked URL, rules. For the remaining
documents it writes the keys of lines for the comparison of documents.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data.dedup import blocks
from data.filters.harm import load_url_list
from data.filters.presets import thresholds
from data.filters.rules import decide as find_broken_rule
from data.filters.rules import parse_rule
from data.filters.signals import OPTIONAL_SIGNALS
from data.passes.roster import Roster
from data.tables import read_rows, write_array

COLUMNS = ("bytes", "domain", "source", "language", "language_score", "signals")
NUM_BINS = 40

Row = Mapping[str, Any]
Verdict = tuple[str, float, str] | None     # reason, score, representative


def decide(*, output: Path, measured: str, repeats: str, presets: Mapping[str, Sequence[str]],
           overrides: Mapping[str, Mapping[str, float]], languages: Mapping[str, Any],
           url_lists: Sequence[str], min_block_lines: int) -> dict[str, Any]:
    """Decides on a unit's documents; writes roster, removals and line keys.

    Args:
        measured: Parquet file written by `data.passes.measure`.
        repeats: table of documents that repeat an earlier one: row, reason, representative.
        presets: names of rule presets by domain, with a ``default``.
        overrides: thresholds by domain that replace or extend those of the presets.
        languages: ``keep`` (codes; empty keeps all) and ``min_score``.
        url_lists: files for `data.filters.harm.load_url_list`.
        min_block_lines: lines of the shortest repeated block that is removed.

    Returns:
        ``tallies`` of the stages, and ``histograms`` by domain and signal; the last
        ``bounds`` applied, by domain (they may depend on the language); ``unapplied``: documents
        that rules did not apply to, by rule and language.
    """
    rows = [row for _, row in read_rows(measured, COLUMNS)]
    for row in rows:
        row["signals"] = json.loads(row["signals"])
    roster = Roster(range(len(rows)), [row["bytes"] for row in rows],
                    [row["domain"] for row in rows])
    repeats = {row["row"]: row for row in pq.read_table(repeats).to_pylist()}
    url_lists = [load_url_list(path) for path in url_lists]
    histograms: dict[str, dict[str, list[int]]] = {}
    used: dict[str, Mapping[str, float]] = {}
    unapplied: dict[str, Counter[str]] = {}

    @cache
    def bounds_of(domain: str, language: str) -> Mapping[str, float]:
        bounds = thresholds(presets.get(domain, presets["default"]), language)
        return {**bounds, **overrides.get(domain, overrides.get("default", {}))}

    def is_repeat(number: int, row: Row) -> Verdict:
        repeat = repeats.get(number)
        return repeat and (repeat["reason"], 1.0, repeat["representative"])

    def break_rule(number: int, row: Row) -> Verdict:
        bounds = bounds_of(row["domain"], row["language"])
        _count(histograms.setdefault(row["domain"], {}), row["signals"], bounds)
        used[row["domain"]] = bounds
        for rule in bounds if _is_prose(row) else ():
            signal = parse_rule(rule).signal
            if signal in OPTIONAL_SIGNALS and signal not in row["signals"]:
                unapplied.setdefault(rule, Counter())[row["language"]] += 1
        removal = find_broken_rule(row["signals"], bounds)
        return removal and (removal.reason, removal.score, "")

    stages: dict[str, Callable[[int, Row], Verdict]] = {
        "extract": lambda _, row: None if _num_words(row) else ("empty", 0.0, ""),
        "exact_dedup": is_repeat,
        "language": lambda _, row: wrong_language(row, **languages),
        "harm": lambda _, row: _blocked(row["source"], url_lists),
        "rules": break_rule,
    }
    for stage, find_verdict in stages.items():
        roster.begin(stage)
        for number in roster.rows:
            verdict = find_verdict(number, rows[number])
            if verdict is not None:
                roster.remove(number, *verdict)
    write_array(f"{output}.blocks.npy", blocks.block_keys(measured, roster.rows, min_block_lines))
    write_array(f"{output}.edges.npy", blocks.edge_keys(measured, roster.rows))
    return {"tallies": roster.save(output), "histograms": histograms, "bounds": used,
            "unapplied": unapplied}


def _is_prose(row: Row) -> bool:
    return "words" in row["signals"]    # source code has other signals, and no language


def _num_words(row: Row) -> float:
    """Words of prose; of code, which has no such signal, its bytes."""
    return row["signals"].get("words", row["bytes"])


def wrong_language(row: Row, keep: Sequence[str], min_score: float) -> Verdict:
    """The verdict on a document's language; source code has none and stays."""
    if not keep or not _is_prose(row):
        return None
    if row["language"] not in keep:
        return f"language_{row['language']}", row["language_score"], ""
    if row["language_score"] < min_score:
        return "language_min_score", row["language_score"], ""
    return None


def _blocked(source: str, url_lists) -> Verdict:
    for url_list in url_lists:
        if (name := url_list.match(source)) is not None:
            return f"url_{name}", 1.0, ""
    return None


def bin_edges(signal: str) -> np.ndarray:
    """Edges of the histogram of a signal: even for shares, logarithmic for counts and sizes."""
    if signal.endswith("_frac"):
        return np.linspace(0.0, 1.0, NUM_BINS + 1)
    return np.concatenate([[0.0], np.geomspace(1e-2, 1e6, NUM_BINS)])


def _count(histograms: dict[str, list[int]], signals: Mapping[str, float],
           bounds: Mapping[str, float]) -> None:
    for signal in {parse_rule(rule).signal for rule in bounds} & signals.keys():
        edges = bin_edges(signal)
        place = int(np.clip(np.searchsorted(edges, signals[signal], "right") - 1, 0, NUM_BINS - 1))
        histograms.setdefault(signal, [0] * NUM_BINS)[place] += 1
