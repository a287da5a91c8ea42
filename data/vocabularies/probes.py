"""Short texts that show how a tokenizer divides what compression hides: digits, indents, typing
errors, pictures, rare scripts, contractions, case, and a word's place."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from data.tokenizers.tokenizer import Tokenizer

# A few numbers of each size, which cover its range evenly.
NUMBERS = {size: [str(10 ** (size - 1) + step * 9 * 10 ** (size - 1) // 24) for step in range(24)]
           for size in range(2, 8)} | {1: [str(digit) for digit in range(10)]}
INDENTS = {**{f"{width} spaces": " " * width for width in range(2, 17)},
           "1 tab": "\t", "2 tabs": "\t\t", "3 tabs": "\t\t\t", "4 tabs": "\t\t\t\t"}
TYPOS = {"receive": "recieve", "definitely": "definately", "separate": "seperate",
         "necessary": "neccessary", "tomorrow": "tommorow", "government": "goverment",
         "environment": "enviroment", "beginning": "begining", "occurred": "occured",
         "because": "becuase", "friend": "freind", "which": "whcih", "people": "poeple",
         "language": "langauge", "question": "quesiton", "important": "imporant"}
EMOJI = {"face": "\U0001F600", "heart": "\u2764\ufe0f", "tree": "\U0001F332",
         "thumb, dark skin": "\U0001F44D\U0001F3FF", "flag": "\U0001F1E7\U0001F1F7",
         "family": "\U0001F468\u200d\U0001F469\u200d\U0001F467"}
RARE_SCRIPTS = {
    "Amharic": "ሰላም ለሁሉም", "Armenian": "բարև աշխարհ", "Burmese": "မင်္ဂလာပါ", "Cherokee": "ᎣᏏᏲ",
    "Georgian": "გამარჯობა", "Gujarati": "નમસ્તે દુનિયા", "Khmer": "សួស្តី", "Lao": "ສະບາຍດີ",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ", "N'Ko": "ߒߞߏ", "Sinhala": "ආයුබෝවන්", "Tibetan": "བཀྲ་ཤིས།",
    "Tifinagh": "ⵜⵉⴼⵉⵏⴰⵖ", "Gothic": "𐌲𐌿𐍄𐌰𐌽𐍃"}
CONTRACTIONS = ("don't", "can't", "it's", "we'll", "they've", "I'm", "she'd", "you're",
                "don’t", "can’t", "it’s", "we’ll", "they’ve", "I’m", "she’d", "you’re")
WORDS = ("house", "water", "people", "think", "green", "question", "number", "morning",
         "machine", "history", "language", "computer", "children", "science", "market", "winter")
PLACES = {"first in the text": "", "after a space": "a ", "after a bracket": "(",
          "after a line break": "a\n"}


def run_probes(tokenizer: Tokenizer) -> dict[str, Any]:
    """What every probe counts.

    Returns:
        numbers: by number of digits, `tokens_per_digit`, the commonest `split` (``3+1``: sizes of
            the tokens), the share `split_frac` of numbers that have it, and `tokens`, the mean.
        indents: tokens that an indent adds to a line, by its name.
        typos: tokens of misspelt words over those of the words, and both for each.
        emoji: tokens of each, after a word.
        scripts: tokens per character of a greeting in each.
        contractions: mean tokens with the apostrophe of a typewriter, and with that of print.
        cases: mean tokens of the same words in lower case, title case and upper case.
        places: mean tokens of the same words by what stands before them.
    """
    return {"numbers": {str(size): probe_numbers(tokenizer, NUMBERS[size])
                        for size in sorted(NUMBERS)},
            "indents": {name: count_added(tokenizer, "if x:\n", indent, "return y")
                        for name, indent in INDENTS.items()},
            "typos": probe_typos(tokenizer),
            "emoji": {name: count_added(tokenizer, "a", f" {text}")
                      for name, text in EMOJI.items()},
            "scripts": {name: count_added(tokenizer, "a", f" {text}") / len(text)
                        for name, text in RARE_SCRIPTS.items()},
            "contractions": {name: _mean(tokenizer, "a", (f" {word}" for word in words))
                             for name, words in (("'", CONTRACTIONS[:8]), ("’", CONTRACTIONS[8:]))},
            "cases": {name: _mean(tokenizer, "a", (f" {change(word)}" for word in WORDS))
                      for name, change in (("lower", str.lower), ("title", str.title),
                                           ("upper", str.upper))},
            "places": {name: _mean_after(tokenizer, before) for name, before in PLACES.items()}}


def count_added(tokenizer: Tokenizer, before: str, text: str, after: str = "") -> int:
    """Number of tokens that `text` adds between `before` and `after`."""
    whole, rest = tokenizer.encode(before + text + after), tokenizer.encode(before + after)
    return len(whole) - len(rest)


def _mean(tokenizer: Tokenizer, before: str, texts: Iterable[str]) -> float:
    return statistics.fmean(count_added(tokenizer, before, text) for text in texts)


def _mean_after(tokenizer: Tokenizer, before: str) -> float:
    """Mean tokens of `WORDS` after a text, whose final space counts as theirs."""
    start = before.rstrip(" ")
    return _mean(tokenizer, start, (before[len(start):] + word for word in WORDS))


def probe_numbers(tokenizer: Tokenizer, numbers: Sequence[str]) -> dict[str, Any]:
    """How numbers of one size are split, after an opening bracket."""
    splits = Counter(split for number in numbers if (split := split_sizes(tokenizer, number)))
    tokens = _mean(tokenizer, "(", numbers)
    commonest, number = splits.most_common(1)[0] if splits else ((), 0)
    return {"tokens": tokens, "tokens_per_digit": tokens / len(numbers[0]),
            "split": "+".join(map(str, commonest)), "split_frac": number / len(numbers)}


def split_sizes(tokenizer: Tokenizer, number: str) -> tuple[int, ...]:
    """Digits in each token of a number after a bracket; () where the tokens are not its digits."""
    sizes: list[int] = []
    for piece in reversed(list(tokenizer.stream(tokenizer.encode(f"({number}")))):
        left = len(number) - sum(sizes)
        if not left:
            break
        taken = min(left, len(piece))
        if piece[len(piece) - taken:] != number[left - taken:left].encode():
            return ()
        sizes.append(taken)
    return tuple(size for size in reversed(sizes) if size)


def probe_typos(tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokens of misspelt words over those of the words, after a space."""
    counts = {wrong: [count_added(tokenizer, "a", f" {text}") for text in (right, wrong)]
              for right, wrong in TYPOS.items()}
    right, wrong = (sum(pair[side] for pair in counts.values()) for side in (0, 1))
    return {"ratio": wrong / max(right, 1), "words": counts}
