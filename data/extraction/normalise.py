"""Repairs and normalises text without changing its layout."""

from __future__ import annotations

import re
import unicodedata

# Control characters, word joiners, soft hyphens, byte order marks, lone surrogates, and zero-width
# spaces where words are not divided by them: Thai, Lao, Tibetan, Burmese and Khmer have no others.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u2060\ufeff\ufffe\uffff\ud800-\udfff]"
    r"|(?<![\u0e00-\u109f\u1780-\u17ff])\u200b")
# Those that divide text: page and line tabulation, the separators of files, groups, records and
# units, and the line end of EBCDIC. All others vanish.
_DIVIDERS = {**dict.fromkeys("\x0b\x0c\x1c\x1d\x1e\x85", "\n"), "\x1f": " "}
# Quotes and dashes of Windows-1252 that were decoded as Latin-1.
_C1_QUOTES = re.compile(r"[\x91-\x97]")
_C1 = re.compile(r"[\x80-\x9f]")
_SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_BLANK_LINES = re.compile(r"\n{4,}")
_MOJIBAKE_LEADS = "ÂÃâï"
# UTF-8 decoded as a Western single-byte encoding: a lead byte, then a continuation byte.
_MOJIBAKE = re.compile(r"[ÂÃâ][\x80-\xbf\u20ac\u2013\u2014\u2018-\u201e\u2022\u2026\u2122]|ï»¿")

_PUNCTUATION = str.maketrans({
    **dict.fromkeys("‘’‚‛′‹›", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("—―", "--"),
    "…": "...", "⁄": "/", "∗": "*", "•": "*",
})
# Emoji; the variation selectors and joiners after their names are dropped.
_EMOJI = re.compile(r"[\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff]")
_EMOJI_GLUE = re.compile(r"(?<=:)[\u200d\ufe0e\ufe0f]+")


def normalise(text: str, *, emoji_names: bool = False, punctuation: bool = False) -> str:
    """Repairs and normalises text without changing its layout.

    NFC, mojibake repaired, plain spaces, ``\\n`` line ends, also for page breaks and the like, no
    control characters, no trailing spaces, at most two blank lines in a row, none at either end.

    Args:
        emoji_names: writes emoji as ``:name:``, by the names of this Python's Unicode version.
        punctuation: writes typographic quotes, dashes and dots in ASCII.
    """
    for line_end in ("\r\n", "\r", "\u2028", "\u2029"):
        text = text.replace(line_end, "\n")
    is_ascii = text.isascii()
    if not is_ascii:
        text = _repair(text)
    text = _CONTROL.sub(lambda match: _DIVIDERS.get(match[0], ""), text)
    if not is_ascii:
        text = _SPACES.sub(" ", unicodedata.normalize("NFC", text))
        if punctuation:
            text = text.translate(_PUNCTUATION)
        if emoji_names:
            text = _EMOJI_GLUE.sub("", _EMOJI.sub(_name, text))
    # String methods where possible: they are ten times as fast as regular expressions.
    text = "\n".join([line.rstrip() for line in text.split("\n")])
    if "\n\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n")


def _repair(text: str) -> str:
    if any(lead in text for lead in _MOJIBAKE_LEADS) and _MOJIBAKE.search(text):
        import ftfy  # slow to import, and few pages need it

        text = ftfy.fix_encoding(text)      # 1.6 MB/s, so the cheap test comes first
    if _C1_QUOTES.search(text):
        text = _C1.sub(lambda match: match[0].encode("latin-1").decode("cp1252", "ignore"), text)
    return text


def _name(emoji: re.Match[str]) -> str:
    name = unicodedata.name(emoji[0], "")
    return f":{name.lower().replace(' ', '_')}:" if name else emoji[0]
