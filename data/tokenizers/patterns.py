"""How text is normalised and split before pieces are merged or looked up, by name.

The expressions of published tokenizers are facts about these: gpt2, cl100k and o200k stand in
`tiktoken_ext/openai_public.py` of openai/tiktoken, llama3 and qwen in the `tokenizer.json` of
Llama 3 and of Qwen2 and later.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping

import regex

from core.errors import UserError, first_line, quote

# GPT-4's split (cl100k), with digits one by one, for arithmetic, and with runs of spaces kept
# together, for indented text.
HEARTWOOD = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}|"
             r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Hebrew", "Arabic", "Ethiopic",
            "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Tamil", "Telugu", "Kannada",
            "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Han",
            "Hiragana", "Katakana", "Hangul")
_OF_ONE_SCRIPT = "|".join(rf"\p{{{script}}}+" for script in _SCRIPTS)
_O200K_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_UPPER, _O200K_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

SPLITS: Mapping[str, str] = {
    "heartwood": HEARTWOOD,
    "threes": HEARTWOOD.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),       # digits in threes
    # No token has letters of two scripts.
    "scripts": HEARTWOOD.replace(r"\p{L}+|", rf"(?:{_OF_ONE_SCRIPT}|\p{{L}})|"),
    "gpt2": (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$"
             r"|\s+(?!\S)|\s"),
    "cl100k": (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
               r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"),
    "o200k": "|".join((
        rf"[^\r\n\p{{L}}\p{{N}}]?{_O200K_UPPER}*{_O200K_LOWER}+{_O200K_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_O200K_UPPER}+{_O200K_LOWER}*{_O200K_ENDING}",
        r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")),
    "llama3": LLAMA3,
    "qwen": LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}

NORMALIZATIONS: Mapping[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "lower": str.lower,
}

# Runs of letters, digits, spaces, line ends and marks, where expressions are slow.
PROBES = tuple(letter * 200 + end for letter in "aA1 \n!_'\u00e9\u65e5" for end in ("", "\0"))
MAX_PROBE_SECS = 2.0


def check_split(pattern: str) -> None:
    """Raises `ValueError` for an expression of other people that backtracks without end.

    The engines of tiktoken and tokenizers give up such a match, see `splitting`; this finds most
    of these expressions before a long run begins. Those of `SPLITS` are known.

    Raises:
        ValueError: it does not split a run of 200 characters within MAX_PROBE_SECS.
        regex.error: it is no expression of the library `regex`.
    """
    if pattern in SPLITS.values():
        return
    compiled = regex.compile(pattern)
    for probe in PROBES:
        try:
            for _ in compiled.finditer(probe, timeout=MAX_PROBE_SECS):
                pass
        except TimeoutError:
            raise ValueError(f"the split {quote(pattern)} backtracks without end on a run of "
                             f"{probe[0]!r}") from None


@contextlib.contextmanager
def splitting() -> Iterator[None]:
    """Makes a `UserError` of the error or panic with which a library gives up a match or a text."""
    try:
        yield
    except BaseException as error:      # a panic is no `Exception`
        if type(error) is not ValueError and type(error).__name__ != "PanicException":
            raise
        raise UserError("the tokenizer", f"its library fails on a text ({first_line(error)})",
                        "use another tokenizer, or remove the text") from None
