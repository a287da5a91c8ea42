"""Prepares preformatted text for extractors that do not keep its lines and indentation."""

from __future__ import annotations

import re

_PRE = re.compile(r"<pre\b[^<>]*>([^<]*(?:<(?!/?pre\b)[^<]*)*)</pre\s*>", re.I)
_LINE_START = re.compile(r"<(?:div|p|li|ol|ul|table|tbody|tr)\b[^>]*>", re.I)
_LINE_END = re.compile(r"<br\b[^>]*>|</(?:div|p|li|tr)\s*>\n?", re.I)
_TAG_OR_LINE_END = re.compile(r"<[^>]*>|\n")
# Numbers of lines of code, in a cell of their own or in front of each line.
_LINE_NUMBERS = re.compile(
    r"<(td|th|span|a)\b[^<>]*\bclass\s*=\s*[\"']?(?:[\w-]+ )*(?:linenos?|line-?numbers?|gutter|"
    r"blob-num|rouge-gutter|hljs-ln-numbers)\b[^<>]*>"
    r"(?:[\s\d]|</?(?:pre|code|div|span|br)\b[^<>]*>)*?</\1\s*>", re.I)
# Characters that no page has, as Unicode reserves them for programs. Two of them, because
# resiliparse drops text of a single character as an icon.
_MARK = "\ufdd0\ufdd1"


def mark_line_ends(page: str) -> str:
    """The page with marks for line ends in preformatted text; resiliparse indents some of them."""
    return _PRE.sub(_in_one_line, _LINE_NUMBERS.sub("", page))


def restore_line_ends(text: str) -> str:
    """Line ends for marks; all lines are indented like the first, which may follow a bullet."""
    lines = []
    for line in text.split("\n"):
        before, *code = line.rstrip(_MARK).split(_MARK)
        if code and before.strip() and not before.endswith("• "):
            lines.append(before)
            before = ""
        hanging = " " * len(before)
        lines += [f"{hanging if number else before}{part}"
                  for number, part in enumerate(code)] or [before]
    return "\n".join(lines)


def mark_as_code(page: str) -> str:
    """The page with all preformatted text as code; trafilatura joins the lines of any other."""
    return _PRE.sub(_as_code, _LINE_NUMBERS.sub("", page))


def _in_one_line(preformatted: re.Match[str]) -> str:
    content = _TAG_OR_LINE_END.sub(lambda part: _MARK if part[0] == "\n" else part[0],
                                   _lines_of(preformatted))
    return f"<pre>{_MARK}{content}</pre>"


def _as_code(preformatted: re.Match[str]) -> str:
    content = _lines_of(preformatted)
    return f"<pre>{content}</pre>" if "<code" in content else f"<pre><code>{content}</code></pre>"


def _lines_of(preformatted: re.Match[str]) -> str:
    return _LINE_START.sub("", _LINE_END.sub("\n", preformatted[1])).strip("\r\n")
