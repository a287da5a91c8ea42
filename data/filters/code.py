"""Signals of source code, by the definitions of bigcode-project/bigcode-dataset.

    words: runs of non-space characters.
    line_chars, mean_line_chars: the longest line, and the mean of all, blank ones included.
    alphanumeric_frac: share of characters that are letters or digits.
    comment_frac: share of characters that stand in comments. The reference parses Python and asks
        Pygments for other languages; here comments are what looks like one in any of the common
        languages: block comments, triple-quoted strings that begin a line, and the rest of a line
        behind "#", "//" or "--" when that begins the line or follows white space.
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
    """Characters of comments; an opening mark that is never closed opens none."""
    count, end, never_closed = 0, 0, set()
    for match in _OPENING.finditer(text):
        start = match.start()
        if start < end:
            continue
        mark = match.group().strip().lstrip("rRuUbBfF")
        closing = _CLOSING.get(mark, "\n")
        if closing in never_closed:  # so that each is searched for to the end only once
            continue
        found = text.find(closing, match.end())
        if found < 0 and closing != "\n":
            never_closed.add(closing)
            continue
        end = len(text) if found < 0 else found if closing == "\n" else found + len(closing)
        count += end - start
    return count
