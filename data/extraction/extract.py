"""Extracts the text of a page.

HTML is reduced to its main text (`data.extraction.html`), with formulas in LaTeX; pydoc's pages
have a separate converter. Other text keeps its layout.
"""

from __future__ import annotations

from data.extraction.encoding import decode
from data.extraction.formulas import write_formulas
from data.extraction.html import extract_fast, extract_quality
from data.extraction.normalise import normalise
from data.extraction.pydoc import extract_pydoc, is_pydoc

MODES = {"fast": extract_fast, "quality": extract_quality}
HTML_TYPES = ("text/html", "application/xhtml")


def extract(content: bytes | str, content_type: str, *, mode: str = "fast",
            emoji_names: bool = False, punctuation: bool = False) -> str:
    """The normalised main text of an HTML page, or any other text, normalised.

    Args:
        content: bytes of unknown encoding, or text.
        content_type: media type with its parameters, e.g. ``text/html; charset=koi8-r``.
        mode: "fast" or "quality"; applies to HTML only.
        emoji_names, punctuation: see `data.extraction.normalise`.

    Returns:
        NFC text; empty when the page has none.
    """
    text = content if isinstance(content, str) else decode(content, content_type)
    if content_type.lower().startswith(HTML_TYPES):
        text = extract_pydoc(text) if is_pydoc(text) else MODES[mode](write_formulas(text))
    return normalise(text, emoji_names=emoji_names, punctuation=punctuation)


def prepare(mode: str) -> None:
    """Imports what a mode needs, so that its time does not count towards a page."""
    if mode == "quality":
        import trafilatura  # noqa: F401
