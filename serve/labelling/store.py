"""Labels on the disk: a journal that only grows, and the files that training and evaluation read.

`journal.log` has a JSON object a line: a label, a skipped item, or the undoing of one of these. A
line is on the disk before its sender reads that it is. `preferences.jsonl` and
`demonstrations.jsonl` hold the labels that nobody has undone; they follow from the journal and are
written anew from it where they may differ.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import UserError
from core.json_text import format_json
from core.progress import log
from serve.web.journal import append, open_journal, read_journal, sync_folder

JOURNAL = "journal.log"
PREFERENCES, DEMONSTRATIONS = EXPORTS = ("preferences.jsonl", "demonstrations.jsonl")
LABEL, SKIP, UNDO = "label", "skip", "undo"
FIELDS = {LABEL: ("id", "annotator", "item", "time", "file", "row"),
          SKIP: ("id", "annotator", "item", "time", "reason"),
          UNDO: ("id", "annotator", "item", "time", "undoes")}

Event = Mapping[str, Any]


class Store:
    """The labels in a folder, for one process.

    Attributes:
        live: events that nobody has undone, by their ids, in their order.

    Raises:
        UserError: the folder cannot be written, another process has it, or its files are damaged or
            of other origin.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / JOURNAL).exists():
            _check_is_free(folder)
        self._journal = open_journal(folder / JOURNAL, "out", "labels")
        self.live: dict[str, Event] = {}
        self._files: dict[str, BinaryIO] = {}
        try:
            for place, event in read_journal(self._journal, folder / JOURNAL, _is_whole):
                self._apply(event, place)
        except UserError:
            self._journal.close()
            raise
        for name in EXPORTS:
            self._rewrite(name)

    def add(self, event: Event) -> None:
        """Stores an event; raises `OSError` where the disk refuses it, and then it is not stored.
        """
        undone = self.live.get(event.get("undoes", ""))
        append(self._journal, event)
        self._apply(event, "the request")
        file = (undone or event).get("file")
        if file is None:
            return
        try:
            if undone or file not in self._files:
                self._rewrite(file)
            else:
                append(self._files[file], event["row"])
        except OSError as error:    # it is in the journal, and so not lost
            if file in self._files:
                self._files.pop(file).close()
            log(f"{self.folder / file}: {(error.strerror or str(error)).lower()}: it is written "
                "anew with the next label, or at the next start")

    def rows(self, file: str) -> list[Mapping[str, Any]]:
        """What a file of `EXPORTS` holds."""
        return [event["row"] for event in self.live.values() if event.get("file") == file]

    def close(self) -> None:
        """Lets another process have the folder."""
        for file in (self._journal, *self._files.values()):
            file.close()

    def _apply(self, event: Event, place: str) -> None:
        if event["event"] != UNDO:
            self.live[event["id"]] = event
        elif self.live.pop(event["undoes"], None) is None:
            raise UserError(place, "undoes what is not there", f"restore {JOURNAL} from a backup")

    def _rewrite(self, name: str) -> None:
        """Writes a file of `EXPORTS` anew, whole or not at all; one without rows is not begun."""
        path, rows = self.folder / name, self.rows(name)
        if name in self._files:
            self._files.pop(name).close()
        if not rows and not path.exists():
            return
        text = "".join(format_json(row) + "\n" for row in rows).encode()
        if not path.exists() or path.read_bytes() != text:
            temporary = path.with_name(f".{name}.tmp")
            with open(temporary, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(self.folder)
        self._files[name] = open(path, "ab", buffering=0)   # noqa: SIM115 -- closed by `close`


def _check_is_free(folder: Path) -> None:
    for name in EXPORTS:
        if (folder / name).exists():
            raise UserError(f"--out={folder}", f"holds {name} but no {JOURNAL}",
                            "choose another folder, so that this file stays as it is")


def _is_whole(event: Event) -> bool:
    return all(name in event for name in FIELDS[event["event"]])
