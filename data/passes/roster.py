"""Rosters: the documents of a unit that have not been removed, and records of those removed.

A pass loads the roster of the previous pass, removes documents from it, each with a stage, a reason
and a score, and saves the rest. Between passes nothing about single documents is kept in memory:
rosters and removals are files, one pair per unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.tables import TableWriter

REMOVED_SCHEMA = pa.schema([
    ("row", pa.int32()), ("stage", pa.string()), ("reason", pa.string()), ("score", pa.float64()),
    ("representative", pa.string())])
ROSTER_SCHEMA = pa.schema([("row", pa.int32()), ("bytes", pa.int64()), ("domain", pa.string())])


@dataclasses.dataclass(frozen=True)
class Removal:
    """Record of one removed document."""

    row: int
    stage: str
    reason: str
    score: float
    representative: str = ""    # id of the document that it duplicates


class Roster:
    """Remaining documents of a unit: their rows, UTF-8 sizes and domains.

    Args:
        rows: rows of the unit's measured file, ascending.
        sizes: bytes of each document's text.
        domains: domain of each document.

    Attributes:
        removed: removals since the roster was made or loaded.
    """

    def __init__(self, rows: Sequence[int], sizes: Sequence[int], domains: Sequence[str]):
        self._size = dict(zip(rows, sizes, strict=True))
        self._domain = dict(zip(rows, domains, strict=True))
        self.removed: list[Removal] = []
        self._tallies: dict[str, dict[str, Any]] = {}

    @classmethod
    def load(cls, path: str | Path) -> Roster:
        """Reads `<path>.roster.parquet`, written by `save`."""
        columns = pq.read_table(f"{path}.roster.parquet").to_pydict()
        return cls(columns["row"], columns["bytes"], columns["domain"])

    @property
    def rows(self) -> list[int]:
        """Rows of the remaining documents, ascending."""
        return list(self._size)

    def __contains__(self, row: int) -> bool:
        return row in self._size

    def __len__(self) -> int:
        return len(self._size)

    def domain(self, row: int) -> str:
        """Domain of a remaining document."""
        return self._domain[row]

    def begin(self, stage: str) -> None:
        """Starts the tally of a stage; a pass starts every one of its stages, idle ones too."""
        self._stage = stage
        self._tallies[stage] = {"documents_in": len(self._size),
                                "bytes_in": sum(self._size.values()),
                                "removed": {}, "removed_by_domain": {}, "trimmed_bytes": {}}

    def remove(self, row: int, reason: str, score: float, representative: str = "") -> None:
        """Removes a document in the current stage."""
        tally = self._tallies[self._stage]
        num_bytes, domain = self._size.pop(row), self._domain.pop(row)
        for table, name in (("removed", reason), ("removed_by_domain", domain)):
            count = tally[table].setdefault(name, {"documents": 0, "bytes": 0})
            count["documents"] += 1
            count["bytes"] += num_bytes
        self.removed.append(Removal(row, self._stage, reason, float(score), representative))

    def trim(self, row: int, num_bytes: int, trimmed: Mapping[str, int] = {}) -> None:
        """Records a document's new size, and the dropped bytes by rule."""
        self._size[row] = num_bytes
        tally = self._tallies[self._stage]["trimmed_bytes"]
        for rule, size in trimmed.items():
            tally[rule] = tally.get(rule, 0) + size

    def save(self, output: Path) -> dict[str, Any]:
        """Writes roster and removals beside `output`; returns the stages' tallies."""
        _write(f"{output}.roster.parquet", ROSTER_SCHEMA, {
            "row": self.rows, "bytes": list(self._size.values()),
            "domain": list(self._domain.values())})
        _write(f"{output}.verdicts.parquet", REMOVED_SCHEMA, {
            name: [getattr(removal, name) for removal in self.removed]
            for name in REMOVED_SCHEMA.names})
        for stage, after in zip(self._tallies, [*list(self._tallies.values())[1:], None]):
            tally = self._tallies[stage]
            tally["documents_out"] = after["documents_in"] if after else len(self._size)
            tally["bytes_out"] = after["bytes_in"] if after else sum(self._size.values())
        return self._tallies


def read_removed(outputs: Iterable[str | Path]) -> dict[int, Removal]:
    """Removals of a unit by row, over all passes that saved one."""
    removals = {}
    for output in outputs:
        for row in pq.read_table(f"{output}.verdicts.parquet").to_pylist():
            removals[row["row"]] = Removal(**row)
    return removals


def merge_tallies(units: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Sums the tallies of many units, stage by stage."""
    total: dict[str, Any] = {}
    for tallies in units:
        _add(total, tallies)
    return total


def _add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value


def _write(path: str, schema: pa.Schema, columns: Mapping[str, Sequence]) -> None:
    with TableWriter(path, schema) as writer:
        writer.write_columns(columns)
