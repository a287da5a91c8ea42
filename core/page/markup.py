"""Builds HTML that is escaped by default, and formats numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

# Control characters are replaced by their pictures (U+2400...): browsers drop them, and terminals
# act on them. Those of ISO 8859 have no picture. Those that reorder what is around them are named.
_REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = ({code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
            | {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
            | {code: f"\u27e8U+{code:04X}\u27e9" for code in _REORDERING})
_VOID = ("link", "meta", "input")  # elements without content and end tag
NOT_A_NUMBER = "n/a"


class Markup(str):
    """A string of HTML. Any other string is escaped when it becomes part of a tag."""


def escape(text: Any) -> Markup:
    """Escapes text for HTML, with control characters as by `visible`."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(visible(str(text))))


def visible(text: str) -> str:
    """Replaces control characters by visible ones, and lone surrogates; names those that reorder
    text."""
    return text.translate(_VISIBLE).encode("utf-8", "replace").decode()


def join(*children: Any) -> Markup:
    """Concatenates children: strings are escaped, None is skipped, iterables are flattened."""
    parts = []
    for child in children:
        if isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: ``tag("a", "text", class_="x", stroke_width=2)``.

    A trailing underscore of an attribute is dropped, any other becomes a hyphen; attributes
    that are None are skipped.
    """
    named = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
                    for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{named}>")
    return Markup(f"<{name}{named}>{join(*children)}</{name}>")


def count(value: float) -> str:
    """A count with separated thousands: ``4,398``."""
    return f"{value:,.0f}" if math.isfinite(value) else NOT_A_NUMBER


def size(num_bytes: float) -> str:
    """A size in decimal units: ``39.5 MB``."""
    if not math.isfinite(num_bytes):
        return NOT_A_NUMBER
    for unit, unit_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= 0.9995 * unit_bytes:  # "1.00 MB", not "1000 kB"
            amount = num_bytes / unit_bytes
            return f"{amount:.{2 if amount < 9.995 else 1 if amount < 99.95 else 0}f} {unit}"
    return f"{num_bytes:.0f} B"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent: ``42.5 %``."""
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else NOT_A_NUMBER


def decimal(value: float, digits: int = 3) -> str:
    """A number with a fixed count of decimals, a minus sign and no negative zero."""
    return f"{value:z.{digits}f}".replace("-", "−") if math.isfinite(value) else NOT_A_NUMBER
