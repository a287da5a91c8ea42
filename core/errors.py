"""The one exception that a user is meant to see."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Bad input, told in one line: what was given, which rule it breaks, what to do about it.

    Args:
        what: field and value, or path, e.g. ``pretrain.batch_size=7``.
        rule: the rule it breaks, e.g. ``must divide by the 2 data shards``.
        remedy: what to do, e.g. ``set --config.pretrain.batch_size=8``.
    """

    def __init__(self, what: str, rule: str, remedy: str):
        super().__init__(f"{what}: {rule}: {remedy}")


def require_file(field: str, path: str | Path, remedy: str) -> Path:
    """Returns `path` when it exists; raises `UserError` that names `field` otherwise."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{field}={str(path)!r}", "no such file or folder", remedy)
    return path
