"""The exception that a user is meant to see, and errors of the disk under their own name."""

from __future__ import annotations

import errno
import os
import re
import reprlib
from pathlib import Path
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxstring = 2, 8, 100


class UserError(Exception):
    """Bad input, reported in one line: what was given, the rule it breaks, what to do about it.

    Args:
        what: field and value, or path, e.g. ``pretrain.batch_size=7``.
        rule: the rule it breaks, e.g. ``must divide by the 2 data shards``.
        remedy: what to do, e.g. ``set --config.pretrain.batch_size=8``.
    """

    def __init__(self, what: str, rule: str, remedy: str):
        super().__init__(f"{what}: {rule}: {remedy}")


class PassingError(UserError):
    """An error of storage or network, after which the same command may succeed."""


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, or its type, in at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def quote(value: Any) -> str:
    """A value that a file contains as it may stand in a message: on one line, and short."""
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


def require_file(field: str, path: str | Path, remedy: str) -> Path:
    """Returns `path` when it exists; raises `UserError` that names `field` otherwise."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{field}={str(path)!r}", "no such file or folder", remedy)
    return path


def as_disk_error(error: BaseException, path: Path) -> OSError:
    """The `OSError` behind an error of reading or writing `path`; any other is raised again.

    TensorStore, and Orbax with it, reports a full disk as a ``ValueError: RESOURCE_EXHAUSTED``.
    """
    if isinstance(error, OSError):
        return error
    match = re.search(r"os_error_code='(\d+)'", str(error))
    if not match and "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    code = int(match[1]) if match else errno.ENOSPC
    return OSError(code, os.strerror(code), str(path))
