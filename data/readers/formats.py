"""Formats of bytes by how they begin: those that are no text, and HTML."""

from __future__ import annotations

import re

SAMPLE_BYTES = 1024
_LEADING = b"\xef\xbb\xbf \t\r\n\f"     # byte order mark of UTF-8, and space

# Signatures of https://mimesniff.spec.whatwg.org and of file(1); short ones that words of a text
# may begin with are left out, since such files hold zero bytes (`data.readers.records.is_binary`).
MAGICS = {
    "PDF": (rb"%PDF-\d", rb"%FDF-\d"),
    "RTF": (rb"\{\\rtf\d?",),
    "PostScript": (rb"\x04?%!PS-Adobe", rb"\xc5\xd0\xd3\xc6"),
    "ZIP or Office": (rb"PK(?:\x03\x04|\x05\x06|\x07\x08)", rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    "an image": (rb"GIF8[79]a", rb"\x89PNG\r\n\x1a\n", rb"\xff\xd8\xff", rb"II\*\0", rb"MM\0\*",
                 rb"RIFF.{4}WEBP", rb"8BPS\0", rb"AT&TFORM", rb"\0\0\x01\0", rb"\0\0\0\x0cjP",
                 rb"BM.{4}\0\0\0\0"),
    "audio or video": (rb"RIFF.{4}(?:WAVE|AVI )", rb"ID3[\x02-\x04]\0", rb"OggS\0", rb"fLaC\0",
                       rb"\0.{3}ftyp", rb"\x1aE\xdf\xa3", rb"FLV\x01", rb"[CFZ]WS[\x03-\x30].{3}\0",
                       rb"MThd\0", rb"\0\0\x01[\xb3\xba]"),
    "a font": (rb"wOF[F2]", rb"OTTO\0", rb"\0\x01\0\0\0", rb"ttcf\0"),
    "an executable": (rb"\x7fELF", rb"\xca\xfe\xba\xbe", rb"\xfe\xed\xfa[\xce\xcf]",
                      rb"[\xce\xcf]\xfa\xed\xfe", rb"\0asm", rb"MZ.{3}\0"),
    "an archive": (rb"7z\xbc\xaf\x27\x1c", rb"Rar!\x1a\x07", rb"\xfd7zXZ\0", rb"BZh[1-9]1AY&SY",
                   rb"\x1f\x8b\x08", rb"\x28\xb5\x2f\xfd", rb"MSCF\0\0\0\0", rb".{257}ustar"),
    "a database": (rb"SQLite format 3\0", rb"\x89HDF\r\n", rb"PAR1\x15"),
}
_FORMATS = re.compile(b"|".join(
    b"(?P<f%d>%s)" % (number, b"|".join(patterns)) for number, patterns in
    enumerate(MAGICS.values())), re.S)
_NAMES = {f"f{number}": f"content is {name}" for number, name in enumerate(MAGICS)}
_HTML = re.compile(rb"(?:<\?xml\b[^>]*>\s*|<!--.*?-->\s*)*"
                   rb"(?:<!doctype\s+html\b|<(?:html|head|body)[\s>])", re.I | re.S)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


def name_format(content: bytes) -> str | None:
    """"content is PDF", or another format that is no text; None when none is recognised."""
    found = _FORMATS.match(content) or _FORMATS.match(content[:SAMPLE_BYTES].lstrip(_LEADING))
    return _NAMES[found.lastgroup] if found else None


def begins_as_html(content: bytes) -> bool:
    """Whether bytes begin with the frame of an HTML page; a part of a page does not count."""
    return _HTML.match(content[:SAMPLE_BYTES].lstrip(_LEADING)) is not None


def is_text(content: bytes) -> bool:
    """Whether bytes may be text: without control characters, or in a wide encoding."""
    return content.startswith(_WIDE_MARKS) or not _CONTROL.search(content[:SAMPLE_BYTES])
