"""Exact search for long repeated passages, in bounded memory.

ExactSubstr (arXiv:2107.06499) finds them with a suffix array over the whole corpus. Two group-bys
give the same result here. The first is over *anchors*: n-grams of half the length, selected by
winnowing (Schleimer et al. 2003), which selects the same few in every copy of a passage. The second
is over *windows* of the full length around the anchors that occur more than once. A window that
occurred before is a repeat; its text is compared with the first occurrence before it is cut.

    anchor_keys   per unit      -> keys of its anchors
    data.dedup.groups.first_occurrences
    window_keys   per unit      -> keys and places of the windows around repeated anchors
    data.dedup.groups.first_occurrences
    repeated_spans   per unit   -> spans to cut
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data.dedup.words import hash_spans, mix
from data.writing import codes_of, unit_borders

HELD_TEXTS = 256    # texts whose tokens are cached while repeats are verified

# Row of a document in its unit, and number of the window's first token in it.
PLACE = np.dtype([("row", "<i4"), ("token", "<i4")])

_BYTE_VALUES = mix(np.arange(1, 257, dtype=np.uint64))
_IS_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))


@dataclasses.dataclass(frozen=True)
class Span:
    """A repeated passage.

    Attributes:
        start, stop: characters of the text.
        first_part, first_row: document of the first occurrence of its beginning.
    """

    start: int
    stop: int
    first_part: int
    first_row: int


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Runs of non-space bytes; in scripts without spaces, the units of `data.writing`.

    Attributes:
        content: the text's UTF-8.
        hashes: [n] uint64.
        starts, stops: [n] int64, bytes of the content.
    """

    content: bytes
    hashes: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, text: str) -> Tokens:
        """Tokens of a text."""
        content = text.encode("utf-8", "surrogatepass")
        padded = np.frombuffer(b" %b " % content, np.uint8)
        space = _IS_SPACE[padded]
        opens = ~space[1:] & space[:-1]
        if ((padded >= 0xE0) & (padded != 0xE2)).any():   # other characters are of no such script
            chars = np.flatnonzero((padded[1:-1] & 0xC0) != 0x80)
            opens[chars[unit_borders(codes_of(text))]] = True
            opens &= ~space[1:]
        closes = ~space[:-1] & (space[1:] | opens)
        starts, stops = np.flatnonzero(opens), np.flatnonzero(closes)
        return cls(content, hash_spans(_BYTE_VALUES[padded[1:]], starts, stops), starts, stops)

    def __len__(self) -> int:
        return len(self.hashes)

    def passage(self, first: int, length: int) -> tuple[int, int]:
        """First byte and end of a run of tokens."""
        return int(self.starts[first]), int(self.stops[first + length - 1])

    def grams(self, length: int) -> np.ndarray:
        """Hashes of all runs of `length` tokens."""
        starts = np.arange(max(len(self) - length + 1, 0))
        return hash_spans(self.hashes, starts, starts + length)


def anchor_keys(texts: Iterable[str], min_tokens: int) -> np.ndarray:
    """Keys of the anchors of a unit's documents: [num_anchors] uint64, text after text.

    About four anchors per `min_tokens` tokens.
    """
    return np.concatenate([np.zeros(0, np.uint64), *(
        _anchors(Tokens.of(text), min_tokens)[1] for text in texts)])


def window_keys(texts: Iterable[str], repeated: np.ndarray,
                min_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the windows of `min_tokens` tokens that contain a repeated anchor.

    Args:
        texts: the same as for `anchor_keys`.
        repeated: numbers of the anchors that occur more than once, ascending.

    Returns:
        [num_windows] uint64, and [num_windows] `PLACE`.
    """
    keys, places, num_anchors = [np.zeros(0, np.uint64)], [np.zeros(0, PLACE)], 0
    for row, text in enumerate(texts):
        tokens = Tokens.of(text)
        positions, _ = _anchors(tokens, min_tokens)
        first, last = np.searchsorted(repeated, [num_anchors, num_anchors + len(positions)])
        anchors = positions[repeated[first:last] - num_anchors]
        num_anchors += len(positions)
        if not len(anchors):
            continue
        # A window [s, s + N) contains the gram [p, p + k) when p - (N - k) <= s <= p.
        reach = min_tokens - min_tokens // 2
        num_windows = len(tokens) - min_tokens + 1
        depth = np.zeros(num_windows + 1, np.int64)
        np.add.at(depth, np.maximum(anchors - reach, 0), 1)
        np.add.at(depth, np.minimum(anchors + 1, num_windows), -1)
        starts = np.flatnonzero(np.cumsum(depth[:-1]))
        keys.append(hash_spans(tokens.hashes, starts, starts + min_tokens))
        place = np.empty(len(starts), PLACE)
        place["row"], place["token"] = row, starts
        places.append(place)
    return np.concatenate(keys), np.concatenate(places)


def repeated_spans(texts: Sequence[str], part: int, matches: np.ndarray,
                   places_of: Callable[[int], np.ndarray], text_of: Callable[[int, int], str],
                   min_tokens: int) -> dict[int, list[Span]]:
    """Passages of `min_tokens` tokens or more in a unit's documents that occurred before.

    An earlier occurrence is in an earlier document, or earlier in the same one without overlap.
    Occurrences may differ only in the amount of white space.

    Args:
        texts: the unit's documents.
        part: its number.
        matches: output of `first_occurrences` for its window keys.
        places_of: the `PLACE` array of a part.
        text_of: text of a document by part and row; called in ascending order.

    Returns:
        Spans by row, ascending and disjoint.
    """
    own = places_of(part)[matches["position"]]
    firsts = np.zeros(len(matches), PLACE)
    for first_part in np.unique(matches["first_part"]).tolist():
        here = matches["first_part"] == first_part
        firsts[here] = places_of(first_part)[matches["first_position"][here]]
    overlaps = ((matches["first_part"] == part) & (firsts["row"] == own["row"])
                & (own["token"] - firsts["token"] < min_tokens))
    own, firsts, parts = own[~overlaps], firsts[~overlaps], matches["first_part"][~overlaps]
    runs: dict[int, list[tuple[int, int, int, int]]] = {}
    for row, start, stop, first_part, first_row in _verified_runs(own, firsts, parts, texts,
                                                                  text_of, min_tokens):
        runs.setdefault(row, []).append((start, stop, first_part, first_row))
    return {row: _merge(texts[row], sorted(runs[row])) for row in sorted(runs)}


def cut(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without the characters of `spans`, disjoint (start, stop) in ascending order."""
    ends = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    return "".join(text[end:start] for end, start in zip(ends, starts))


def _anchors(tokens: Tokens, min_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and keys of the grams of half the length that winnowing selects.

    From every run of `min_tokens` tokens it selects the gram of the smallest hash, the rightmost
    of several. Each run therefore contains an anchor, and its copies contain the same anchors.
    """
    if len(tokens) < min_tokens:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    grams = tokens.grams(min_tokens // 2)
    low = np.uint64(0xFFFFFFFF)
    ranks = (grams & ~low) | (low - np.arange(len(grams), dtype=np.uint64))
    smallest = _sliding_min(ranks, min_tokens - min_tokens // 2 + 1)
    positions = np.unique(low - (smallest & low)).astype(np.int64)
    return positions, grams[positions]


def _sliding_min(values: np.ndarray, width: int) -> np.ndarray:
    """Minimum of each `width` neighbours, by doubling."""
    span = 1
    while 2 * span <= width:
        values = np.minimum(values[:-span], values[span:])
        span *= 2
    rest = width - span
    return np.minimum(values[:-rest], values[rest:]) if rest else values


def _verified_runs(own: np.ndarray, firsts: np.ndarray, parts: np.ndarray, texts: Sequence[str],
                   text_of: Callable[[int, int], str],
                   min_tokens: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Joins successive windows; yields row, first byte, end, and part and row of the first."""
    def advances(values: np.ndarray, by: int) -> np.ndarray:
        return np.diff(values.astype(np.int64)) == by

    together = (advances(own["row"], 0) & advances(own["token"], 1) & advances(parts, 0)
                & advances(firsts["row"], 0) & advances(firsts["token"], 1))
    begins = np.flatnonzero(np.concatenate([[True], ~together])) if len(own) else np.zeros(0, int)
    lengths = np.diff(np.append(begins, len(own))) + min_tokens - 1
    order = np.lexsort((firsts["row"][begins], parts[begins]))
    own_tokens = functools.lru_cache(HELD_TEXTS)(lambda row: Tokens.of(texts[row]))
    first_tokens = functools.lru_cache(HELD_TEXTS)(lambda *source: Tokens.of(text_of(*source)))
    for begin, length in zip(begins[order].tolist(), lengths[order].tolist()):
        row, source = int(own["row"][begin]), (int(parts[begin]), int(firsts["row"][begin]))
        mine, first = own_tokens(row), first_tokens(*source)
        start, stop = mine.passage(int(own["token"][begin]), length)
        first_start, first_stop = first.passage(int(firsts["token"][begin]), length)
        if mine.content[start:stop].split() == first.content[first_start:first_stop].split():
            yield row, start, stop, *source


def _merge(text: str, runs: Sequence[tuple[int, int, int, int]]) -> list[Span]:
    """Joins byte ranges that touch, and converts them to characters."""
    merged: list[list[int]] = []
    for start, stop, first_part, first_row in runs:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        else:
            merged.append([start, stop, first_part, first_row])
    content = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    chars = np.concatenate([[0], np.cumsum((content & 0xC0) != 0x80)])
    return [Span(int(chars[start]), int(chars[stop]), first_part, first_row)
            for start, stop, first_part, first_row in merged]
