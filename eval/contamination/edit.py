"""The passage of a text that is nearest to a pattern by edit distance."""

from __future__ import annotations

from typing import NamedTuple


class Nearest(NamedTuple):
    """The best passage.

    Attributes:
        distance: insertions, deletions and substitutions of characters (Levenshtein).
        start, stop: the passage's characters.
    """

    distance: int
    start: int
    stop: int


def find_nearest(pattern: str, text: str) -> Nearest:
    """The passage of `text` with the least Levenshtein distance from `pattern`.

    Of equal ones the one that ends first, and then the shortest. The columns of the table are bits
    of integers (Myers, JACM 46, 1999), so that a character of the text takes a few operations on
    integers of as many bits as the pattern has characters.
    """
    if not pattern:
        return Nearest(0, 0, 0)
    distances = _last_row(pattern, text, anchored=False)
    stop = min(range(len(distances)), key=distances.__getitem__)
    backwards = _last_row(pattern[::-1], text[:stop][::-1], anchored=True)
    return Nearest(distances[stop], stop - backwards.index(distances[stop]), stop)


def similarity(pattern: str, text: str) -> float:
    """1 less the distance of the nearest passage over the pattern's characters, from 0 to 1."""
    return 1 - find_nearest(pattern, text).distance / max(len(pattern), 1)


def _last_row(pattern: str, text: str, *, anchored: bool) -> list[int]:
    """Distance of the pattern from the nearest passage that ends before each character and at the
    end: [len(text) + 1]. An anchored passage begins where the text does."""
    mask = (1 << len(pattern)) - 1
    last = 1 << len(pattern) - 1
    places: dict[str, int] = {}
    for number, char in enumerate(pattern):
        places[char] = places.get(char, 0) | 1 << number
    up, down, score = mask, 0, len(pattern)     # vertical differences of +1 and -1
    row = [score]
    for char in text:
        equal = places.get(char, 0)
        vertical = equal | down
        horizontal = ((equal & up) + up ^ up) | equal
        more, less = down | ~(horizontal | up) & mask, up & horizontal
        score += bool(more & last) - bool(less & last)
        row.append(score)
        more, less = (more << 1 | anchored) & mask, less << 1 & mask
        up, down = less | ~(vertical | more) & mask, more & vertical
    return row
