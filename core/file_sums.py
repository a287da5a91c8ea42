"""Checksums of a folder's files, checked before they are read.

Checkpoints and model directories have them. Orbax does not detect most flipped bits, and reports
the others in long tracebacks of one process while the others wait. `files.json` is written last:

    {"files": {"state/d/8cdb77...": "16 hex", ...}, "digest": "16 hex"}

All are 64-bit XXH3; `digest` is over the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import xxhash

NAME = "files.json"
CHUNK_BYTES = 1 << 22


class DamagedError(Exception):
    """A folder differs from what was written; the text names the file."""


def write_sums(folder: Path, paths: Iterable[Path], *, keep: bool = False) -> None:
    """Writes the checksums of files of `folder`; of what is no file there is none.

    Args:
        keep: whether checksums that are there already stay as they are.
    """
    files = _read_sums(folder) if keep else {}
    names = {str(path.relative_to(folder)): path for path in paths if path.is_file()}
    files |= {name: sum_file(path) for name, path in sorted(names.items())
              if name not in (NAME, *files)}
    temporary = folder / f".{NAME}.tmp"
    with open(temporary, "w") as file:
        json.dump({"files": files, "digest": _sum_sums(files)}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)


def check_sums(folder: Path, *, select: Callable[[str], bool] = lambda name: True, index: int = 0,
               count: int = 1) -> None:
    """Compares the files with their checksums.

    Args:
        select: which of them, by their path in the folder.
        index, count: check the `index`-th of `count` shares of these.

    Raises:
        DamagedError: names the file that is missing or has changed.
        OSError: a file cannot be read.
    """
    files = _read_sums(folder)
    names = [name for name in sorted(files) if select(name)]
    for name in names[index::count]:
        try:
            total = sum_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{name} is missing") from None
        if total != files[name]:
            raise DamagedError(f"{name} has changed")


def _read_sums(folder: Path) -> dict[str, str]:
    """The checksums by path; raises `DamagedError` when they are missing or damaged."""
    try:
        saved: Any = json.loads((folder / NAME).read_bytes())
        files, digest = dict(saved["files"]), saved["digest"]
    except FileNotFoundError:
        raise DamagedError(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError):
        files, digest = {}, None
    if digest != _sum_sums(files):
        raise DamagedError(f"{NAME} has changed")
    return files


def sum_file(path: Path) -> str:
    """The checksum of a file, 16 hex digits."""
    total = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _sum_sums(files: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())
