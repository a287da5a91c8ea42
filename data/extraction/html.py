"""Main text of an HTML page, in two modes.

Fast: resiliparse, restricted to the main content. Quality: trafilatura, set to favour precision;
its text is replaced by the fast one when it is so much shorter that trafilatura selected the wrong
part of the page. Both without interface lines (`data.extraction.boilerplate`).
"""

from __future__ import annotations

import html
import re

from resiliparse.extract.html2text import extract_plain_text

from data.extraction.boilerplate import drop_boilerplate
from data.extraction.layout import render

# Less text than this share of the fast text means the wrong part of the page.
MIN_AGREED_FRAC = 0.25
TITLE_LINES = 3         # first lines of a text that may repeat the title
MIN_TITLE_CHARS = 10    # shorter lines match the start of a title by chance
TEMPLATE_DIVS, TEMPLATE_CHARS = 10, 20_000      # more <div>s near the start: a site's template

_BODY = re.compile(r"<body[^>]*>", re.I)
_TITLES = re.compile(r"<(title|h1)\b[^>]*>(.{0,1000}?)</\1", re.I | re.S)
_PREFORMATTED = re.compile(r"<pre\b", re.I)
_PRE = re.compile(r"<pre\b[^>]*>(.*?)</pre\s*>", re.I | re.S)
_LINE_START = re.compile(r"<(?:div|p|li|ol|ul|table|tbody|tr)\b[^>]*>", re.I)
_LINE_END = re.compile(r"<br\b[^>]*>|</(?:div|p|li|tr)\s*>\n?", re.I)
# Numbers of lines of code, in a cell of their own or in front of each line.
_LINE_NUMBERS = re.compile(
    r"<(td|th|span|a)\b[^>]*\bclass\s*=\s*[\"']?(?:[\w-]+ )*(?:linenos?|lineno|line-?numbers?|"
    r"gutter|blob-num|rouge-gutter|hljs-ln-numbers)\b[^>]*>(?:[\s\d]|</?(?:pre|code|div|span|br)\b"
    r"[^>]*>)*?</\1\s*>", re.I)
# Characters that no page has, as Unicode reserves them for programs. Two of them, because
# resiliparse drops text of a single character as an icon.
_MARK = "\ufdd0\ufdd1"
_TAG_OR_LINE_END = re.compile(r"<[^>]*>|\n")
_TAG = re.compile(r"<[^>]*>")


def extract_fast(page: str) -> str:
    """Main text with paragraphs, lists, tables and preformatted text laid out."""
    # resiliparse classifies embedded posts as share buttons, and lists close to the body as menus,
    # which is correct for a site's template but not for a hand-written page.
    page = page.replace("twitter-tweet", "post")
    is_preformatted = _PREFORMATTED.search(page)
    if is_preformatted:
        page = _PRE.sub(_in_one_line, _LINE_NUMBERS.sub("", page))
    body = _BODY.search(page)
    if body:
        start = body.end()
        if page.count("<div", start, start + TEMPLATE_CHARS) < TEMPLATE_DIVS:
            page = f"{page[:start]}<div><div><div>{page[start:]}"
    text = extract_plain_text(page, main_content=True, alt_texts=False, comments=False,
                              post_meta=False)
    return _in_lines(text) if is_preformatted else drop_boilerplate(text)


def extract_quality(page: str) -> str:
    """Main text without the title and readers' comments, in the layout of the fast text."""
    import trafilatura

    is_preformatted = _PREFORMATTED.search(page)
    marked = _PRE.sub(_as_code, _LINE_NUMBERS.sub("", page)) if is_preformatted else page
    document = trafilatura.bare_extraction(marked, favor_precision=True, include_comments=False)
    text = render(document.body) if document is not None else ""
    fast = extract_fast(page)
    if len(text) < MIN_AGREED_FRAC * len(fast):
        return fast
    text = _drop_title(text, page)
    # The lines of code may look like those of the interface.
    return text if is_preformatted else drop_boilerplate(text)


def _as_code(preformatted: re.Match[str]) -> str:
    """Code, since trafilatura joins the lines of other preformatted text."""
    content = _lines_of(preformatted)
    return f"<pre>{content}</pre>" if "<code" in content else f"<pre><code>{content}</code></pre>"


def _in_one_line(preformatted: re.Match[str]) -> str:
    """Marks for line ends, since resiliparse indents some of the lines in a list."""
    content = _TAG_OR_LINE_END.sub(lambda part: _MARK if part[0] == "\n" else part[0],
                                   _lines_of(preformatted))
    return f"<pre>{_MARK}{content}</pre>"


def _in_lines(text: str) -> str:
    """Line ends for marks; all lines are indented like the first, which may follow a bullet."""
    lines = []
    for line in text.split("\n"):
        before, *code = line.rstrip(_MARK).split(_MARK)
        if code and before.strip() and not before.endswith("• "):
            lines.append(before)
            before = ""
        hanging = " " * len(before)
        lines += [f"{hanging if number else before}{part}" for number, part in enumerate(code)] or [
            before]
    return "\n".join(lines)


def _lines_of(preformatted: re.Match[str]) -> str:
    content = _LINE_START.sub("", _LINE_END.sub("\n", preformatted[1]))
    return content.strip("\r\n")


def _drop_title(text: str, page: str) -> str:
    """Drops the titles that trafilatura keeps."""
    titles = [_words(html.unescape(_TAG.sub("", title))) for _, title in _TITLES.findall(page)]
    lines = text.split("\n")
    return "\n".join(
        [line for line in lines[:TITLE_LINES]
         if len(_words(line)) <= MIN_TITLE_CHARS
         or not any(title.startswith(_words(line)) for title in titles)] + lines[TITLE_LINES:])


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
