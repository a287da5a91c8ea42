"""Bytes of unknown encoding as text.

What bytes are goes before what they are said to be: text that decodes as UTF-8 is UTF-8, whatever
a server's default header claims. Then come the declarations, and a detector for the rest
(encoding.spec.whatwg.org for labels; HTML's own rules trust the header more than the web earns).
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

SAMPLE_BYTES = 64 << 10         # that the detector reads
DECLARATION_BYTES = 4 << 10     # within which a page declares its encoding
BROKEN_FRAC = 0.1               # broken characters for one sound one that UTF-8 may hold

_BYTE_ORDER_MARKS = (           # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"))
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.I | re.A)
_META_CHARSET = re.compile(
    rb"""<meta\b[^>]*\bcharset\s*=\s*["']?\s*([\w.:-]+)"""
    rb"""|<\?xml\b[^>]*\bencoding\s*=\s*["']([\w.:-]+)""", re.I)
_DEFAULT = "cp1252"             # what servers declare without looking
# Python's codecs are stricter than the browsers': what they call by the same name holds more.
_SUPERSETS = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
              "iso8859-11": "cp874", "koi8-r": "koi8-u"}
_SHIFT_TO_JAPANESE = (b"\x1b$B", b"\x1b$@")


def decode(content: bytes, content_type: str = "") -> str:
    """Bytes as text, never failing: what no encoding explains becomes U+FFFD.

    Args:
        content: an HTML page, or any text.
        content_type: its media type, of which the ``charset`` parameter is a hint.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content[len(mark):].decode(encoding, "replace")
    if b"\0" in content[:DECLARATION_BYTES]:
        encoding = _wide_encoding(content[:DECLARATION_BYTES])
        if encoding:
            return content.decode(encoding, "replace")
    if b"\x1b" in content and any(shift in content for shift in _SHIFT_TO_JAPANESE):
        text = _try(content, "iso2022_jp_2")
        if text is not None:
            return text
    text = _try(content, "utf-8")
    if text is not None:
        return text
    text = content.decode("utf-8", "replace")
    num_broken = text.count("\ufffd")
    # A sound character beyond ASCII takes more bytes than one, a broken one takes about one.
    if num_broken <= BROKEN_FRAC * (len(content) - len(text)):
        return text
    for encoding in _declared(content, content_type):
        text = _try(content, encoding)
        if text is not None:
            return text
    return content.decode(_detect(content), "replace")


def _detect(content: bytes) -> str:
    """The detector's guess, from the first character beyond ASCII on."""
    start = _BEYOND_ASCII.search(content).start()
    guess = detect_encoding(content[start:start + SAMPLE_BYTES], html5_compatible=False)
    codec = guess and (_codec(guess) or guess)
    try:
        # It says UTF-8 when it has no idea; that was tried.
        return _DEFAULT if codec in (None, "utf-8") else codecs.lookup(codec).name
    except LookupError:     # it knows more encodings than Python does
        return _DEFAULT


def _wide_encoding(sample: bytes) -> str | None:
    """UTF-16 without a mark, told by the zeros of its ASCII characters."""
    num_even, num_odd = sample[::2].count(0), sample[1::2].count(0)
    if max(num_even, num_odd) < len(sample) // 8 or 8 * min(num_even, num_odd) > len(sample) // 8:
        return None
    return "utf-16-le" if num_odd > num_even else "utf-16-be"


def _declared(content: bytes, content_type: str) -> list[str]:
    """Encodings that the header and the page declare, the likelier first."""
    header = _label(content_type)
    match = _META_CHARSET.search(content[:DECLARATION_BYTES])
    page = _codec((match[1] or match[2]).decode("ascii", "replace")) if match else None
    if page and page.startswith("utf-16"):
        page = None     # a declaration that can be read as ASCII is in no UTF-16
    order = (page, header) if header == _DEFAULT else (header, page)
    return [encoding for encoding in order if encoding]


def _label(content_type: str) -> str | None:
    match = _HEADER_CHARSET.search(content_type)
    return _codec(match[1]) if match else None


def _codec(label: str) -> str | None:
    """Python's codec for a label of the web; None for one that browsers do not know."""
    codec = map_encoding_to_html5(label, fallback_utf8=False)
    return _SUPERSETS.get(codec, codec)


def _try(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        return None
