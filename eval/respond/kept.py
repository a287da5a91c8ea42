"""Scores and answers that a model has given already, kept in a file.

Each line is a result under a key of everything that it depends on beside the model, so that a
measurement that was ended goes on with the items that it lacks, and one that asks the same again
computes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from core.artifacts import digest
from core.progress import log

KEY = "key"


def key_of(*parts: Sequence[int] | str) -> str:
    """A key of token ids and texts, 32 hex digits."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else np.asarray(part, "<i4").tobytes()
        hasher.update(len(data).to_bytes(8, "little") + data)
    return hasher.hexdigest()


class Kept:
    """Results in a file of JSON lines, to which new ones are appended as they come.

    Args:
        folder: of the files of all models.
        model: everything that results depend on beside their key: the parameters, the precision.
        kind: of the results, a name for the file.
    """

    def __init__(self, folder: Path, model: Mapping[str, Any], kind: str):
        self._file = Path(folder) / digest(dict(model)) / f"{kind}.jsonl"
        self._rows: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def add(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps results by their keys, on disk before this returns."""
        self._rows |= {key: dict(row) for key, row in rows.items()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({KEY: key, **row}) + "\n" for key, row in rows.items())

    def note_found(self, num_found: int, num_asked: int, what: str) -> None:
        """Logs how many results were there already."""
        if num_found:
            log(f"{num_found:,} of {num_asked:,} {what} are known from {self._file}")

    def _read(self) -> None:
        lines = self._file.read_text(encoding="utf-8").split("\n")
        if lines.pop():     # what a kill left of the last line
            self._file.write_text("\n".join([*lines, ""]), encoding="utf-8")
        for line in lines:
            row = json.loads(line)
            self._rows[row.pop(KEY)] = row
