"""Hashes of words: text is normalised, split and hashed in numpy, many documents at a time.

No Python object is made per word: a table maps characters to numbers, and the hash of a word is a
polynomial in them, computed as a difference of cumulative sums over a block of text.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from data.writing import FIRST_UNIT, unit_borders

BLOCK_CHARS = 1 << 17    # text hashed at once, so that its arrays fit the cache
PLANE = 1 << 16          # code points of a Unicode plane

_SEPARATOR, _DROPPED, _EXPANDS = 0, 0xFFFFFFFF, 0xFFFFFFFE
_BASE = 0xD6E8FEB86659FD93
_BLANK = np.uint64(0x2545F4914F6CDD1D)      # between words, where characters are hashed


def normalise_words(text: str, keep_digits: bool = False) -> list[str]:
    """Words in lower case, without punctuation and accents, every digit a 0.

    This is FineWeb's normalisation (arXiv:2406.17557) except that a number keeps its length.
    In scripts without spaces each unit of `data.writing` is a word.

    Args:
        keep_digits: does not replace digits.
    """
    codes = _codes(text, keep_digits)
    codes = np.where(codes == _SEPARATOR, ord(" "), codes).astype("<u4")
    return codes.tobytes().decode("utf-32-le").split()


def hash_words(texts: Sequence[str], keep_digits: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the words that `normalise_words` gives, in their order.

    Returns:
        hashes: [num_words] uint64, text after text.
        offsets: [num_texts + 1] int64; text i has the words ``offsets[i]:offsets[i + 1]``.
    """
    hashes, num_words = [np.zeros(0, np.uint64)], np.zeros(len(texts) + 1, np.int64)
    owners, block, block_chars = [], [], 0

    def flush() -> None:
        word_hashes, starts = hash_runs(np.concatenate(block))
        ends = np.cumsum([len(values) for values in block])
        counts = np.diff(np.searchsorted(starts, ends), prepend=0)
        np.add.at(num_words, np.array(owners) + 1, counts)
        hashes.append(word_hashes)

    for owner, text in enumerate(texts):
        for piece in _pieces(text):
            values = _values(piece, keep_digits)
            if block and block_chars + len(values) > BLOCK_CHARS:
                flush()
                owners, block, block_chars = [], [], 0
            owners.append(owner)
            block.append(values)
            block_chars += len(values)
    if block:
        flush()
    return np.concatenate(hashes), np.cumsum(num_words)


def hash_chars(texts: Sequence[str], keep_digits: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the characters of the words that `normalise_words` gives.

    Returns:
        hashes: [num_chars] uint64, text after text. Those of one blank lie between words, before
            the first and after the last; a text without words has none.
        offsets: [num_texts + 1] int64; text i has the characters ``offsets[i]:offsets[i + 1]``.
    """
    hashes = [np.zeros(0, np.uint64)]
    for text in texts:
        values = np.concatenate([_values(piece, keep_digits) for piece in _pieces(text)])
        kept = values != 0
        kept[1:] |= kept[:-1].copy()        # the blank after a word
        values = values[kept]
        hashes.append(np.where(values == 0, _BLANK, values))
        if len(values):
            hashes[-1] = np.concatenate([[_BLANK], hashes[-1]])
    return np.concatenate(hashes), np.cumsum([0, *map(len, hashes[1:])])


def hash_unspaced(text: str, keep_digits: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The characters of a text's words, as `normalise_words` gives them, without the spaces.

    Returns:
        values: [num_chars] uint64, a random number for each character, for `hash_spans`.
        words: [num_chars] int64, the number of the word that each is of.
    """
    values = np.concatenate([_values(piece, keep_digits) for piece in _pieces(text)])
    inside = values != 0
    words = np.cumsum(inside[1:] & ~inside[:-1])     # the first value is of no word
    return values[inside], words[inside[1:]] - 1


def hash_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the runs between zeros.

    Args:
        values: [n] uint64, a random number per character; first and last are zero.

    Returns:
        The hash and the start of each run.
    """
    inside = values != 0
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, stops = edges[0::2], edges[1::2]
    return hash_spans(values, starts, stops), starts


def hash_spans(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Hashes of ``values[start:stop]``, independent of the position of a span.

    Args:
        values: [n] uint64, well mixed.
        starts, stops: [num_spans] int64, both ascending.
    """
    hashes, first = [np.zeros(0, np.uint64)], 0
    while first < len(starts):
        base = int(starts[first])
        last = max(int(np.searchsorted(stops, base + BLOCK_CHARS, "right")), first + 1)
        block = values[base:stops[last - 1]]
        powers, inverses = _powers(1 << len(block).bit_length())
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * powers[:len(block)], out=sums[1:])
        begin, end = starts[first:last] - base, stops[first:last] - base
        hashes.append(mix((sums[end] - sums[begin]) * inverses[begin]))
        first = last
    return np.concatenate(hashes)


def mix(values: np.ndarray) -> np.ndarray:
    """Bijection of uint64 values in which each bit of the result depends on all input bits.

    Source: the finaliser of SplitMix64, in Stafford's variant 13.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.cache
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base modulo 2**64, and of its inverse."""
    bases = _BASE, pow(_BASE, -1, 1 << 64)
    power, inverse = (np.cumprod(np.full(length, base, np.uint64)) for base in bases)
    return power, inverse


def _pieces(text: str) -> Iterator[str]:
    """Splits a long text at spaces, so that memory is bounded."""
    start = 0
    while len(text) - start > BLOCK_CHARS:
        stop = max(text.rfind(space, start, start + BLOCK_CHARS) for space in " \n")
        stop = stop if stop > start else start + BLOCK_CHARS
        yield text[start:stop]
        start = stop
    yield text[start:] if start else text


def _values(text: str, keep_digits: bool) -> np.ndarray:
    """A random uint64 for each character of a word, 0 between words and at both ends."""
    if text.isascii():
        content = np.frombuffer(b"".join((b" ", text.encode(), b" ")), np.uint8)
        return _ascii_values(keep_digits)[content]
    codes = _codes(text, keep_digits)
    return np.where(codes == _SEPARATOR, np.uint64(0), mix(codes.astype(np.uint64)))


@functools.cache
def _ascii_values(keep_digits: bool) -> np.ndarray:
    codes = _plane(0, keep_digits)[:128].astype(np.uint64)
    return np.where(codes == _SEPARATOR, np.uint64(0), mix(codes))


def _codes(text: str, keep_digits: bool) -> np.ndarray:
    """Code points of the normalised text: [n] uint32, 0 between words and at both ends."""
    codes = _look_up(text, keep_digits)
    if (codes == _EXPANDS).any():
        codes = _look_up(unicodedata.normalize("NFKD", text), keep_digits)
    codes = codes[codes != _DROPPED]
    borders = [0, len(codes)]
    if len(codes) and codes.max() >= FIRST_UNIT:
        borders = np.concatenate([[0], np.flatnonzero(unit_borders(codes)), [len(codes)]])
    return np.insert(codes, borders, _SEPARATOR)


def _look_up(text: str, keep_digits: bool) -> np.ndarray:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    if not len(codes) or codes.max() < PLANE:
        return _plane(0, keep_digits)[codes]
    normalised = np.empty_like(codes)
    for plane in np.unique(codes // PLANE).tolist():
        here = codes // PLANE == plane
        normalised[here] = _plane(plane, keep_digits)[codes[here] % PLANE]
    return normalised


@functools.cache
def _plane(plane: int, keep_digits: bool) -> np.ndarray:
    """Normalised code point for each code point of a plane: [65536] uint32."""
    return np.array([_normalise(chr(code), keep_digits)
                     for code in range(plane * PLANE, (plane + 1) * PLANE)], np.uint32)


def _normalise(char: str, keep_digits: bool) -> int:
    decomposed = unicodedata.normalize("NFKD", char)
    base = "".join(part for part in decomposed if not unicodedata.combining(part))
    if len(base) != 1:
        return _EXPANDS if base else _DROPPED
    kind = unicodedata.category(base)
    if kind == "Nd":
        return ord("0") + (unicodedata.decimal(base) if keep_digits else 0)
    if kind == "Cf":        # soft hyphens and joiners occur inside words
        return _DROPPED
    return ord(base.lower()[0]) if kind[0] in "LNM" else _SEPARATOR
