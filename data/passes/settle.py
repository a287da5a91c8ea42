"""Pass 5, per unit: removals that depend on the whole corpus, and held-out candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash

from data.passes.roster import Roster


def settle(*, output: Path, before: str, cleaned: str, duplicates: str, min_quality: float | None,
           heldout: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Removes near duplicates and documents of low quality; proposes pages to hold out.

    Args:
        before: path of the unit's roster, written by `data.passes.clean`.
        duplicates: near duplicates of the unit, see `data.passes.near`.
        min_quality: minimum quality, a percentile of the corpus; None keeps all.
        heldout: the section heldout of the config, of which domain and frac are used.

    Returns:
        ``tallies`` of the stages; ``candidates``: rank in the order of choice (0 to 1), row,
        position among the cleaned documents, and bytes.
    """
    roster = Roster.load(before)
    removed = pq.read_table(duplicates, columns=["row", "similarity", "representative"])
    roster.begin("near_dedup")
    for verdict in removed.to_pylist():
        if verdict["representative"]:
            roster.remove(verdict["row"], "near_duplicate", verdict["similarity"],
                          verdict["representative"])
    roster.begin("quality")
    candidates = []
    columns = pq.read_table(cleaned, columns=["row", "id", "quality", "bytes"]).to_pylist()
    for position, row in enumerate(columns):
        if row["row"] not in roster:
            continue
        if min_quality is not None and row["quality"] < min_quality:
            roster.remove(row["row"], "quality_percentile", row["quality"])
        elif roster.domain(row["row"]) == heldout["domain"]:
            place = xxhash.xxh3_64_intdigest(row["id"].encode(), seed) / 2**64
            if place < heldout["frac"]:
                candidates.append([place, row["row"], position, row["bytes"]])
    return {"tallies": roster.save(output), "candidates": candidates}
