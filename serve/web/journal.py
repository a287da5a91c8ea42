"""A file of JSON lines that only grows: a line is on the disk before its sender reads that it is.

One process has the file at a time. A line that was not finished when a process was killed is moved
aside at the next start.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from core.artifacts import free_name
from core.errors import UserError
from core.json_text import format_json, parse_json
from core.progress import log


def open_journal(path: Path, flag: str, what: str) -> BinaryIO:
    """Opens the file to read and append, and its folder, which is made; locked for this process.

    Args:
        flag: that names the folder, for messages.
        what: the lines are, in the plural.

    Raises:
        UserError: the folder cannot be written, or another process has the file.
    """
    field = f"--{flag}={path.parent}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)   # noqa: SIM115 -- closed by its owner
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_folder(path.parent)
        except OSError:
            file.close()
            raise
    except BlockingIOError:
        raise UserError(field, f"another server stores its {what} there",
                        f"stop it, or choose another --{flag}") from None
    except OSError as error:
        raise UserError(field, f"cannot be used ({(error.strerror or str(error)).lower()})",
                        "choose a folder where files can be written and locked") from None
    return file


def read_journal(file: BinaryIO, path: Path,
                 is_whole: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """The lines with their places; a last line without its end is moved to a file of its own.

    Args:
        is_whole: whether a line holds what it must; it may raise TypeError, KeyError or ValueError
            for one that does not.

    Raises:
        UserError: a line is damaged.
    """
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
    rows = []
    for number, line in enumerate(whole.split(b"\n") if newline else (), start=1):
        place = f"{path}, line {number}"
        try:
            row = parse_json(line.decode())
            is_good = is_whole(row)
        except (ValueError, TypeError, KeyError):
            is_good = False
        if not is_good:
            raise UserError(place, "is damaged", "restore the file from a backup, or take this "
                            "line out")
        rows.append((place, row))
    return rows


def append(file: BinaryIO, row: Mapping[str, Any]) -> None:
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


def sync_folder(folder: Path) -> None:
    """Puts the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
