"""Checksums of a checkpoint's files, so that no reader has to make sense of a damaged one.

Orbax restores most flipped bits without a word, and of what it does notice it tells in pages of
tracebacks, one process at a time, while the others wait for it. `files.json` is written before a
step gets its name:

    {"files": {"state/d/8cdb77...": "16 hex", ...}, "digest": "16 hex"}

Every sum is XXH3's, 64 bits; the last one is over the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from core.artifacts import write_json

NAME = "files.json"
CHUNK_BYTES = 1 << 22


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


def write_sums(folder: Path) -> None:
    """Sums up all files in the subfolders of `folder`."""
    files = {str(path.relative_to(folder)): _sum_file(path)
             for path in sorted(folder.glob("*/**/*")) if path.is_file()}
    write_json(folder / NAME, {"files": files, "digest": _sum_sums(files)})


def check_sums(folder: Path, *, part: str = "", index: int = 0, count: int = 1) -> None:
    """Compares the files with their sums.

    Args:
        part: the subfolder to look at; empty for all of them.
        index, count: which share of the files to read, of how many.

    Raises:
        DamagedError: names the file that is missing or has changed.
        OSError: a file may not be read.
    """
    try:
        saved = json.loads((folder / NAME).read_bytes())
        files, digest = saved["files"], saved["digest"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        files, digest = {}, None
    if digest != _sum_sums(files):
        raise DamagedError(f"{NAME} has changed")
    names = [name for name in sorted(files) if name.startswith(part)]
    for name in names[index::count]:
        try:
            found = _sum_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{name} is missing") from None
        if found != files[name]:
            raise DamagedError(f"{name} has changed")


def _sum_file(path: Path) -> str:
    total = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _sum_sums(files: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())
