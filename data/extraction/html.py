"""Main text of an HTML page, in two modes.

Fast: resiliparse, restricted to the main content. Quality: trafilatura, set to favour precision,
with the paragraphs that it has missed; its text is replaced by the fast one when it is so much
shorter that trafilatura selected the wrong part of the page. Both without the title and what
precedes it, captions, and interface lines (`data.extraction.boilerplate`).
"""

from __future__ import annotations

import re

from resiliparse.extract.html2text import extract_plain_text

from data.extraction.boilerplate import drop_boilerplate, drop_head
from data.extraction.layout import render
from data.extraction.paragraphs import prose_only, restore
from data.extraction.preformatted import mark_as_code, mark_line_ends, restore_line_ends

# Less text than this share of the fast text means the wrong part of the page.
MIN_AGREED_FRAC = 0.5
# Texts this short, and shorter than this share of the page's prose, are replaced by it.
SHORT_CHARS, MIN_PROSE_FRAC = 1000, 0.2
# When both texts have fewer characters, trafilatura's balanced text is preferred if it has so many
# times as many.
MIN_CHARS, MIN_GAIN = 300, 4
TEMPLATE_DIVS, TEMPLATE_CHARS = 10, 20_000      # more <div>s near the start: a site's template

_BODY = re.compile(r"<body[^>]*>", re.I)
_PREFORMATTED = re.compile(r"<pre\b", re.I)
# Beside what resiliparse recognises. What holds the main heading is no footer, whatever its name.
_NO_MAIN_TEXT = ["figcaption", *(
    f"[class*='{part}']:not(:has(h1))" for part in (
        "caption", "Caption", "footer", "Footer", "related", "Related", "recommend")),
    "[id*='footer']:not(:has(h1))"]
_NO_PROSE = ["nav", "footer", "aside", "form", "button", "select", "figcaption",
             "[class*='comment']", "[id*='comment']"]


def extract_fast(page: str) -> str:
    """Main text with paragraphs, lists, tables and preformatted text laid out."""
    # resiliparse classifies embedded posts as share buttons, and lists close to the body as menus,
    # which is correct for a site's template but not for a hand-written page.
    page = page.replace("twitter-tweet", "post")
    is_preformatted = _PREFORMATTED.search(page)
    marked = mark_line_ends(page) if is_preformatted else page
    body = _BODY.search(marked)
    if body:
        start = body.end()
        if marked.count("<div", start, start + TEMPLATE_CHARS) < TEMPLATE_DIVS:
            marked = f"{marked[:start]}<div><div><div>{marked[start:]}"
    text = drop_head(extract_plain_text(
        marked, main_content=True, alt_texts=False, comments=False, post_meta=False,
        skip_elements=_NO_MAIN_TEXT), page)
    if is_preformatted:     # the lines of code may look like those of the interface
        return restore_line_ends(text)
    text = drop_boilerplate(text)
    if len(text) < SHORT_CHARS:
        prose = drop_head(drop_boilerplate(prose_only(extract_plain_text(
            page, alt_texts=False, skip_elements=_NO_PROSE))), page)
        if len(text) < MIN_PROSE_FRAC * len(prose):
            return prose
    return text


def extract_quality(page: str) -> str:
    """Main text without readers' comments, in the layout of the fast text."""
    is_preformatted = _PREFORMATTED.search(page)
    marked = mark_as_code(page) if is_preformatted else page
    text, fast = _by_trafilatura(marked, favor_precision=True), extract_fast(page)
    if max(len(text), len(fast)) < MIN_CHARS:
        balanced = _by_trafilatura(marked)
        if len(balanced) > MIN_GAIN * max(len(text), len(fast)):
            text = balanced
    if len(text) < MIN_AGREED_FRAC * len(fast):
        return fast
    text = drop_head(text, page)
    return text if is_preformatted else drop_boilerplate(restore(text, fast, page))


def _by_trafilatura(page: str, **options: bool) -> str:
    import trafilatura

    document = trafilatura.bare_extraction(page, include_comments=False, **options)
    return "" if document is None else render(document.body)
