"""Repairs and normalises text without changing its layout."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

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
# Encodings in which UTF-8 is misread and that ftfy mends.
_MISREAD_AS = ("latin-1", "cp1252", "cp1251", "cp1250", "cp1253", "cp1254", "cp1257", "iso8859-2",
               "mac-roman", "cp437")
# Letters that end many syllables of true text, as in Від and дії: two sequences in a row are not.
_VOWELS = "ЁЄІЇЎёєіїўј"
# Quotes that true text in some of these languages has before accented letters: l’été.
_NO_LEADS = "‘’“”«»…"

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
    if _mojibake().search(text):
        text = _mend(text)
    if _C1_QUOTES.search(text):
        text = _C1.sub(lambda match: match[0].encode("latin-1").decode("cp1252", "ignore"), text)
    return text


def _mend(text: str) -> str:
    """Lines with sequences that look like misread UTF-8, mended where ftfy agrees.

    Line by line, since a page may hold a misread part; once a line is mended all lines are tried,
    as some sequences have lost their no-break space and no longer look misread.
    """
    import ftfy  # slow to import, and few pages need it

    lines = text.split("\n")
    suspects = [index for index, line in enumerate(lines) if _mojibake().search(line)]
    mended = {index: ftfy.fix_encoding(lines[index]) for index in suspects}     # 10 MB/s
    if all(lines[index] == line for index, line in mended.items()):
        return text
    return "\n".join([mended.get(index) or ftfy.fix_encoding(line)
                      for index, line in enumerate(lines)])


@functools.cache
def _mojibake() -> re.Pattern[str]:
    """Matches UTF-8 sequences of two to four bytes as each of the encodings spells them."""
    leads, continuations, sequences = set(), set(), []
    for encoding in _MISREAD_AS:
        last = _spelling(encoding, 0x80, 0xc0)
        first = [_spelling(encoding, low, high) - set(_NO_LEADS)
                 for low, high in ((0xc2, 0xe0), (0xe0, 0xf0), (0xf0, 0xf5))]
        end = f"(?:(?<!{_any(_VOWELS)})|(?={_any(set().union(*first))}{_any(last)}))"
        sequences += [f"(?<={_any(lead)}){_any(last)}{{{number}}}{end}"
                      for number, lead in enumerate(first, start=1)]
        leads.update(*first)
        continuations |= last
    # The test of any two characters comes first: it rejects true text several times as fast.
    return re.compile(f"{_any(leads)}(?={_any(continuations)})(?:{'|'.join(sequences)})")


def _spelling(encoding: str, low: int, high: int) -> set[str]:
    """The characters of a range of bytes; bytes without one stand for themselves, as in ftfy."""
    chars = bytes(range(low, high)).decode(encoding, "replace")
    return {chr(byte) if char == "\ufffd" else char
            for byte, char in zip(range(low, high), chars, strict=True)}


def _any(chars: Iterable[str]) -> str:
    return f"[{re.escape(''.join(sorted(chars)))}]"


def _name(emoji: re.Match[str]) -> str:
    name = unicodedata.name(emoji[0], "")
    return f":{name.lower().replace(' ', '_')}:" if name else emoji[0]
