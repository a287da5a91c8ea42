"""Replaces spans of a text from an opening to the next closing mark, in linear time.

The pattern ``open.*?close`` scans to the end of the text at every unclosed opening, which takes
quadratic time.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def replace_spans(text: str, opening: re.Pattern[str],
                  closing: Callable[[re.Match[str]], re.Pattern[str] | None],
                  form: Callable[[re.Match[str], str], str]) -> str:
    """Replaces each span by ``form(opening, inner text)``; an unclosed opening is kept.

    Args:
        closing: the pattern that closes an opening; None when the opening is the whole span.
    """
    parts, position, unclosed = [], 0, set()
    while match := opening.search(text, position):
        pattern, end = closing(match), match
        if pattern is not None:
            end = None if pattern in unclosed else pattern.search(text, match.end())
        if end is None:
            unclosed.add(pattern)
            parts.append(text[position:match.end()])
            position = match.end()
            continue
        parts += (text[position:match.start()],
                  form(match, text[match.end():end.start()] if end is not match else ""))
        position = end.end()
    return "".join(parts) + text[position:]


def strip_lines(text: str) -> str:
    """Strips the ends of lines, and replaces successive empty lines by one."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip(" \t") for line in text.split("\n")))
