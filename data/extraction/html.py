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
_BARE_PRE = re.compile(r"<pre\b[^>]*>(?!\s*<code)(.*?)</pre\s*>", re.I | re.S)
_TAG = re.compile(r"<[^>]*>")


def extract_fast(page: str) -> str:
    """Main text with paragraphs, lists, tables and preformatted text laid out."""
    # resiliparse classifies embedded posts as share buttons, and lists close to the body as menus,
    # which is correct for a site's template but not for a hand-written page.
    page = page.replace("twitter-tweet", "post")
    body = _BODY.search(page)
    if body:
        start = body.end()
        if page.count("<div", start, start + TEMPLATE_CHARS) < TEMPLATE_DIVS:
            page = f"{page[:start]}<div><div><div>{page[start:]}"
    return _tidy(extract_plain_text(page, main_content=True, alt_texts=False, comments=False,
                                    post_meta=False), page)


def extract_quality(page: str) -> str:
    """Main text without the title and readers' comments, in the layout of the fast text."""
    import trafilatura

    # Trafilatura treats preformatted text other than code as a quotation and joins its lines.
    marked = _BARE_PRE.sub(r"<pre><code>\1</code></pre>", page)
    document = trafilatura.bare_extraction(marked, favor_precision=True, include_comments=False)
    text = render(document.body) if document is not None else ""
    fast = extract_fast(page)
    if len(text) < MIN_AGREED_FRAC * len(fast):
        return fast
    return _tidy(_drop_title(text, page), page)


def _tidy(text: str, page: str) -> str:
    """Drops interface lines, except from pages with code, whose lines may look like them."""
    return text if _PREFORMATTED.search(page) else drop_boilerplate(text)


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
