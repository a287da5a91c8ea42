"""Decodes bytes of unknown encoding, whose declaration is often only a default of the server.

In this order, the first that fits:

1. a byte order mark;
2. what the bytes show beyond doubt: UTF-16 by its zeros, ISO-2022-JP by its escapes, valid UTF-8,
   and UTF-8 with a few broken bytes;
3. the encodings that server and page declare (labels as in encoding.spec.whatwg.org). Of two, a
   mere default (ISO-8859-1, Windows-1252) gives way, else the server's if a detector finds the
   page's, else the page's. A default alone gives way to the detector if most bytes beyond ASCII
   form words, as in no Western language;
4. the detector.

An encoding in which more than a few bytes are invalid does not fit.
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

SAMPLE_BYTES = 64 << 10         # read by the detector
DECLARATION_BYTES = 4 << 10     # searched for a declaration
FOREIGN_RUN = 4                 # bytes beyond ASCII in a row that no word of a Western language has
BROKEN_FRAC = 0.1               # maximum ratio of invalid to valid non-ASCII characters

_BYTE_ORDER_MARKS = (           # UTF-32-LE's begins with UTF-16-LE's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"))
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]+)""", re.I | re.A)
_META_CHARSET = re.compile(
    rb"""<meta\b[^>]*\bcharset\s*=\s*["']?\s*([\w.:-]+)"""
    rb"""|<\?xml\b[^>]*\bencoding\s*=\s*["']([\w.:-]+)""", re.I)
_BEYOND_ASCII_ALONE = b" " * 128 + b"x" * 128
_DEFAULT = "cp1252"             # the usual default of servers
_LATIN = {_DEFAULT, "cp1250", "cp1254", "cp1257", "cp1258", "cp437", "cp850", "mac-roman",
          *(f"iso8859-{part}" for part in (1, 2, 3, 4, 9, 10, 13, 14, 15, 16))}
# Browsers decode these labels as supersets of Python's codecs of the same name.
_SUPERSETS = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
              "iso8859-11": "cp874", "koi8-r": "koi8-u"}
_SHIFT_TO_JAPANESE = (b"\x1b$B", b"\x1b$@")


def decode(content: bytes, content_type: str = "") -> str:
    """Decodes bytes; undecodable ones become U+FFFD.

    Args:
        content: an HTML page, or any text.
        content_type: its media type, whose ``charset`` parameter is a hint.
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
    # A valid non-ASCII character takes two bytes or more, an invalid one about one.
    if num_broken <= BROKEN_FRAC * (len(content) - len(text)):
        return text
    for encoding in _declared(content, content_type):
        text = _try(content, encoding, max_broken_frac=BROKEN_FRAC * (encoding != _DEFAULT))
        if text is not None:
            return text
    return content.decode(_detect(content), "replace")


def _detect(content: bytes) -> str:
    """The detector's guess on the content from the first non-ASCII byte."""
    start = _BEYOND_ASCII.search(content).start()
    guess = detect_encoding(content[start:start + SAMPLE_BYTES], html5_compatible=False)
    codec = guess and (_codec(guess) or guess)
    try:
        # UTF-8 is its default, and has been tried.
        return _DEFAULT if codec in (None, "utf-8") else codecs.lookup(codec).name
    except LookupError:     # an encoding that Python lacks
        return _DEFAULT


def _wide_encoding(sample: bytes) -> str | None:
    """Detects UTF-16 without a byte order mark by the zero bytes of ASCII characters."""
    num_even, num_odd = sample[::2].count(0), sample[1::2].count(0)
    if max(num_even, num_odd) < len(sample) // 8 or 8 * min(num_even, num_odd) > len(sample) // 8:
        return None
    return "utf-16-le" if num_odd > num_even else "utf-16-be"


def _declared(content: bytes, content_type: str) -> list[str]:
    """Encodings declared by the header and the page, the likelier first."""
    header = _label(content_type)
    match = _META_CHARSET.search(content[:DECLARATION_BYTES])
    page = _codec((match[1] or match[2]).decode("ascii", "replace")) if match else None
    if page and page.startswith("utf-16"):
        page = None     # a declaration readable as ASCII is not UTF-16
    given = [encoding for encoding in (header, page) if encoding]
    if given and set(given) == {_DEFAULT} and _is_foreign(content):
        guess = _detect(content)
        return given if guess in _LATIN else [guess]
    if len(set(given)) == 2 and (header == _DEFAULT or (
            page != _DEFAULT and codecs.lookup(page).name == _detect(content))):
        return [page, header]
    return given


def _is_foreign(content: bytes) -> bool:
    """Whether most bytes beyond ASCII form words, as in scripts other than Latin."""
    lengths = [len(run) for run in content.translate(_BEYOND_ASCII_ALONE).split()]
    return 2 * sum(length for length in lengths if length >= FOREIGN_RUN) > sum(lengths)


def _label(content_type: str) -> str | None:
    match = _HEADER_CHARSET.search(content_type)
    return _codec(match[1]) if match else None


def _codec(label: str) -> str | None:
    """Python's codec for a web label; None for a label unknown to browsers."""
    codec = map_encoding_to_html5(label, fallback_utf8=False)
    return _SUPERSETS.get(codec, codec)


def _try(content: bytes, encoding: str, max_broken_frac: float = 0.0) -> str | None:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if not max_broken_frac:
            return None
    text = content.decode(encoding, "replace")
    num_beyond = len(text) - len(text.encode("ascii", "ignore"))
    num_broken = text.count("\ufffd")
    return text if num_broken <= max_broken_frac * (num_beyond - num_broken) else None
