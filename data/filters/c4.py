"""C4's rules on lines (arXiv:1910.10683, section 2.2), as implemented in its code.

Source: tensorflow_datasets/text/c4_utils.py; datatrove's `c4_filters.py` differs in two points that
are noted where they matter. A line is stripped, and its rules are tried in this order:
    c4_max_word_chars: dropped when a word is longer.
    c4_citations: "[3]", "[edit]" and "[citation needed]" are deleted from the line.
    c4_end_marks: dropped unless it ends in one of these, and not in "...". So does a line that
        ends in the mark of another script, in a closing bracket or quote after it, or in a Thai
        or Lao letter: these scripts have no end mark.
    c4_min_line_words: dropped when it has fewer words. They are counted after citations are
        deleted (datatrove: before), and by `data.writing` in scripts without spaces.
    c4_lorem_ipsum, c4_curly_bracket: the page is removed when the line contains either. Lines
        dropped by an earlier rule are not examined.
    c4_javascript, c4_policy: dropped when it mentions JavaScript, or a policy or cookies.
A page longer than c4_max_page_chars is removed before all other rules, and one with fewer than
c4_min_sentences after them. Sentences are split as by spaCy's sentencizer: they end at a word that
is a sentence-ending mark, not at abbreviations or "..." (C4 uses NLTK's trained Punkt); also at
marks of other scripts within a chunk, and at a blank after a Thai or Lao letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from data.filters.rules import BrokenRule
from data.filters.words import FOREIGN_TERMINAL_MARKS, TERMINAL_MARKS, Splitter
from data.writing import count_words, is_mostly_unspaced, is_unspaced, longest_word

POLICY_STRINGS = ("terms of use", "privacy policy", "cookie policy", "uses cookies",
                  "use of cookies", "use cookies")
ELLIPSIS = "..."

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_TERMINAL = frozenset(TERMINAL_MARKS)
_FOREIGN_END = re.compile(f"[{re.escape(''.join(FOREIGN_TERMINAL_MARKS))}]")
_CLOSING = "\"'”’»）」』》】〉)]\u200e\u200f\u202c\u2069"  # with the marks of directions


def apply_c4(text: str, rules: Mapping[str, Any],
             trimmed: dict[str, int]) -> tuple[str, BrokenRule | None]:
    """The kept lines and the rule that removes the page; adds dropped bytes to `trimmed`."""
    if len(text) > rules.get("c4_max_page_chars", len(text)):
        return text, BrokenRule("c4_max_page_chars", float(len(text)))
    rule_of_line = _LineRules(text, rules)
    kept, num_sentences = [], 0
    for whole in filter(None, map(str.strip, text.splitlines())):
        line, broken = rule_of_line(whole)
        if broken in ("c4_lorem_ipsum", "c4_curly_bracket"):
            return text, BrokenRule(broken, 1.0)
        if broken:
            trimmed[broken] = trimmed.get(broken, 0) + len(whole.encode()) + 1
            continue
        if len(line) < len(whole):
            num_bytes = len(whole.encode()) - len(line.encode())
            trimmed["c4_citations"] = trimmed.get("c4_citations", 0) + num_bytes
        if num_sentences < rules.get("c4_min_sentences", 0):
            num_sentences += count_sentences(line)
        kept.append(line)
    if num_sentences < rules.get("c4_min_sentences", 0):
        return text, BrokenRule("c4_min_sentences", float(num_sentences))
    return "\n".join(kept).strip(), None


class _LineRules:
    """Finds the first rule that a line breaks; skips phrases that do not occur in the page."""

    def __init__(self, text: str, rules: Mapping[str, Any]):
        lower = text.lower()
        self._max_word_chars = rules.get("c4_max_word_chars", len(text))
        self._cites = "c4_citations" in rules and "[" in text
        self._end_marks = tuple(rules.get("c4_end_marks", ""))
        self._min_words = rules.get("c4_min_line_words", 0)
        self._text, self._is_unspaced = text, None
        self._phrases = [(rule, phrases) for rule, phrases in (
            ("c4_lorem_ipsum", ("lorem ipsum",)), ("c4_javascript", ("javascript",)),
            ("c4_curly_bracket", ("{",)), ("c4_policy", POLICY_STRINGS))
            if rule in rules and any(phrase in lower for phrase in phrases)]

    def __call__(self, line: str) -> tuple[str, str | None]:
        """The line without citations, and the rule that it breaks, if any."""
        if len(line) > self._max_word_chars and longest_word(line) > self._max_word_chars:
            return line, "c4_max_word_chars"
        if self._cites:
            line = _CITATION.sub("", line)
        if self._end_marks and (line.endswith(ELLIPSIS) or (
                not line.endswith(self._end_marks)
                and (line.isascii() or not ends_foreign_sentence(line)))):
            return line, "c4_end_marks"
        if len(line.split(None, self._min_words)) < self._min_words and (
                line.isascii() or self._count_words(line) < self._min_words):
            return line, "c4_min_line_words"
        lower = line.lower() if self._phrases else ""
        for rule, phrases in self._phrases:
            if any(phrase in lower for phrase in phrases):
                return line, rule
        return line, None

    def _count_words(self, line: str) -> int:
        """Counts units if the page has many: a line in Chinese of an English page is one word."""
        if is_unspaced(line):
            if self._is_unspaced is None:
                self._is_unspaced = is_mostly_unspaced(self._text)
            if self._is_unspaced:
                return count_words(line)
        return len(line.split())


def ends_foreign_sentence(line: str) -> bool:
    """Whether a line ends a sentence of another script than Latin."""
    return line.rstrip(_CLOSING).endswith(FOREIGN_TERMINAL_MARKS) or _is_thai_or_lao(line[-1])


def _is_thai_or_lao(char: str) -> bool:
    return "\u0e01" <= char <= "\u0eff"


def count_sentences(line: str) -> int:
    """Number of sentences of a line: one, plus one for each word that follows a sentence end."""
    count, is_ended = 1, False
    for chunk in line.split():
        if chunk.isalnum():
            count, is_ended = count + is_ended, False
            continue
        for is_mark, is_punctuation in _kinds(chunk):
            if is_ended and not (is_mark or is_punctuation):
                count, is_ended = count + 1, False
            is_ended |= is_mark
    return count


@lru_cache(20_000)
def _kinds(chunk: str) -> tuple[tuple[bool, bool], ...]:
    """For each word of a chunk: whether it ends a sentence, and whether it is punctuation."""
    if chunk.isascii():
        return _kinds_of_words(_splitter().split(chunk))
    kinds = tuple(kind for piece in _FOREIGN_END.sub(r" \g<0> ", chunk).split()
                  for kind in _kinds_of_words(_splitter().split(piece)))
    return (*kinds, (True, True)) if _is_thai_or_lao(chunk[-1]) else kinds


def _kinds_of_words(words: Sequence[str]) -> tuple[tuple[bool, bool], ...]:
    return tuple([(word in _TERMINAL,
                   all([unicodedata.category(char).startswith("P") for char in word]))
                  for word in words])


@lru_cache(1)
def _splitter() -> Splitter:
    return Splitter("en")
