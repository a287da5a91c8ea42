"""Line rules: lines that no document should keep, and blocks that the whole site repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from data.filters.c4 import POLICY_STRINGS, apply_c4
from data.filters.refinedweb import apply_refinedweb
from data.filters.rules import Removal


@dataclasses.dataclass(frozen=True)
class LineResult:
    """What the line rules made of a text.

    Attributes:
        text: what is left; meaningless when the document goes.
        trimmed: dropped UTF-8 bytes by rule.
        removal: why the whole document goes, or None.
    """

    text: str
    trimmed: dict[str, int]
    removal: Removal | None


def clean_lines(text: str, rules: Mapping[str, Any]) -> LineResult:
    """Applies line rules, a family after the other: C4's, RefinedWeb's, those of technical text.

    Args:
        rules: from `data.filters.presets.line_rules`. A family without a rule leaves the text
            exactly as it is; C4's strip lines and drop blank ones.
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

    Of C4's rules these are what reference pages survive: its end marks and words per line would
    leave nothing of them, and documentation speaks of JavaScript. A policy string in a longer line
    is a sentence about it.
    """
    max_word_chars = rules.get("technical_max_word_chars", len(text))
    max_words = rules.get("technical_max_policy_line_words", 0)
    lower = text.lower()
    has_policy = any(policy in lower for policy in POLICY_STRINGS)
    kept = []
    for line in text.split("\n"):
        rule = None
        if len(line) > max_word_chars and max(map(len, line.split()), default=0) > max_word_chars:
            rule = "technical_max_word_chars"
        elif (has_policy and any(policy in line.lower() for policy in POLICY_STRINGS)
                and len(line.split()) <= max_words):
            rule = "technical_max_policy_line_words"
        if rule is None:
            kept.append(line)
        else:
            trimmed[rule] = trimmed.get(rule, 0) + len(line.encode()) + 1
    return "\n".join(kept), None


_FAMILIES = {"c4_": apply_c4, "refinedweb_": apply_refinedweb, "technical_": _apply_technical}


def hash_lines(text: str) -> np.ndarray:
    """One uint64 per line of `text`, of its stripped form; blank lines are 0."""
    lines = text.split("\n")
    return np.fromiter((xxhash.xxh3_64_intdigest(line.strip().encode()) if line.strip() else 0
                        for line in lines), np.uint64, len(lines))


def find_repeated_blocks(documents: Iterable[np.ndarray], num_lines: int) -> list[np.ndarray]:
    """Marks lines that lie in a block of `num_lines` lines seen before, here or elsewhere.

    A block is a run of non-blank lines, blank ones between them skipped. Its first occurrence
    stays, whole: a line of it is not marked by a later block that begins inside it.

    Args:
        documents: line hashes of every document, as from `hash_lines`, in a fixed order.
        num_lines: lines of the shortest block, at least 1.

    Returns:
        Per document, a boolean per line: True where the line is to go.
    """
    documents = list(documents)
    filled = [np.flatnonzero(lines) for lines in documents]
    blocks = [_hash_runs(lines[at], num_lines) for lines, at in zip(documents, filled)]
    hashes = np.concatenate([np.zeros(0, np.uint64), *blocks])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    seen_before = first[inverse] + num_lines <= np.arange(len(hashes))
    marks, start = [], 0
    for lines, at, block in zip(documents, filled, blocks):
        mark = np.zeros(len(lines), bool)
        begins = np.flatnonzero(seen_before[start:start + len(block)])
        for offset in range(num_lines):
            mark[at[begins + offset]] = True
        marks.append(mark)
        start += len(block)
    return marks


def drop_lines(text: str, mark: Sequence[bool]) -> str:
    """`text` without its marked lines, and without more than one blank line in a row."""
    kept, blank = [], True
    for line, is_marked in zip(text.split("\n"), mark, strict=True):
        if is_marked or (blank and not line.strip()):
            continue
        blank = not line.strip()
        kept.append(line)
    return "\n".join(kept).rstrip()


def _hash_runs(values: np.ndarray, length: int) -> np.ndarray:
    """Hash of each run of `length` consecutive values: [n] -> [n - length + 1], both uint64."""
    if len(values) < length:
        return np.zeros(0, np.uint64)
    hashed = np.zeros(len(values) - length + 1, np.uint64)
    for offset in range(length):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + values[offset:offset + len(hashed)]
        hashed ^= hashed >> np.uint64(29)
    return hashed
