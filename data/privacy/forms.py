"""ASCII for digits of all scripts and for full-width characters, place by place."""

from __future__ import annotations

import functools
import sys
import unicodedata

import re2

#: Characters that make a text worth the replacement: digits beyond ASCII, full-width plus and at.
PATTERN = "[\uff0b\uff20" + "".join(
    char for char in map(chr, range(0x80, sys.maxunicode + 1)) if char.isdecimal()) + "]"


def ascii_forms(text: str) -> str:
    """The text with these characters replaced, of the same length."""
    if text.isascii() or not _pattern().search(text):
        return text
    return text.translate(_forms())


@functools.cache
def _pattern():
    return re2.compile(PATTERN)


@functools.cache
def _forms() -> dict[int, str]:
    wide = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
    return wide | {ord(char): str(unicodedata.decimal(char)) for char in PATTERN
                   if char.isdecimal()}
