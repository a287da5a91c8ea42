"""Checksums of a checkpoint's files, checked before they are read.

Orbax does not detect most flipped bits, and reports the others in long tracebacks of one process
while the others wait. `files.json` is written before a step gets its name:

    {"files": {"state/d/8cdb77...": "16 hex", ...}, "digest": "16 hex"}

All are 64-bit XXH3; `digest` is over the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from core.artifacts import write_json

NAME = "files.json"
CHUNK_BYTES = 1 << 22


class DamagedError(Exception):
    """A checkpoint differs from what was saved."""


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files in the subfolders of `folder`."""
    files = {str(path.relative_to(folder)): _sum_file(path)
             for path in sorted(folder.glob("*/**/*")) if path.is_file()}
    write_json(folder / NAME, {"files": files, "digest": _sum_sums(files)})


def check_sums(folder: Path, *, part: str = "", index: int = 0, count: int = 1) -> None:
    """Compares the files with their checksums.

    Args:
        part: the subfolder to check; empty for all of them.
        index, count: check the `index`-th of `count` shares of the files.

    Raises:
        DamagedError: names the file that is missing or has changed.
        OSError: a file cannot be read.
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
            total = _sum_file(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise DamagedError(f"{name} is missing") from None
        if total != files[name]:
            raise DamagedError(f"{name} has changed")


def _sum_file(path: Path) -> str:
    total = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _sum_sums(files: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())
