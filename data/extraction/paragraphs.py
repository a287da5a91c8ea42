"""Recovers paragraphs that an extractor has left out."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

# Prose: a line of this many bytes of UTF-8 (one letter of Latin, a third of a Chinese character)
# that ends like a sentence.
MIN_PROSE_BYTES = 80
LONG_BYTES = 250        # of a paragraph that no teaser or caption has
MIN_LOST_FRAC = 0.1     # of the text; less is not searched for in the page
DEPTH = 3               # elements from the paragraph upwards whose classes are compared
MIN_CHARS = 40          # of a paragraph that tells its kind

_SENTENCE_END = re.compile(r"[.!?。！？…։।:\"'”’»)\]]\s*\Z")
_PARAGRAPHS = ("p", "li", "blockquote", "dd")
_DIGITS = re.compile(r"\d+")


def is_prose(line: str) -> bool:
    """Whether a line is long and ends like a sentence."""
    return len(line.encode("utf-8", "replace")) >= MIN_PROSE_BYTES and (
        _SENTENCE_END.search(line) is not None)


def words(text: str) -> str:
    """The words in lower case, to compare texts of different extractors."""
    return " ".join(re.findall(r"\w+", text.lower()))


def prose_only(text: str) -> str:
    """Lines of prose, and single lines between two of them, such as headings."""
    lines = [line for line in text.split("\n") if line.strip()]
    is_kept = [is_prose(line) for line in lines]
    return "\n\n".join([
        line for index, line in enumerate(lines)
        if is_kept[index] or (0 < index < len(lines) - 1 and is_kept[index - 1]
                              and is_kept[index + 1])])


def restore(text: str, other: str, page: str) -> str:
    """Adds paragraphs that another extractor has found.

    First, long ones above the last paragraph that both have: introductions, and what trafilatura
    drops between. Second, those of the same kind as paragraphs of the text: they and the elements
    around them have the same names and classes. An article that is divided by advertisements has
    such; comments and teasers are of another kind.
    """
    text_words, text_lines = words(text), set(map(words, text.split("\n")))
    lines = {words(line): line for line in other.split("\n") if line.strip()}
    shared = [number for number, key in enumerate(lines)
              if len(key) >= MIN_CHARS and key in text_lines]
    lost = {key for key, line in lines.items()
            if key not in text_lines and is_prose(line) and key not in text_words}
    if not shared or not lost:
        return text
    found = {key for key in list(lines)[:shared[-1]]
             if key in lost and len(lines[key].encode("utf-8", "replace")) >= LONG_BYTES}
    if sum(map(len, lost)) > MIN_LOST_FRAC * len(text_words):
        found |= lost & _of_same_kind(text_lines, page)
    return _insert(text, other, found) if found else text


def _of_same_kind(text_lines: set[str], page: str) -> set[str]:
    """The words of paragraphs of those kinds of which the text has one."""
    from trafilatura import load_html  # lxml reads text ten times as fast as resiliparse's nodes

    kinds = defaultdict(set)
    tree = load_html(page)
    for element in () if tree is None else tree.iter(*_PARAGRAPHS):
        paragraph = words("".join(element.itertext()))
        if len(paragraph) >= MIN_CHARS:
            kinds[_kind(element)].add(paragraph)
    return set().union(*(paragraphs for paragraphs in kinds.values() if paragraphs & text_lines))


def _kind(element: Any) -> tuple[tuple[str, str], ...]:
    kind = []
    while element is not None and len(kind) < DEPTH and element.tag not in ("body", "html"):
        kind.append((element.tag, _DIGITS.sub("", element.get("class") or "")))
        element = element.getparent()
    return tuple(kind)


def _insert(text: str, other: str, found: set[str]) -> str:
    """Inserts lines of the other text behind the line that precedes them there."""
    lines = text.split("\n")
    positions = {words(line): number for number, line in enumerate(lines)}
    inserted, position = defaultdict(list), -1
    for line in other.split("\n"):
        key = words(line)
        position = positions.get(key, position) if key else position
        if key in found:
            inserted[position] += "", line, ""
    return "\n".join([*inserted[-1], *(
        part for number, line in enumerate(lines) for part in (line, *inserted[number]))])
