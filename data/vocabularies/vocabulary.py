"""What a vocabulary holds: scripts, odd and unused tokens, and those that no text becomes."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import re2

from data.tokenizers.tokenizer import Tokenizer

SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Ethiopic",
           "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil", "Telugu", "Kannada",
           "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Mongolian", "Han",
           "Hiragana", "Katakana", "Hangul", "Cherokee")
JAPANESE = frozenset(("Han", "Hiragana", "Katakana"))      # which words of one language mix
BYTES, SPACES, DIGITS, MARKS, OTHERS = "(bytes)", "(spaces)", "(digits)", "(marks)", "(others)"
NUM_EXAMPLES = 20
NUM_RANKS = 36      # points of a curve of ranks


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes of every id, as it stands within a text; none for an id without a token."""
    # Some tokenizers strip the space of a text's first token, so one stands before the others.
    return list(tokenizer.stream([0, *range(tokenizer.vocab_size)]))[1:]


@functools.cache
def _script_numbers() -> bytes:
    """For each code point the number of its letter's script, the last one for `OTHERS`; else 0."""
    numbers = bytearray(sys.maxunicode + 1)
    letters = "".join(filter(str.isalpha, map(chr, range(len(numbers)))))
    for letter in letters:
        numbers[ord(letter)] = len(SCRIPTS) + 1
    for number, script in enumerate(SCRIPTS, start=1):
        for run in re2.findall(rf"\p{{{script}}}+", letters):
            for letter in run:
                numbers[ord(letter)] = number
    return bytes(numbers)


def scripts_of(text: str) -> list[str]:
    """The scripts of a text's letters, in their order; `OTHERS` for one outside `SCRIPTS`."""
    if text.isascii():
        return ["Latin"] if any(map(str.isalpha, text)) else []
    numbers = _script_numbers()
    found = dict.fromkeys(number for letter in text if (number := numbers[ord(letter)]))
    return [(*SCRIPTS, OTHERS)[number - 1] for number in found]


def kind_of(piece: bytes) -> str:
    """The script of a token's first letter, or what else it is made of."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return BYTES
    if scripts := scripts_of(text):
        return scripts[0]
    return SPACES if text.isspace() else DIGITS if any(map(str.isdigit, text)) else MARKS


def _mixes_scripts(text: str) -> bool:
    found = set(scripts_of(text)) - {OTHERS}
    return len(found) > 1 and not found <= JAPANESE


def _is_control(char: str) -> bool:
    return (ord(char) < 32 and char not in "\t\n\r") or 127 <= ord(char) < 160


ODD: Mapping[str, Callable[[str], bool]] = {    # of what is UTF-8 by itself
    "white space only": str.isspace,
    "letters of several scripts": _mixes_scripts,
    "digits and letters": lambda text: (any(map(str.isdigit, text))
                                        and any(map(str.isalpha, text))),
    "control characters": lambda text: any(map(_is_control, text))}
NOT_UTF8 = "not UTF-8 alone"


def describe_vocabulary(tokenizer: Tokenizer, counts_V: np.ndarray) -> dict[str, Any]:
    """Counts of a vocabulary's tokens by kind, with examples.

    Args:
        counts_V: how often each id is used in the sample.

    Returns:
        `ordinary` tokens (with text, not special), `specials`, `empty` ids; `used`, `unused` and
        `unreachable` ones of the ordinary tokens, the longest, the odd ones by reason, `scripts`
        (share of the ordinary tokens), and `ranks`, the share of the sample's tokens by rank.
    """
    pieces = pieces_of(tokenizer)
    ordinary = [i for i, piece in enumerate(pieces) if piece and i not in tokenizer.special_ids]
    used = [i for i in ordinary if counts_V[i]]
    unused = [i for i in ordinary if not counts_V[i]]
    unreachable = find_unreachable(tokenizer, pieces, unused)
    kinds = Counter(kind_of(pieces[i]) for i in ordinary)
    return {"ordinary": len(ordinary), "specials": len(tokenizer.specials),
            "special_names": list(tokenizer.specials)[:NUM_EXAMPLES],
            "empty": len(pieces) - len(ordinary) - len(tokenizer.special_ids),
            "used": len(used), "unused": len(unused),
            "unused_frac": len(unused) / max(len(ordinary), 1),
            "unreachable": _examples(unreachable, pieces),
            "longest": _examples(ordinary, pieces)["examples"],
            "odd": {name: _examples(ids, pieces)
                    for name, ids in find_odd(pieces, ordinary).items()},
            "scripts": {name: number / len(ordinary) for name, number in kinds.most_common()},
            "ranks": rank_curve(counts_V)}


def find_odd(pieces: Sequence[bytes], ids: Iterable[int]) -> dict[str, list[int]]:
    """Ids of tokens that are rarely wanted, by reason."""
    found: dict[str, list[int]] = {name: [] for name in (NOT_UTF8, *ODD)}
    for i in ids:
        try:
            text = pieces[i].decode()
        except UnicodeDecodeError:
            found[NOT_UTF8].append(i)
            continue
        for name, is_odd in ODD.items():
            if is_odd(text):
                found[name].append(i)
    return found


def find_unreachable(tokenizer: Tokenizer, pieces: Sequence[bytes],
                     unused: Sequence[int]) -> list[int]:
    """Ids of tokens whose own text never becomes them.

    The text of a token is encoded alone and after a line break, as some tokenizers put a space
    before a text. A token that is not UTF-8 alone has no such text and is not tested.

    Args:
        unused: ids to test: what the sample uses is reachable.
    """
    texts = {i: text for i in unused if (text := _text_or_none(pieces[i])) is not None}
    for before in ("", "\n"):
        start = tokenizer.encode(before) if before else []
        encoded = tokenizer.encode_batch([before + text for text in texts.values()])
        texts = {i: text for (i, text), ids in zip(texts.items(), encoded) if ids != [*start, i]}
    # A space that is put before a text takes the place of the token's own.
    spaced = [i for i, text in texts.items() if text.startswith(" ")]
    alone = tokenizer.encode_batch([texts[i][1:] for i in spaced])
    return sorted(set(texts) - {i for i, ids in zip(spaced, alone) if ids == [i]})


def _text_or_none(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None


def _examples(ids: Sequence[int], pieces: Sequence[bytes]) -> dict[str, Any]:
    """Number of tokens, and the longest of them as (id, text)."""
    longest = sorted(ids, key=lambda i: (-len(pieces[i]), i))[:NUM_EXAMPLES]
    return {"tokens": len(ids), "examples": [(i, show_piece(pieces[i])) for i in longest]}


def show_piece(piece: bytes) -> str:
    """A token as text; what is not UTF-8 as hex digits."""
    text = _text_or_none(piece)
    return "".join(f"<{byte:02X}>" for byte in piece) if text is None else text


def rank_curve(counts_V: np.ndarray) -> list[tuple[int, float]]:
    """(rank, share of the sample's tokens) of used tokens, at ranks a constant factor apart."""
    shares = np.sort(counts_V[counts_V > 0])[::-1] / counts_V.sum()
    ranks = np.unique(np.geomspace(1, len(shares), NUM_RANKS).round().astype(int))
    return [(int(rank), float(shares[rank - 1])) for rank in ranks]
