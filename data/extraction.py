"""From page bytes to clean text.

HTML goes through resiliparse's main-content extraction. pydoc's pages have a converter of their
own: they write layout as `&nbsp;` and `<br>` and nest it in tables, where a general extractor
loses the indentation that tells a signature from its docstring.
"""

from __future__ import annotations

import html
import re
import unicodedata

import ftfy
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

ENCODING_SAMPLE_BYTES = 64 << 10
HTML_TYPES = ("text/html", "application/xhtml")

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff]")
SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
BLANK_LINES = re.compile(r"\n{4,}")
# UTF-8 that was read as a Western single-byte encoding: a lead byte, then a continuation byte.
MOJIBAKE = re.compile(r"[ÂÃâ][\x80-\xbf\u20ac\u2013\u2014\u2018-\u201e\u2022\u2026\u2122]|ï»¿")

PYDOC_TITLE = "<title>Python: "
_TAG = re.compile(r"<[^>]*>")
_PYDOC_NAVIGATION = re.compile(
    r'<td class="extra">.*?</td>'                                       # index, file, reference
    r'|<table class="section">\s*<tr class="decor (?:pkg-content|index)-decor heading-text">\s*'
    r'<td class="section-title" colspan=3>[^\n]*bigsection">(?:Modules|Package Contents|Classes)<'
    r'.*?(?=<table class="section">|</body>)'
    r"|<dl><dt>Method resolution order:</dt>.*?</dl>", re.S)
_PYDOC_INHERITED = re.compile(
    r"<hr>\s*(?:Static methods|Class methods|Methods|Data descriptors|Readonly properties|"
    r"Data and other attributes) inherited from .*?(?=<hr>\n|</td></tr></table>)", re.S)
_PYDOC_SLOTS = re.compile(         # what every object has, e.g. `list of weak references ...`
    r'<dl><dt>(?:<a name="[\w.-]*">)?<strong>__\w+__</strong>(?:</a>)?[^\n]*?</dt>\s*'
    r'<dd>(?:<span class="code">)?(?:Initialize&nbsp;self\.|Return&nbsp;|Call&nbsp;self&nbsp;|'
    r'list&nbsp;of&nbsp;weak|dictionary&nbsp;for&nbsp;instance|Implement&nbsp;)[^\n]*?</dd>\s*</dl>')
_PYDOC_DOC = re.compile(r'<dd><span class="code">(.*?)</span></dd>', re.S)
_PYDOC_BREAKS = re.compile(r"<br>\n?|</td></tr>|<hr>|<dl>|<p>")


def extract(content: bytes | str, content_type: str) -> str:
    """The main text of an HTML page, or any other text as it is; cleaned.

    Args:
        content: bytes of unknown encoding, or text.
        content_type: media type, e.g. ``text/html``; what is not HTML keeps its layout.

    Returns:
        NFC text; see `clean`. Empty when the page holds no text.
    """
    text = content if isinstance(content, str) else decode(content)
    if not content_type.startswith(HTML_TYPES):
        return clean(text)
    if PYDOC_TITLE in text[:500]:
        return clean(_extract_pydoc(text))
    return clean(extract_plain_text(text, main_content=True, alt_texts=False))


def decode(content: bytes) -> str:
    """Bytes as text: UTF-8 when they are, else by the detector's guess, never failing."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return bytes_to_str(content, detect_encoding(content[:ENCODING_SAMPLE_BYTES]))


def clean(text: str) -> str:
    """Mends and normalises text without touching its layout.

    NFC, mojibake repaired, plain spaces, ``\\n`` line ends, no control characters, no trailing
    spaces, at most two blank lines in a row, none at either end.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        if MOJIBAKE.search(text):
            text = ftfy.fix_encoding(text)      # 1.6 MB/s: only where the cheap test fires
        text = SPACES.sub(" ", unicodedata.normalize("NFC", text))
    text = _strip_lines(CONTROL.sub("", text))
    return BLANK_LINES.sub("\n\n\n", text).strip("\n")


def _strip_lines(text: str) -> str:
    return "\n".join([line.rstrip() for line in text.split("\n")])


def _extract_pydoc(page: str) -> str:
    """Documentation of a pydoc page: docstrings indented below their signatures.

    Links to other pages, class trees, and all that a class only inherits are navigation.
    """
    body = page[page.find("<body>"):]
    for boilerplate in (_PYDOC_NAVIGATION, _PYDOC_INHERITED, _PYDOC_SLOTS):
        body = boilerplate.sub("", body)
    body = _PYDOC_DOC.sub(_indent, body)
    text = html.unescape(_TAG.sub("", _PYDOC_BREAKS.sub("\n", body.replace("&nbsp;", " "))))
    text = html.unescape(text)  # pydoc escapes default values of signatures twice
    text = _strip_lines(text.replace("(builtins.object)\n", "\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _indent(doc: re.Match[str]) -> str:
    lines = doc[1].split("<br>\n")
    return "<br>\n" + "<br>\n".join(f"    {line}" for line in lines)
