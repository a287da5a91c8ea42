"""Flags of several names with a value each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.errors import UserError


def parse_pairs(field: str, entries: Sequence[str],
                 convert: Callable[[str], Any] = str) -> dict[str, Any]:
    """The value of a flag like `piqa=0.5,sciq=0.25`.

    Raises:
        UserError: an entry is no NAME=VALUE, or `convert` refuses its value with a `ValueError`; or
            a name comes twice.
    """
    found = {}
    for text in entries:
        name, equals, value = text.partition("=")
        if name in found:
            raise UserError(f"--{field}={text!r}", f"names {name} a second time",
                            "give each a name of its own")
        try:
            if not equals or not name:
                raise ValueError
            found[name] = convert(value)
        except ValueError:
            raise UserError(f"--{field}={text!r}", "is not of the form NAME=VALUE",
                            f"write --{field}=NAME=VALUE,NAME=VALUE") from None
    return found
