"""The fields of a row that stay with its document, as JSON of bounded size."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data.readers.records import encodable

ALL = "*"
MAX_META_BYTES = 16 << 10   # of JSON per document, for fields that no one has named


def lookup(row: Any, name: str) -> Any:
    """The value of a field, or None.

    A dotted name, ``metadata.url``, leads into objects, and into strings that hold one as JSON.
    """
    if isinstance(row, str) and row.lstrip().startswith("{"):
        try:
            row = json.loads(row)
        except (ValueError, RecursionError):
            return None
    if not isinstance(row, dict):
        return None
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    return lookup(row[head], rest) if dot and head in row else None


def keep(row: Mapping[str, Any], used: Sequence[str],
         names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The fields to keep as plain JSON, and those that are cut, for their size or their type.

    Args:
        used: the fields that hold the text, which are not repeated.
        names: the fields to keep, whatever their size; ``*`` adds all others, the smallest first,
            up to `MAX_META_BYTES`.
    """
    kept, cut = {}, []
    rest = _without(row, used) if ALL in names else {}
    named = {name: lookup(row, name) for name in names if name != ALL}
    for name, value in (rest | named).items():
        if value is not None:
            try:
                kept[name] = as_json(value)
            except (ValueError, RecursionError):
                cut.append(name)
    if rest and len(json.dumps(kept)) > MAX_META_BYTES:
        sizes = sorted((len(json.dumps(kept[name])), name) for name in rest if name in kept)
        for (_, name), total in zip(sizes, itertools.accumulate(size for size, _ in sizes)):
            if total > MAX_META_BYTES and name not in named:
                del kept[name]
                cut.append(name)
    for name in named:
        if "." in name and name not in row and name.partition(".")[0] in kept:
            kept.pop(name, None)    # kept with the whole object
    return kept, cut


def _without(row: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """A row without some fields, whose names may be dotted."""
    rest = dict(row)
    for name in used:
        head, dot, inner = name.partition(".")
        if name in rest:
            del rest[name]
        elif dot and isinstance(rest.get(head), dict):
            rest[head] = _without(rest[head], [inner])
    return rest


def as_json(value: Any) -> Any:
    """A value of JSON or Arrow as strict JSON: no NaN, no half of a surrogate pair.

    Bytes become the text that they encode, decimals and other values strings.

    Raises:
        ValueError: bytes are not UTF-8.
    """
    if isinstance(value, str):
        return encodable(value)
    if value is None or isinstance(value, int):     # or bool
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {encodable(str(name)): as_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode()
    return str(value)
