"""The main text of an HTML page, fast or well.

Fast: resiliparse, told to leave out what is not the page's own text. Quality: trafilatura set to
precision, checked against the fast text, which takes over where trafilatura took the wrong part
of a page. Both without the interface's lines (`data.extraction.boilerplate`).
"""

from __future__ import annotations

import html
import re

from resiliparse.extract.html2text import extract_plain_text

from data.extraction.boilerplate import drop_boilerplate
from data.extraction.layout import render

# Less text than this share of what the fast extractor sees is the wrong part of the page.
MIN_AGREED_FRAC = 0.25
TITLE_LINES = 3         # where a page's title may stand in its text
MIN_TITLE_CHARS = 10    # shorter lines begin titles by chance
TEMPLATE_DIVS, TEMPLATE_CHARS = 10, 20_000      # so many <div> so early: a site's template

_BODY = re.compile(r"<body[^>]*>", re.I)
_TITLES = re.compile(r"<(title|h1)\b[^>]*>(.{0,1000}?)</\1", re.I | re.S)
_PREFORMATTED = re.compile(r"<pre\b", re.I)
_BARE_PRE = re.compile(r"<pre\b[^>]*>(?!\s*<code)(.*?)</pre\s*>", re.I | re.S)
_TAG = re.compile(r"<[^>]*>")


def extract_fast(page: str) -> str:
    """Main text with paragraphs, lists, tables and preformatted text laid out."""
    # resiliparse takes embedded posts for share buttons, and lists close to the body for menus:
    # right for a site's template, wrong for a page written by hand.
    page = page.replace("twitter-tweet", "post")
    body = _BODY.search(page)
    if body:
        start = body.end()
        if page.count("<div", start, start + TEMPLATE_CHARS) < TEMPLATE_DIVS:
            page = f"{page[:start]}<div><div><div>{page[start:]}"
    return _tidy(extract_plain_text(page, main_content=True, alt_texts=False, comments=False,
                                    post_meta=False), page)


def extract_quality(page: str) -> str:
    """Main text without the title and readers' comments, laid out as the fast text is."""
    import trafilatura

    # Trafilatura takes preformatted text for a quotation, and loses its lines, unless it is code.
    marked = _BARE_PRE.sub(r"<pre><code>\1</code></pre>", page)
    document = trafilatura.bare_extraction(marked, favor_precision=True, include_comments=False)
    text = render(document.body) if document is not None else ""
    fast = extract_fast(page)
    if len(text) < MIN_AGREED_FRAC * len(fast):
        return fast
    return _tidy(_drop_title(text, page), page)


def _tidy(text: str, page: str) -> str:
    """No interface's lines; code, where a line may read like one, is left alone."""
    return text if _PREFORMATTED.search(page) else drop_boilerplate(text)


def _drop_title(text: str, page: str) -> str:
    """Trafilatura leaves out most titles; this leaves out the others."""
    titles = [_words(html.unescape(_TAG.sub("", title))) for _, title in _TITLES.findall(page)]
    lines = text.split("\n")
    return "\n".join(
        [line for line in lines[:TITLE_LINES]
         if len(_words(line)) <= MIN_TITLE_CHARS
         or not any(title.startswith(_words(line)) for title in titles)] + lines[TITLE_LINES:])


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
