"""Reads a finished corpus: its manifest, its lineage and its documents."""

from __future__ import annotations

import contextlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from core.artifacts import read_json
from core.errors import UserError
from data.filters.rules import parse_rule

KINDS = ("documents", "heldout", "removed")
BATCH_ROWS = 1024


class Place(NamedTuple):
    """Location of a document: the kind's folder, the number of the part, and the row in it."""

    kind: str
    part: int
    row: int


class Corpus:
    """A corpus written by `python -m data.curate`.

    Args:
        folder: contains `manifest.json`, `lineage.json`, and a folder of Parquet parts per kind.

    Raises:
        UserError: the manifest is missing or damaged.
    """

    def __init__(self, folder: Path):
        if not (folder / "manifest.json").exists():
            raise UserError(str(folder), "holds no corpus",
                            "give the folder that `python -m data.curate` wrote")
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self.lineage: dict[str, Any] | None = (
            read_json(folder / "lineage.json") if (folder / "lineage.json").exists() else None)
        self.parts = {kind: sorted((folder / kind).glob("*.parquet")) for kind in (*KINDS, "lost")}

    def num_rows(self) -> int:
        """Number of documents of all kinds."""
        total = 0
        for part in (part for kind in KINDS for part in self.parts[kind]):
            with _reading(part):
                total += pq.read_metadata(part).num_rows
        return total

    def rows(self, kind: str, columns: Sequence[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Documents of a kind with their places; one batch is in memory at a time.

        Args:
            kind: one of `KINDS`, or ``lost``: records without a document (source, reason).
        """
        for number, part in enumerate(self.parts[kind]):
            row = 0
            with _reading(part), pq.ParquetFile(part) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                    for values in batch.to_pylist():
                        yield Place(kind, number, row), values
                        row += 1

    def read_at(self, place: Place) -> dict[str, Any]:
        """The whole row at a place; reads one row group into memory."""
        part, row = self.parts[place.kind][place.part], place.row
        with _reading(part), pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if row < num_rows:
                    return file.read_row_group(group).slice(row, 1).to_pylist()[0]
                row -= num_rows
        raise IndexError(place)

    def find(self, prefix: str) -> dict[str, list[Place]]:
        """Places of the documents whose id starts with `prefix`, by id."""
        places = defaultdict(list)
        for kind in KINDS:
            for place, row in self.rows(kind, ["id"]):
                if row["id"].startswith(prefix):
                    places[row["id"]].append(place)
        return dict(places)

    def sample_removed(self, num: int,
                       reason: str | None = None) -> dict[str, list[dict[str, Any]]]:
        """For every reason (or one), the `num` removed documents with the smallest ids.

        Ids are hashes of content, so the sample is unbiased and reproducible.
        """
        smallest: dict[str, list[tuple[str, Place]]] = defaultdict(list)
        for place, row in self.rows("removed", ["id", "reason"]):
            if reason in (None, row["reason"]):
                smallest[row["reason"]].append((row["id"], place))
                if len(smallest[row["reason"]]) > 64 * num:
                    smallest[row["reason"]] = heapq.nsmallest(num, smallest[row["reason"]])
        return {name: [self.read_at(place) for _, place in heapq.nsmallest(num, candidates)]
                for name, candidates in smallest.items()}

    def removals(self) -> list[tuple[str, str, dict[str, int]]]:
        """(stage, reason, documents and bytes) in the order of the stages, the largest first."""
        return [(stage["stage"], reason, counts) for stage in self.manifest.get("funnel", ())
                for reason, counts in sorted(stage["removed"].items(),
                                             key=lambda item: (-item[1]["documents"], item[0]))]

    def threshold(self, removed: Mapping[str, Any]) -> float | None:
        """Threshold of the rule that removed a document, e.g. ``gopher_min_words``, or None."""
        if removed["stage"] != "rules":     # other stages bound other numbers
            return None
        rule = parse_rule(removed["reason"])
        return next((histogram[rule.side] for histogram in self.manifest.get("histograms", ())
                     if histogram["signal"] == rule.signal
                     and histogram["domain"] == removed["domain"]), None)

    def bytes_per_token(self) -> float | None:
        """Mean UTF-8 bytes per token of the training set; None when tokens were not counted."""
        tokens = self.manifest.get("tokens")
        return self.manifest["bytes"] / tokens if tokens else None

    def domains_by_stage(self) -> list[dict[str, int]]:
        """Documents by domain before the first stage and after each stage."""
        remaining = Counter(self.heldout_by_domain())
        remaining.update({domain: counts["documents"]
                        for domain, counts in self.manifest.get("kept_by_domain", {}).items()})
        stages = [dict(remaining)]
        for stage in reversed(self.manifest.get("funnel", ())):
            remaining.update({domain: counts["documents"]
                            for domain, counts in stage["removed_by_domain"].items()})
            stages.insert(0, dict(remaining))
        return stages

    def heldout_by_domain(self) -> Counter:
        """Held-out documents by domain."""
        return Counter(row["domain"] for _, row in self.rows("heldout", ["domain"]))


@contextlib.contextmanager
def _reading(part: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(str(part), f"cannot be read ({reason})", "build its artifact anew") \
            from None
