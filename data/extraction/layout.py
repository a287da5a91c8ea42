"""Renders trafilatura's tree as text in the layout of the fast extractor.

Trafilatura's own writers drop the blank lines of code and the numbers of lists, or mark up prose.
"""

from __future__ import annotations

from typing import Any

_BLOCKS = {"p", "head", "list", "item", "quote", "code", "table", "row", "main", "body", "div",
           "figure"}
_TIGHT = {"item", "row"}        # no blank line before them
_CELL_GAP = "\t\t"


def render(body: Any) -> str:
    """Separates paragraphs by blank lines and table cells by tabs; adds bullets and numbers.

    Args:
        body: lxml element of trafilatura's vocabulary (p, head, list, item, table, row, cell,
            code, quote, lb, and inline elements).
    """
    from lxml import etree

    page = _Page()
    # Not recursive: the nesting depth of a page is unbounded.
    for event, element in etree.iterwalk(body, events=("start", "end")):
        if event == "start":
            page.open(element)
            page.write(element.text)
        else:
            page.close(element)
            if element is not body:
                page.write(element.tail)
    return page.text()


class _Page:
    """The finished lines and the current line."""

    def __init__(self):
        self._lines: list[str] = []
        self._inline: list[str] = []
        self._lists: list[int] = []         # per open list the number of the next item, or -1
        self._bullet = ""                   # of an item whose first line is not written yet
        self._code_depth = 0
        self._cell_depth = 0

    def open(self, element: Any) -> None:
        tag = element.tag
        if tag == "lb":
            self._inline.append("\n")
        elif tag == "cell":
            self._cell_depth += 1
            self._inline.append(_CELL_GAP if element.getprevious() is not None else "")
        elif self._cell_depth:
            self._inline.append(" ")        # a row is always one line
        elif _is_block(element):
            self._end_line()
            if tag not in _TIGHT and not (tag == "list" and self._lists) and not self._bullet:
                self._gap()
        if self._cell_depth:
            return
        if tag == "list":
            self._lists.append(1 if element.get("rend") == "ol" else -1)
        elif tag == "item":
            self._bullet = self._next_bullet()
        elif tag == "code":
            self._code_depth += 1

    def close(self, element: Any) -> None:
        if element.tag == "cell":
            self._cell_depth -= 1
        if self._cell_depth or element.tag == "cell":
            return
        if _is_block(element):
            self._end_line()
        if element.tag == "code":
            self._code_depth -= 1
        elif element.tag == "list":
            self._lists.pop()
        if _is_block(element) and element.tag not in _TIGHT and not self._lists:
            self._gap()

    def write(self, text: str | None) -> None:
        if text:
            self._inline.append(text if self._code_depth else " ".join(f"|{text}|".split())[1:-1])

    def text(self) -> str:
        self._end_line()
        return "\n".join(self._lines)

    def _gap(self) -> None:
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def _next_bullet(self) -> str:
        if not self._lists or self._lists[-1] < 0:
            return "• "
        self._lists[-1] += 1
        return f"{self._lists[-1] - 1}. "

    def _end_line(self) -> None:
        text = "".join(self._inline)
        self._inline.clear()
        if not text.strip():
            return
        indent = "  " * len(self._lists)
        lines = text.strip("\n").split("\n")
        if not self._code_depth:
            lines = [line.strip(" ") for line in lines if line.strip()]
        self._lines.append(f"{indent}{self._bullet}{lines[0]}")
        self._lines += [f"{indent}{'  ' if self._lists else ''}{line}" for line in lines[1:]]
        self._bullet = ""


def _is_block(element: Any) -> bool:
    """Code is a block when it has several lines."""
    if element.tag == "code":
        return "\n" in "".join(element.itertext()).strip()
    return element.tag in _BLOCKS
