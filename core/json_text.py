"""JSON that any program can read (RFC 8259), and JSON lines as other programs write them.

A number that is not finite is written as null, as JSON has no NaN and no infinity; the words with
which some writers spell them are read as null.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import log


def format_json(value: Any, indent: int | None = None) -> str:
    """Formats a value as JSON: numpy's scalars and arrays as numbers, other objects as text."""
    return json.dumps(_plain(value), indent=indent, default=str, allow_nan=False)


def parse_json(text: str) -> Any:
    """Parses JSON; raises `ValueError` for what is none, and for what is nested too deeply."""
    try:
        return json.loads(text, parse_constant=lambda word: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with its place, ``FILE, line 3``, for messages.

    Lines end at a newline alone: other separators of Unicode may stand in a text. A byte order mark
    is skipped, and so are blank lines, which are announced.

    Raises:
        UserError: there is no such file, or a line is damaged.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except FileNotFoundError:
        raise UserError(str(path), "no such file", "correct the name, or build the artifact that "
                        "should hold it") from None
    if not lines[-1]:       # the newline that ends the last line begins no other
        lines.pop()
    blank = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if blank:
        log(f"{path}, line {blank[0]}: skipped as blank"
            + (f", and so are {len(blank) - 1} more" if len(blank) > 1 else ""))
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, _parse_line(line, place)


def _parse_line(line: bytes, place: str) -> Any:
    try:
        return parse_json(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(place, f"is not UTF-8 text ({error.reason})", "convert the file") from None
    except ValueError as error:
        raise UserError(place, f"is not valid JSON ({error})",
                        "correct this line, or build its artifact anew") from None


def _plain(value: Any) -> Any:
    """The value with numpy's types replaced, and null for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
