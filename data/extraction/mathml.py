"""Translates MathML into LaTeX, for formulas whose source a page does not carry.

Symbols stay as Unicode characters, which LaTeX engines of today read.
"""

from __future__ import annotations

import re
from typing import Any

from resiliparse.parse.html import HTMLTree, NodeType

MAX_DEPTH = 50      # of nested elements; what is nested deeper is written without arrangement

_PREFIX = re.compile(r"(</?)\w+:")
_INVISIBLE = re.compile("[\u200b\u2061-\u2064]")
_BRACES = str.maketrans({"{": "\\{", "}": "\\}"})
# By element the number of its arguments and their arrangement.
_ARRANGED = {
    "msup": (2, "{0}^{{{1}}}"), "msub": (2, "{0}_{{{1}}}"), "msubsup": (3, "{0}_{{{1}}}^{{{2}}}"),
    "mover": (2, "{0}^{{{1}}}"), "munder": (2, "{0}_{{{1}}}"),
    "munderover": (3, "{0}_{{{1}}}^{{{2}}}"),
    "mfrac": (2, "\\frac{{{0}}}{{{1}}}"), "mroot": (2, "\\sqrt[{1}]{{{0}}}"),
}
_ACCENTS = {"^": "hat", "ˆ": "hat", "¯": "bar", "‾": "bar", "~": "tilde", "˜": "tilde", "→": "vec",
            "⃗": "vec", "˙": "dot", ".": "dot", "¨": "ddot"}
_SOURCES = ("annotation", "annotation-xml")


def to_latex(content: str) -> str:
    """LaTeX of what is inside of a ``<math>`` element; prefixes of its names are ignored."""
    content = _PREFIX.sub(r"\1", content)
    return _write(HTMLTree.parse(f"<math>{content}</math>").body, 0).strip()


def _write(node: Any, depth: int) -> str:
    if node.type == NodeType.TEXT:
        return _INVISIBLE.sub("", " ".join(node.text.split())).translate(_BRACES)
    if node.type != NodeType.ELEMENT or node.tag in _SOURCES:
        return ""
    if depth > MAX_DEPTH:
        return node.text
    children = [child for child in node.child_nodes if child.type == NodeType.ELEMENT]
    count, pattern = _ARRANGED.get(node.tag, (0, ""))
    if count and count == len(children):
        return _arrange(node.tag, pattern, [_write(child, depth + 1) for child in children])
    parts = [_write(child, depth + 1) for child in node.child_nodes]
    match node.tag:
        case "msqrt":
            return f"\\sqrt{{{''.join(parts)}}}"
        case "mtext":
            return f"\\text{{{''.join(parts)}}}"
        case "mfenced":
            inner = ", ".join(filter(None, parts))
            return f"{node.getattr('open') or '('}{inner}{node.getattr('close') or ')'}"
        case "mtable":
            rows = ' \\\\ '.join(filter(None, parts))
            return f"\\begin{{matrix}}{rows}\\end{{matrix}}"
        case "mtr":
            return " & ".join(filter(None, parts))
        case "mspace":
            return " "
    return "".join(parts)


def _arrange(tag: str, pattern: str, arguments: list[str]) -> str:
    base, mark = arguments[:2]
    if tag == "mover" and mark in _ACCENTS:
        return f"\\{_ACCENTS[mark]}{{{base}}}"
    if tag in ("msub", "msup", "msubsup") and not re.fullmatch(r"[\w.,]*|\S", base):
        base = f"{{{base}}}"        # else the index would refer to its last symbol
    return pattern.format(base, *arguments[1:])
