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
        self._is_broken = False             # the next text of the cell begins a line

    def open(self, element: Any) -> None:
        tag = element.tag
        is_block = _is_block(element)
        if tag == "lb":
            self._inline.append("\n")
        elif tag == "cell":
            self._cell_depth += 1
            self._is_broken = False
            self._inline.append(_CELL_GAP if element.getprevious() is not None else "")
        elif is_block and self._cell_depth and tag != "code":
            self._is_broken = True
        elif is_block:
            self._end_line()
            if not (self._cell_depth or tag in _TIGHT or self._bullet
                    or (tag == "list" and self._lists)):
                self._gap()
        if tag == "code":
            self._code_depth += 1
        elif self._cell_depth:
            return
        elif tag == "list":
            self._lists.append(1 if element.get("rend") == "ol" else -1)
        elif tag == "item":
            self._bullet = self._next_bullet()

    def close(self, element: Any) -> None:
        tag = element.tag
        is_block = _is_block(element)
        if tag == "cell":
            self._cell_depth -= 1
            self._is_broken = False
        if is_block and (tag == "code" or not self._cell_depth):
            self._end_line()
        if tag == "code":
            self._code_depth -= 1
        if self._cell_depth:
            self._is_broken |= is_block
        if self._cell_depth or tag == "cell":
            return
        if tag == "list":
            self._lists.pop()
        if is_block and tag not in _TIGHT and not self._lists:
            self._gap()

    def write(self, text: str | None) -> None:
        if not text:
            return
        if self._is_broken and text.strip():
            self._is_broken = False
            if "".join(self._inline).strip(" ")[-1:] not in ("", "\t"):     # not a cell's first
                self._inline.append("\n")
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
        lines = text.strip("\n").split("\n")
        if not self._code_depth:
            lines = [line.strip(" ") for line in lines if line.strip()]
        indent = "  " * len(self._lists)
        hanging = f"{indent}  " if self._lists else ""
        self._lines.append((f"{indent}{self._bullet}" if self._bullet else hanging) + lines[0])
        self._lines += [f"{hanging}{line}" for line in lines[1:]]
        self._bullet = ""


def _is_block(element: Any) -> bool:
    """Code is a block when it has several lines."""
    if element.tag == "code":
        return "\n" in "".join(element.itertext()).strip()
    return element.tag in _BLOCKS
