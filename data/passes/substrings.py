"""Optional passes: find long passages that occur in an earlier document, to be cut.

Three functions run per unit; `find_cuts` compares their keys in between.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dedup.groups import first_occurrences
from data.dedup.substrings import anchor_keys, repeated_spans, window_keys
from data.passes.roster import Roster
from data.tables import TableWriter, read_rows, write_array

CUTS_SCHEMA = pa.schema([("row", pa.int32()), ("start", pa.int64()), ("stop", pa.int64())])
HELD_GROUPS = 8     # row groups of other units whose texts are cached while passages are verified

RunPass = Callable[[Callable, Sequence[Mapping[str, Any]]], list[Path]]


def find_cuts(run: RunPass, cleaned: Sequence[Path], rosters: Sequence[Path],
              heldout_rows: Sequence[Sequence[int]], *, num_tokens: int,
              memory_bytes: int) -> list[str]:
    """Finds repeats of `num_tokens` tokens or more; returns per unit a table of spans to cut.

    Args:
        run: runs a function for the units, see `data.curate.Curation`.
        rosters: paths of the rosters of the last pass.
        heldout_rows: documents of each unit that are neither cut nor searched for repeats.
    """
    tasks = [{"cleaned": f"{path}.parquet", "roster": str(roster), "heldout_rows": rows,
              "num_tokens": num_tokens}
             for path, roster, rows in zip(cleaned, rosters, heldout_rows)]
    anchors = run(find_anchors, tasks)
    repeated = _match(anchors, "anchors", memory_bytes)
    windows = run(find_windows, [task | {"repeated": str(path)}
                                 for task, path in zip(tasks, repeated)])
    matches = _match(windows, "windows", memory_bytes)
    spans = run(find_spans, [
        {"unit": unit, "units": tasks, "windows": [str(path) for path in windows],
         "matches": str(match)} for unit, match in enumerate(matches)])
    return [f"{path}.parquet" for path in spans]


def _match(outputs: Sequence[Path], kind: str, memory_bytes: int) -> list[Path]:
    matches = [Path(f"{path}.first.npy") for path in outputs]
    first_occurrences([Path(f"{path}.{kind}.npy") for path in outputs], matches,
                      memory_bytes=memory_bytes)
    return matches


def find_anchors(*, output: Path, cleaned: str, roster: str, heldout_rows: Sequence[int],
                 num_tokens: int) -> dict[str, int]:
    """Writes the anchors of a unit's documents; see `data.dedup.substrings`."""
    keys = anchor_keys((text for _, text in _texts(cleaned, roster, heldout_rows)), num_tokens)
    write_array(f"{output}.anchors.npy", keys)
    return {"anchors": len(keys)}


def find_windows(*, output: Path, cleaned: str, roster: str, heldout_rows: Sequence[int],
                 num_tokens: int, repeated: str) -> dict[str, int]:
    """Writes the windows around anchors that occur more than once, and their places."""
    keys, places = window_keys((text for _, text in _texts(cleaned, roster, heldout_rows)),
                               np.load(repeated)["position"], num_tokens)
    write_array(f"{output}.windows.npy", keys)
    write_array(f"{output}.places.npy", places)
    return {"windows": len(keys)}


def find_spans(*, output: Path, unit: int, units: Sequence[Mapping[str, Any]],
               windows: Sequence[str], matches: str) -> dict[str, int]:
    """Writes the spans to cut from a unit's texts, verified on the texts."""
    own = units[unit]
    pairs = list(_texts(own["cleaned"], own["roster"], own["heldout_rows"]))
    spans = repeated_spans(
        [text for _, text in pairs], unit, np.load(matches),
        places_of=lambda part: np.load(f"{windows[part]}.places.npy"),
        text_of=_TextOf(units), min_tokens=own["num_tokens"])
    with TableWriter(f"{output}.parquet", CUTS_SCHEMA) as writer:
        for place, cuts in spans.items():
            for span in cuts:
                writer.write({"row": pairs[place][0], "start": span.start, "stop": span.stop})
    return {"spans": sum(map(len, spans.values()))}


def _texts(cleaned: str, roster: str, heldout_rows: Sequence[int]):
    """Row and text of the remaining documents that are not held out."""
    remaining, heldout = Roster.load(roster), set(heldout_rows)
    for _, row in read_rows(cleaned, ("row", "text")):
        if row["row"] in remaining and row["row"] not in heldout:
            yield row["row"], row["text"]


class _TextOf:
    """Text of a document by unit, and by place among the documents of `_texts`."""

    def __init__(self, units: Sequence[Mapping[str, Any]]):
        self._units = units
        self._rows = functools.lru_cache(None)(self._read_rows)
        self._group = functools.lru_cache(HELD_GROUPS)(self._read_group)

    def __call__(self, unit: int, place: int) -> str:
        at = int(self._rows(unit)[place])
        file = pq.ParquetFile(self._units[unit]["cleaned"])
        for group in range(file.num_row_groups):
            num_rows = file.metadata.row_group(group).num_rows
            if at < num_rows:
                return self._group(unit, group)[at].as_py()
            at -= num_rows
        raise IndexError(place)

    def _read_rows(self, unit: int) -> np.ndarray:
        """Places in the unit's file of the documents of `_texts`."""
        own = self._units[unit]
        remaining, heldout = Roster.load(own["roster"]), set(own["heldout_rows"])
        rows = pq.read_table(own["cleaned"], columns=["row"])["row"].to_pylist()
        return np.array([at for at, row in enumerate(rows)
                         if row in remaining and row not in heldout], np.int64)

    def _read_group(self, unit: int, group: int) -> pa.ChunkedArray:
        file = pq.ParquetFile(self._units[unit]["cleaned"])
        return file.read_row_group(group, columns=["text"])["text"]
