"""Extracts the text of pydoc's HTML pages.

Their layout is made of `&nbsp;`, `<br>` and nested tables, from which a general extractor does not
recover the indentation that separates a signature from its docstring.
"""

from __future__ import annotations

import html
import re

TITLE = "<title>Python: "
_TITLE_CHARS = 500      # the title is in the first lines of a page

_TAG = re.compile(r"<[^>]*>")
_NAVIGATION = re.compile(
    r'<td class="extra">.*?</td>'                                       # index, file, reference
    r'|<table class="section">\s*<tr class="decor (?:pkg-content|index)-decor heading-text">\s*'
    r'<td class="section-title" colspan=3>[^\n]*bigsection">(?:Modules|Package Contents|Classes)<'
    r'.*?(?=<table class="section">|</body>)'
    r"|<dl><dt>Method resolution order:</dt>.*?</dl>", re.S)
_INHERITED = re.compile(
    r"<hr>\s*(?:Static methods|Class methods|Methods|Data descriptors|Readonly properties|"
    r"Data and other attributes) inherited from .*?(?=<hr>\n|</td></tr></table>)", re.S)
_SLOTS = re.compile(         # members of every object, e.g. `list of weak references ...`
    r'<dl><dt>(?:<a name="[\w.-]*">)?<strong>__\w+__</strong>(?:</a>)?[^\n]*?</dt>\s*'
    r'<dd>(?:<span class="code">)?(?:Initialize&nbsp;self\.|Return&nbsp;|Call&nbsp;self&nbsp;|'
    r'list&nbsp;of&nbsp;weak|dictionary&nbsp;for&nbsp;instance|Implement&nbsp;)[^\n]*?</dd>\s*</dl>')
_DOC = re.compile(r'<dd><span class="code">(.*?)</span></dd>', re.S)
_BREAKS = re.compile(r"<br>\n?|</td></tr>|<hr>|<dl>|<p>")
# The line before the docstring of a class, e.g. `Fraction(numerator=0)`.
_CONSTRUCTOR = re.compile(r'(?<=colspan=2><span class="code">)(?:<a [^>]*>)?\w+(?:</a>)?\([^\n]*')
_ESCAPED_TWICE = re.compile(r"&amp;(?=(?:amp|lt|gt);)")


def is_pydoc(page: str) -> bool:
    """Whether the page was written by pydoc."""
    return TITLE in page[:_TITLE_CHARS]


def extract_pydoc(page: str) -> str:
    """Documentation of a pydoc page: docstrings indented below their signatures.

    Drops navigation: links to other pages, class trees and inherited members.
    """
    body = page[page.find("<body>"):]
    for boilerplate in (_NAVIGATION, _INHERITED, _SLOTS):
        body = boilerplate.sub("", body)
    body = _CONSTRUCTOR.sub(lambda line: _ESCAPED_TWICE.sub("&", line[0]), body)
    body = _DOC.sub(_indent, body)
    text = html.unescape(_TAG.sub("", _BREAKS.sub("\n", body.replace("&nbsp;", " "))))
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    text = text.replace("(builtins.object)\n", "\n")
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _indent(doc: re.Match[str]) -> str:
    lines = doc[1].split("<br>\n")
    return "<br>\n" + "<br>\n".join(f"    {line}" for line in lines)
