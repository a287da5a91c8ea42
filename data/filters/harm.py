"""Lists of harmful content: hosts and URLs to block, and words to count.

The lists are supplied by the user; none is included. URL lists by category
are published by the Université Toulouse Capitole (UT1: one folder per category, with the files
`domains` and `urls`); word lists, as C4 used them, by the LDNOOBW project (one file per language).
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import re2
import xxhash

from core.errors import UserError, require_file
from data.writing import count_words, is_unspaced

_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
PATTERN_BYTES = 256 << 20   # memory limit of the pattern of a word list


@dataclasses.dataclass(frozen=True)
class UrlList:
    """Hosts and URLs to block, by category; about ten bytes per entry.

    Attributes:
        categories: names, e.g. ``adult``.
        places: sorted xxh3-64 hashes of ``host`` and ``host/path`` entries.
        owners: category of each of `places`.
        substrings: blocked substrings of URLs, in lower case, with their category.
    """

    categories: tuple[str, ...]
    places: np.ndarray
    owners: np.ndarray
    substrings: tuple[tuple[str, int], ...]

    def match(self, url: str) -> str | None:
        """The category that blocks `url`, or None.

        An entry ``example.com`` blocks that host and its subdomains, ``example.com/path`` that
        path and all paths below it on these hosts. Sources without a host, such as file paths, are
        matched against substrings only.
        """
        lower = url.lower()
        for substring, owner in self.substrings:
            if substring in lower:
                return self.categories[owner]
        hashes = np.array([_hash(place) for place in _places(lower)], np.uint64)
        if not len(hashes) or not len(self.places):
            return None
        at = np.minimum(np.searchsorted(self.places, hashes), len(self.places) - 1)
        hits = at[self.places[at] == hashes]
        return self.categories[self.owners[hits[0]]] if len(hits) else None


@dataclasses.dataclass(frozen=True)
class WordList:
    """Words and phrases to count; `pattern` matches any of them."""

    pattern: object

    def count(self, text: str) -> int:
        """Occurrences of the terms in `text` as whole words, in any case.

        Words as in C4's cleaner (arXiv 1910.10683, tensorflow_datasets/text/c4_utils.py) with two
        corrections: accented letters are letters, and in scripts without spaces terms need not be
            whole words.
        """
        return sum(_is_whole(text, *match.span()) for match in self.pattern.finditer(text))


def measure(text: str, word_lists: Sequence[WordList]) -> dict[str, float]:
    """Signals ``bad_words``, occurrences of any list's terms, and ``bad_word_frac``, their share
    of the text's words."""
    num_bad = sum(words.count(text) for words in word_lists)
    return {"bad_words": num_bad, "bad_word_frac": num_bad / max(count_words(text), 1)}


@functools.cache
def load_url_list(path: str | Path) -> UrlList:
    """Loads a URL list, once per process.

    Args:
        path: a text file with an entry per line: a host, a host with a path, or ``*text*`` for
            URLs that contain a text; ``#`` begins a comment. Or a folder in the format of
            UT1: the files `domains` and `urls` of one category, or a subfolder per category. The
            category is the name of the folder, or of a single file without its suffix.

    Raises:
        UserError: a missing file, a folder without lists, or an invalid line.
    """
    path = require_file("url_list", path, "give a file with a host per line, or a UT1 folder")
    files = [path]
    if path.is_dir():
        files = sorted(file for pattern in ("domains", "urls", "*/domains", "*/urls")
                       for file in path.glob(pattern))
        if not files:
            raise UserError(f"url_list={str(path)!r}", "holds no file `domains` or `urls`",
                            "give a UT1 folder, or a file with a host per line")
    categories = sorted({_category(file) for file in files})
    places, owners, substrings = [], [], []
    for file in files:
        owner = categories.index(_category(file))
        for number, entry in _read_lines(file):
            if len(entry) > 2 and entry[0] == entry[-1] == "*":
                substrings.append((entry[1:-1], owner))
            else:
                places.append(_hash(_normalise(entry, f"{file}, line {number}")))
                owners.append(owner)
    places, first = np.unique(np.array(places, np.uint64), return_index=True)
    return UrlList(tuple(categories), places, np.array(owners, np.uint16)[first],
                   tuple(sorted(set(substrings))))


@functools.cache
def load_word_list(path: str | Path) -> WordList:
    """Loads a word list, a term per line, once per process; ``#`` begins a comment.

    Raises:
        UserError: a missing or empty file.
    """
    path = require_file("word_list", path, "give a file with a word per line")
    terms = sorted({entry for _, entry in _read_lines(path)})
    if not terms:
        raise UserError(f"word_list={str(path)!r}", "holds no word", "give a word per line")
    options = re2.Options()
    options.max_mem = PATTERN_BYTES
    options.case_sensitive = False
    options.longest_match = True
    return WordList(re2.compile("|".join(map(_term_pattern, terms)), options))


def _category(file: Path) -> str:
    return file.resolve().parent.name if file.name in ("domains", "urls") else file.stem


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered entries in lower case, without comments, in NFC."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 (byte {error.start})", "convert it") from None
    for number, line in enumerate(text.splitlines(), 1):
        entry = unicodedata.normalize("NFC", line.strip().lower())
        if entry and not entry.startswith("#"):
            yield number, entry


def _normalise(entry: str, where: str) -> str:
    """``host`` or ``host/path`` of an entry, without scheme, port, `www.` and last slash."""
    if _HOST.fullmatch(entry):      # fast path of nearly all entries
        return entry.removeprefix("www.")
    places = list(_places(entry if "://" in entry else f"//{entry}"))
    if not places or any(map(str.isspace, entry)) or "*" in entry:
        raise UserError(where, f"{entry!r} is not a host or URL",
                        "write example.com, example.com/path or *text*")
    return places[0].removeprefix("www.")


def _places(url: str) -> Iterator[str]:
    """Entries that would match `url`, the longest first: its hosts, each with all its paths."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:      # an invalid URL, e.g. `http://[`
        return
    if not host:
        return
    steps = [step for step in parts.path.split("/") if step]
    if parts.query:
        steps.append(f"{steps.pop() if steps else ''}?{parts.query}")
    labels = _ascii_host(host).split(".")
    for first in range(len(labels)):
        for last in range(len(steps), -1, -1):
            yield "/".join((".".join(labels[first:]), *steps[:last]))


def _ascii_host(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _hash(place: str) -> int:
    return xxhash.xxh3_64_intdigest(place.encode("utf-8", "replace"))


def _term_pattern(term: str) -> str:
    left, right = (r"\b" if end.isascii() and end.isalnum() else "" for end in (term[0], term[-1]))
    return left + r"\s+".join(map(re2.escape, term.split())) + right


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no letter, digit or combining mark continues ``text[start:end]`` on either side."""
    edges = (text[max(start - 1, 0):start + 1], text[end - 1:end + 1])
    return not any(map(_is_joined, edges))


def _is_joined(pair: str) -> bool:
    """Whether a pair of neighbouring characters belongs to one word; never of units of scripts
    without spaces, where a term counts in any position."""
    return (len(pair) == 2 and not is_unspaced(pair)
            and all(char.isalnum() or unicodedata.category(char)[0] == "M" for char in pair))
