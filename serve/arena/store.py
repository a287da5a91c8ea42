"""Votes on the disk: lines of `data.preferences` whose `meta` names the models."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from data.preferences import Preference
from serve.web.journal import append, open_journal, read_journal

FILE = "votes.jsonl"


class VoteStore:
    """The votes in a folder, for one process.

    Attributes:
        path: of the file.
        outcomes: models of each vote in the order shown, and the first one's score: 1, 1/2 or 0.

    Raises:
        UserError: the folder cannot be written, another process has it, or its file is damaged.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / FILE
        self.outcomes: list[tuple[str, str, float]] = []
        self._ids: set[str] = set()
        self._lock = threading.Lock()
        self._file = open_journal(self.path, "votes", "votes")
        try:
            for _, row in read_journal(self._file, self.path, _is_whole):
                self._count(row)
        except BaseException:
            self._file.close()
            raise

    @property
    def num_votes(self) -> int:
        """Votes in the file."""
        return len(self.outcomes)

    def __contains__(self, mark: str) -> bool:
        return mark in self._ids

    def add(self, vote: Preference) -> None:
        """Stores a vote; raises `OSError` where the disk refuses it, and then it is not stored."""
        row = vote.to_dict()
        with self._lock:
            append(self._file, row)
            self._count(row)

    def close(self) -> None:
        """Lets another process have the folder."""
        with self._lock:
            self._file.close()

    def _count(self, row: dict[str, Any]) -> None:
        (first, second), ranks = row["meta"]["models"], row["ranks"]
        score = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
        self.outcomes.append((first, second, score))
        self._ids.add(row["meta"]["id"])


def _is_whole(row: Any) -> bool:
    meta, ranks = row["meta"], row["ranks"]
    return (isinstance(meta["id"], str) and len(meta["models"]) == len(ranks) == 2
            and all(isinstance(name, str) for name in meta["models"])
            and all(type(rank) is int for rank in ranks) and isinstance(row["responses"], list))
