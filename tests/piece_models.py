"""Tiny models of SentencePiece, written byte by byte, and a plain encoder that gives their ids.

The algorithms are those of the library's `normalizer.cc`, `bpe_model.cc` and `unigram_model.cc`,
without the tables of replacements of its normaliser.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, OF_BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
SPECIALS = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, OF_BYTE) for byte in range(256)]


class PieceModel(NamedTuple):
    """A model, with the defaults of the library's trainer."""

    pieces: Sequence[tuple[str, float, int]]
    kind: int = BPE
    has_bytes: bool = False
    has_prefix: bool = True
    trims: bool = True


def varint(number: int) -> bytes:
    """A whole number; a negative one as 64 bits."""
    number &= (1 << 64) - 1
    written = b""
    while number > 127:
        written += bytes([number & 127 | 128])
        number >>= 7
    return written + bytes([number])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a message, in the wire format of Protocol Buffers."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_pieces(pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """The pieces of a model; the type of ordinary ones is left out, as it is the default."""
    return b"".join(field(1, field(1, text) + field(2, score)
                          + (field(3, kind) if kind != NORMAL else b""))
                    for text, score, kind in pieces)


def write_model(model: PieceModel, trainer: bytes = b"", normaliser: bytes = b"") -> bytes:
    """A model's file; `trainer` and `normaliser` are further fields of its two parts."""
    return write_pieces(model.pieces) + field(
        2, field(3, model.kind) + field(35, int(model.has_bytes)) + trainer) + field(
        3, field(1, "identity") + field(3, int(model.has_prefix)) + field(4, int(model.trims))
        + normaliser)


def encode(model: PieceModel, text: str) -> list[int]:
    """The ids of a text."""
    ids = {piece: i for i, (piece, *_) in enumerate(model.pieces)}
    split = _merge if model.kind == BPE else _most_likely
    found: list[int] = []
    known = {text for text, _, kind in model.pieces if kind in (NORMAL, USER_DEFINED)}
    was_unknown = False
    for piece in split(model, _normalise(model, text)):
        is_unknown = piece not in known
        if not is_unknown:
            found.append(ids[piece])
        elif model.has_bytes:
            found += [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        elif not was_unknown:       # neighbours are one unknown token
            found.append(ids["<unk>"])
        was_unknown = is_unknown
    return found


def _normalise(model: PieceModel, text: str) -> str:
    if model.trims:
        text = " ".join(part for part in text.split(" ") if part)
    text = text.replace(" ", "\u2581")
    if model.has_prefix and text:
        text = "\u2581" + text
    return text.rstrip("\u2581") if model.trims else text


def _merge(model: PieceModel, text: str) -> list[str]:
    """Merges the two neighbours whose piece has the highest score, the leftmost of equal ones."""
    scores = {piece: score for piece, score, kind in model.pieces if kind == NORMAL}
    symbols = sorted((piece for piece, _, kind in model.pieces if kind == USER_DEFINED),
                     key=len, reverse=True)
    parts: list[tuple[str, bool]] = []      # and whether it may be merged
    while text:
        symbol = next(filter(text.startswith, symbols), "")
        parts.append((symbol or text[0], not symbol))
        text = text.removeprefix(parts[-1][0])
    while True:
        pairs = [(-scores[left + right], place)
                 for place, ((left, is_free), (right, is_free_too)) in enumerate(pairwise(parts))
                 if is_free and is_free_too and left + right in scores]
        if not pairs:
            return [part for part, _ in parts]
        _, place = min(pairs)
        parts[place:place + 2] = [(parts[place][0] + parts[place + 1][0], True)]


def _most_likely(model: PieceModel, text: str) -> list[str]:
    """The pieces with the largest sum of scores (Viterbi, arXiv 1804.10959)."""
    normal = [score for _, score, kind in model.pieces if kind == NORMAL]
    scores = {piece: 0.1 * len(piece.encode()) - 0.1 if kind == USER_DEFINED else score
              for piece, score, kind in model.pieces if kind in (NORMAL, USER_DEFINED)}
    unknown = min(normal) - 10
    ends: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(text) + 1):
        ways = [(ends[begin][0] + scores.get(text[begin:end], unknown),
                 [*ends[begin][1], text[begin:end]])
                for begin in range(end) if text[begin:end] in scores or end - begin == 1]
        ends.append(max(ways, key=lambda way: way[0]))
    return ends[-1][1]
