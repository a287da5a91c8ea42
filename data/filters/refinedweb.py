"""RefinedWeb's line corrections (arXiv:2306.01116, appendix G.2), by mlfoundations/dclm's numbers.

In this order, on unstripped lines (blank ones are kept; `baselines/mappers/modifiers.py`):
    refinedweb_max_uppercase_frac: drops a line with a larger share of upper-case characters.
    refinedweb_numeric: drops a line of digits alone.
    refinedweb_counter: drops a line that counts reactions, e.g. "3 likes".
    refinedweb_min_line_words: drops a line with fewer words.
    refinedweb_phrases: in lines of at most this many words, "items in cart", a final "Read more..."
        and an initial "Sign-in" are deleted.
    refinedweb_max_removed_word_frac: removes the page when the corrections removed a larger
        share of its words. Words are runs of non-space characters with a letter or digit (DCLM:
        uniseg's, without punctuation); those of scripts without spaces, see `data.writing`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from data.filters.rules import BrokenRule
from data.writing import count_words, is_mostly_unspaced

_COUNTER = re.compile(
    r"\W*\d[\d,.]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|"
    r"downvotes|downloads|views|followers)\W*", re.IGNORECASE)
_PHRASES = re.compile(r"\s?items in cart|\s?read more\.\.\.\s*$|^\s*sign-in\s?", re.IGNORECASE)


def apply_refinedweb(text: str, rules: Mapping[str, Any],
                     trimmed: dict[str, int]) -> tuple[str, BrokenRule | None]:
    """The corrected text and the rule that removes the page; adds dropped bytes to `trimmed`."""
    kept = []
    has_units = is_mostly_unspaced(text)
    for line in text.split("\n"):
        rule = _broken_rule(line, rules, has_units) if line else None
        if rule is None:
            kept.append(line)
            continue
        left = _PHRASES.sub("", line) if rule == "refinedweb_phrases" else ""
        num_bytes = len(line.encode()) - len(left.encode())
        if left.strip():
            kept.append(left)
        else:
            num_bytes = len(line.encode()) + 1
        trimmed[rule] = trimmed.get(rule, 0) + num_bytes
    corrected = "\n".join(kept).strip()
    before = _count_words(text, has_units)
    removed = 1 - _count_words(corrected, has_units) / before if before else 0.0
    bound = rules.get("refinedweb_max_removed_word_frac", 1.0)
    if removed > bound:
        return corrected, BrokenRule("refinedweb_max_removed_word_frac", removed)
    return corrected, None


def _broken_rule(line: str, rules: Mapping[str, Any], has_units: bool) -> str | None:
    uppercase = sum(map(str.isupper, line)) / len(line)
    if uppercase > rules.get("refinedweb_max_uppercase_frac", 1.0):
        return "refinedweb_max_uppercase_frac"
    if "refinedweb_numeric" in rules and line.isdigit():
        return "refinedweb_numeric"
    num_words = count_words(line) if has_units else len(line.split())
    if "refinedweb_counter" in rules and num_words < 8 and _COUNTER.fullmatch(line):
        return "refinedweb_counter"
    if num_words < rules.get("refinedweb_min_line_words", 0):
        return "refinedweb_min_line_words"
    if num_words <= rules.get("refinedweb_phrases", -1) and _PHRASES.search(line):
        return "refinedweb_phrases"
    return None


def _count_words(text: str, has_units: bool) -> float:
    if has_units:
        return count_words(text)
    return sum(any(map(str.isalnum, word)) for word in text.split())
