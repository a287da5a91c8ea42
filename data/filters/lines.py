"""Line rules: which lines of a document are dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from data.filters.c4 import POLICY_STRINGS, apply_c4
from data.filters.refinedweb import apply_refinedweb
from data.filters.rules import BrokenRule
from data.writing import count_words, longest_word


@dataclasses.dataclass(frozen=True)
class LineResult:
    """Result of the line rules on one document.

    Attributes:
        text: the kept lines; undefined when the document is removed.
        trimmed: dropped UTF-8 bytes by rule.
        removal: the rule that removes the whole document, or None.
    """

    text: str
    trimmed: dict[str, int]
    removal: BrokenRule | None


def clean_lines(text: str, rules: Mapping[str, Any]) -> LineResult:
    """Applies the families of line rules in order: C4, RefinedWeb, technical.

    Args:
        rules: from `data.filters.presets.line_rules`. A family without a rule leaves the text
            unchanged; C4's rules also strip lines and drop blank ones.
    """
    trimmed: dict[str, int] = {}
    for family, apply in _FAMILIES.items():
        if any(rule.startswith(family) for rule in rules):
            text, removal = apply(text, rules, trimmed)
            if removal is not None:
                return LineResult(text, trimmed, removal)
    return LineResult(text, trimmed, None)


def _apply_technical(text: str, rules: Mapping[str, Any],
                     trimmed: dict[str, int]) -> tuple[str, None]:
    """Drops lines that hold an overlong word, and short lines that hold a policy string.

    These are the rules of C4 that suit reference pages. Its bounds on end marks and words per line
    would remove nearly every line, and documentation often mentions JavaScript. A policy string in
    a longer line is usually a sentence about policies, not boilerplate.
    """
    max_word_chars = rules.get("technical_max_word_chars", len(text))
    max_words = rules.get("technical_max_policy_line_words", 0)
    lower = text.lower()
    has_policy = any(policy in lower for policy in POLICY_STRINGS)
    kept = []
    for line in text.split("\n"):
        rule = None
        if len(line) > max_word_chars and longest_word(line) > max_word_chars:
            rule = "technical_max_word_chars"
        elif (has_policy and any(policy in line.lower() for policy in POLICY_STRINGS)
                and count_words(line) <= max_words):
            rule = "technical_max_policy_line_words"
        if rule is None:
            kept.append(line)
        else:
            trimmed[rule] = trimmed.get(rule, 0) + len(line.encode()) + 1
    return "\n".join(kept), None


_FAMILIES = {"c4_": apply_c4, "refinedweb_": apply_refinedweb, "technical_": _apply_technical}
