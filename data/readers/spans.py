"""Marked spans of a text, from an opening to the first closing mark, in linear time.

The pattern ``open.*?close`` reads to the end of the text at every opening that nothing closes;
on a million of them that is for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable


def replace_spans(text: str, opening: re.Pattern[str],
                  closing: Callable[[re.Match[str]], re.Pattern[str] | None],
                  form: Callable[[re.Match[str], str], str]) -> str:
    """Replaces each span by ``form(opening, inner text)``; an opening without end stays.

    Args:
        closing: the pattern that closes an opening; None when the opening is all of the span.
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
    """The text without blanks at the ends of its lines, and at most one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip(" \t") for line in text.split("\n")))
