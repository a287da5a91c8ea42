"""Labels on the disk: a journal that only grows, and the files that training and evaluation read.

`journal.log` has a JSON object a line: a label, a skipped item, or the undoing of one of these. A
line is on the disk before its sender reads that it is. `preferences.jsonl` and
`demonstrations.jsonl` hold the labels that nobody has undone; they follow from the journal and are
written anew from it where they may differ.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from core.artifacts import free_name
from core.errors import UserError
from core.json_text import format_json, parse_json
from core.progress import log

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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = _open_locked(folder / JOURNAL)
        except OSError as error:
            raise UserError(f"--out={folder}", f"cannot be used ({error.strerror.lower()})",
                            "choose a folder where files can be written and locked") from None
        self.live: dict[str, Event] = {}
        self._files: dict[str, BinaryIO] = {}
        try:
            for place, event in _read_events(self._journal, folder / JOURNAL):
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
        _append(self._journal, event)
        self._apply(event, "the request")
        file = (undone or event).get("file")
        if file is None:
            return
        try:
            if undone or file not in self._files:
                self._rewrite(file)
            else:
                _append(self._files[file], event["row"])
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
            _sync_folder(self.folder)
        self._files[name] = open(path, "ab", buffering=0)   # noqa: SIM115 -- closed by `close`


def _check_is_free(folder: Path) -> None:
    for name in EXPORTS:
        if (folder / name).exists():
            raise UserError(f"--out={folder}", f"holds {name} but no {JOURNAL}",
                            "choose another folder, so that this file stays as it is")


def _open_locked(path: Path) -> BinaryIO:
    file = open(path, "a+b", buffering=0)   # noqa: SIM115 -- closed by `Store.close`
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"--out={path.parent}", "another server stores its labels there",
                        "stop it, or choose another --out") from None
    _sync_folder(path.parent)
    return file


def _read_events(file: BinaryIO, path: Path) -> list[tuple[str, Event]]:
    """The events with their places; a last line without its end is moved to a file of its own."""
    file.seek(0)
    text = file.readall()
    whole, newline, torn = text.rpartition(b"\n")
    if torn:
        aside = free_name(path.with_name(f"{path.name}.torn"))
        aside.write_bytes(torn)
        file.truncate(len(whole) + len(newline))
        os.fsync(file.fileno())
        log(f"{path}: its last line was not finished when the server was stopped, so its sender "
            f"never read that it was stored; it is now in {aside}")
    events = []
    for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
        place = f"{path}, line {number}"
        try:
            event = parse_json(line.decode())
            is_whole = all(name in event for name in FIELDS[event["event"]])
        except (ValueError, TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise UserError(place, "is damaged", "restore the file from a backup, or take this "
                            "line out")
        events.append((place, event))
    return events


def _append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Appends a line that is on the disk when this returns; where that fails, nothing of it is."""
    start = os.fstat(file.fileno()).st_size
    rest = memoryview((format_json(row) + "\n").encode())
    try:
        while rest:     # an unbuffered write may take a part
            rest = rest[file.write(rest):]
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(start)
        raise


def _sync_folder(folder: Path) -> None:
    """Puts the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
