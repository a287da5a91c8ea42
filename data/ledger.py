"""The ledger of a curation: where every document is, and what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

STAGES = ("extract", "exact_dedup", "rules", "lines", "near_dedup", "split")


@dataclasses.dataclass
class Entry:
    """One document: its place in the prepared units, its size, and the verdict on it."""

    unit: int
    row: int
    id: str
    domain: str
    bytes: int                      # of its text as read
    exact_key: str
    signals: dict[str, float]
    clean_bytes: int = 0            # of its text after the line rules
    shingles_at: tuple[int, int] = (0, 0)
    trimmed: dict[str, int] = dataclasses.field(default_factory=dict)
    stage: str = ""                 # where it was removed; empty: kept
    reason: str = ""
    score: float = 0.0
    representative: str = ""        # id of the document that it duplicates
    cluster_size: int = 1
    is_heldout: bool = False

    def remove(self, stage: str, reason: str, score: float, representative: str = "") -> None:
        """Notes that the document goes, where, and why."""
        self.stage, self.reason, self.score = stage, reason, score
        self.representative = representative


class Ledger:
    """All documents in the order in which they were read: unit by unit, row by row.

    Args:
        prepared: the units' Parquet files, as `data.curate_units.prepare` wrote them.
    """

    def __init__(self, prepared: list[Path]):
        columns = ["id", "domain", "bytes", "exact_key", "signals"]
        self.units: list[list[Entry]] = []
        for unit, path in enumerate(prepared):
            rows = pq.read_table(path, columns=columns).to_pylist()
            self.units.append([
                Entry(unit, row, **values | {"signals": json.loads(values["signals"])})
                for row, values in enumerate(rows)])
        self.entries = [entry for entries in self.units for entry in entries]

    def staying(self) -> list[Entry]:
        """Documents that nothing has removed yet."""
        return [entry for entry in self.entries if not entry.stage]

    def funnel(self) -> list[dict[str, Any]]:
        """Per stage: documents and bytes in, out, removed and trimmed, by reason and by domain."""
        stages, staying = [], self.entries
        for stage in STAGES:
            removed = [entry for entry in staying if entry.stage == stage]
            is_cleaned = STAGES.index(stage) > STAGES.index("lines")
            before = [entry.clean_bytes if is_cleaned else entry.bytes for entry in staying]
            sizes = {id(entry): size for entry, size in zip(staying, before)}
            trimmed = Counter()
            if stage == "lines":
                for entry in staying:
                    trimmed.update(entry.trimmed)
            record = {"stage": stage, "documents_in": len(staying), "bytes_in": sum(before),
                      "removed": _tally(removed, sizes, "reason"),
                      "removed_by_domain": _tally(removed, sizes, "domain"),
                      "trimmed_bytes": dict(sorted(trimmed.items()))}
            staying = [entry for entry in staying if entry.stage != stage]
            is_cleaned = is_cleaned or stage == "lines"
            record["documents_out"] = len(staying)
            record["bytes_out"] = sum(entry.clean_bytes if is_cleaned else entry.bytes
                                      for entry in staying)
            stages.append(record)
        return stages

    def removed_by_reason(self) -> dict[str, int]:
        """Removed documents by reason, the most frequent first."""
        return dict(Counter(entry.reason for entry in self.entries if entry.stage).most_common())

    def kept_by_domain(self) -> dict[str, dict[str, int]]:
        """Documents and bytes of the training set by domain."""
        kept = [entry for entry in self.staying() if not entry.is_heldout]
        return _tally(kept, {id(entry): entry.clean_bytes for entry in kept}, "domain")


def _tally(entries: list[Entry], sizes: dict[int, int], field: str) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        count = counts.setdefault(getattr(entry, field), {"documents": 0, "bytes": 0})
        count["documents"] += 1
        count["bytes"] += sizes[id(entry)]
    return dict(sorted(counts.items()))
