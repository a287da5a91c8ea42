"""Signals: numbers that rules decide on, computed once from one tokenisation of the document.

A *token* is a run of non-space characters and a *word* a token with a letter or digit in it, so
that lone symbols do not count as words. Where published implementations disagree, the definition
that is used here stands in `measure_prose`.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "▪", "●", "-", "*")
ELLIPSES = ("...", "…")
MIN_PROSE_LINE_WORDS = 6


def measure_prose(text: str) -> dict[str, float]:
    """Signals of running text.

    Definitions (arXiv:2112.11446, table A1 and appendix A.1.1; arXiv:1910.10683, section 2.2):
        words: number of words.
        mean_word_chars: mean, not median, number of characters of a word.
        symbol_word_ratio: the larger of hash signs and ellipses, per word.
        bullet_line_frac, ellipsis_line_frac: share of non-blank lines that begin with a bullet,
            or end in an ellipsis.
        alphabetic_word_frac: share of tokens, lone symbols included, that hold a letter.
        stop_words: distinct ones of the eight, in any case.
        duplicate_line_frac: share of non-blank lines that are a second or later occurrence.
        top_2gram_char_frac: characters in the most frequent word pair (spaces left out) over
            characters of all words; zero when no pair occurs twice.
        lorem_ipsum: occurrences of the filler text.
    """
    tokens = text.split()
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    vocabulary, ids = _intern(tokens)
    chars = np.fromiter(map(len, vocabulary), np.int64, len(vocabulary))
    alphabetic = np.fromiter((any(map(str.isalpha, token)) for token in vocabulary), bool,
                             len(vocabulary))
    is_word = np.fromiter((any(map(str.isalnum, token)) for token in vocabulary), bool,
                          len(vocabulary))
    words = ids[is_word[ids]]
    num_words = max(len(words), 1)
    hashes = text.count("#")
    ellipses = sum(map(text.count, ELLIPSES))
    lower = {token.lower().strip(".,;:()\"'") for token in vocabulary}
    return {
        "words": len(words),
        "mean_word_chars": float(chars[words].sum() / num_words),
        "symbol_word_ratio": max(hashes, ellipses) / num_words,
        "bullet_line_frac": _share(line.startswith(BULLETS) for line in lines),
        "ellipsis_line_frac": _share(line.endswith(ELLIPSES) for line in lines),
        "alphabetic_word_frac": float(alphabetic[ids].mean()) if len(ids) else 0.0,
        "stop_words": len(STOP_WORDS & lower),
        "duplicate_line_frac": 1 - len(set(lines)) / len(lines) if lines else 0.0,
        "top_2gram_char_frac": _top_2gram_char_frac(words, chars),
        "lorem_ipsum": text.lower().count("lorem ipsum"),
    }


def measure_code(text: str) -> dict[str, float]:
    """Signals of source code: line lengths in characters, share of letters and digits.

    Source: the basic filters of bigcode-project/bigcode-dataset.
    """
    lines = [len(line) for line in text.splitlines()] or [0]
    return {
        "words": len(text.split()),
        "line_chars": max(lines),
        "mean_line_chars": sum(lines) / len(lines),
        "alphanumeric_frac": sum(map(str.isalnum, text)) / max(len(text), 1),
    }


def prose_frac(text: str) -> float:
    """Share of tokens that stand in sentence-like lines: six tokens or more, a stop word in them.

    The quality number of a document: tables, signatures and generated code score near 0, running
    explanations near 1.
    """
    total = prose = 0
    for line in text.splitlines():
        tokens = line.split()
        total += len(tokens)
        if len(tokens) >= MIN_PROSE_LINE_WORDS and not STOP_WORDS.isdisjoint(tokens):
            prose += len(tokens)
    return prose / total if total else 0.0


def _intern(tokens: list[str]) -> tuple[list[str], np.ndarray]:
    """Distinct tokens in order of appearance, and each token's index among them."""
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    ids = np.fromiter(map(index.__getitem__, tokens), np.int64, len(tokens))
    return list(index), ids


def _share(flags) -> float:
    flags = list(flags)
    return sum(flags) / len(flags) if flags else 0.0


def _top_2gram_char_frac(words: np.ndarray, chars: np.ndarray) -> float:
    if len(words) < 2:
        return 0.0
    pairs, counts = np.unique(words[:-1] * len(chars) + words[1:], return_counts=True)
    top = counts.max()
    if top == 1:
        return 0.0
    first, second = np.divmod(pairs[counts == top], len(chars))
    covered = int(top) * int((chars[first] + chars[second]).max())
    return min(covered / int(chars[words].sum()), 1.0)
