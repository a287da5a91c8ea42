"""Signals of source code, by the definitions of bigcode-project/bigcode-dataset.

    words: runs of non-space characters.
    line_chars, mean_line_chars: longest and mean line, blank ones included.
    alphanumeric_frac: share of characters that are letters or digits.
    comment_frac: share of characters in comments. The reference parses Python and uses Pygments for
        other languages; here patterns of all common languages are matched: block comments,
        triple-quoted strings at the start of a line, and the rest of a line after "#", "//" or "--"
        at its start or after white space.
"""

from __future__ import annotations

import re2

CODE_SIGNALS = ("words", "code_line_chars", "code_mean_line_chars", "code_alphanumeric_frac",
                "code_comment_frac")

_OPENING = re2.compile(r"/\*|<!--|(?m:^)[ \t]*[rRuUbBfF]{0,2}(?:'''|\"\"\")"
                       r"|(?m:^|[ \t])(?:#|//|--[ \t])")
_CLOSING = {"/*": "*/", "<!--": "-->", "'''": "'''", '"""': '"""'}


def measure_code(text: str) -> dict[str, float]:
    """The signals above: ``words``, and the others named ``code_<signal>``."""
    lines = list(map(len, text.splitlines())) or [0]
    num_chars = max(len(text), 1)
    return dict(zip(CODE_SIGNALS, (
        float(len(text.split())), float(max(lines)), sum(lines) / len(lines),
        sum(map(str.isalnum, text)) / num_chars, _count_comment_chars(text) / num_chars)))


def _count_comment_chars(text: str) -> int:
    """Characters in comments; an opening mark without a closing one is ignored."""
    count, end, never_closed = 0, 0, set()
    for match in _OPENING.finditer(text):
        start = match.start()
        if start < end:
            continue
        mark = match.group().strip().lstrip("rRuUbBfF")
        closing = _CLOSING.get(mark, "\n")
        if closing in never_closed:  # searched for once only
            continue
        closed_at = text.find(closing, match.end())
        if closed_at < 0 and closing != "\n":
            never_closed.add(closing)
            continue
        end = closed_at if closing == "\n" else closed_at + len(closing)
        if closed_at < 0:
            end = len(text)
        count += end - start
    return count
