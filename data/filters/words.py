"""Splits text into words.

The published filters count tokens of spaCy's rule-based tokenizer: words, numbers, punctuation
marks and symbols. It processes one *chunk* at a time, a run of non-space characters.

The rules below give the words of spaCy 3.8 (`spacy/lang/punctuation.py`, `lang/en`), except that
    - a chunk beyond `MAX_CHUNK_CHARS`, such as encoded data, is one word;
    - abbreviations and emoticons are those in common use; in other languages than
      English only the hyphen and the elision ("l'eau") are modelled;
    - scripts without spaces are not segmented: outside English text their units come apart before
      (`data.writing.separate`); within it, as in spaCy's, they are part of the chunk.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

MAX_CHUNK_CHARS = 1000

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # arXiv:2112.11446, A.1.1

_ELIDING = ("fr", "it", "ca")
_HYPHENATING = ("de", "sv", "da", "nb", "no", "id")  # a hyphen stays within the word

# Sentence-ending marks of all scripts: the Unicode property Sentence_Terminal, a few more that
# datatrove counts (`utils/text.py`, TERMINAL_PUNCTUATION), and Tibetan's. Code points, ranges
# inclusive.
_TERMINAL = """
    21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 f0d-f12 104a-104b 1362 1367-1368
    166e 1735-1736 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e
    1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7
    a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61
    10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd
    111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642
    1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f
    16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"""


def _code_points(ranges: str) -> Iterator[str]:
    for item in ranges.split():
        first, _, last = item.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


TERMINAL_MARKS = tuple(_code_points(_TERMINAL))
# Those that no Latin text has, so that rules of English corpora can accept them as well.
FOREIGN_TERMINAL_MARKS = tuple(mark for mark in TERMINAL_MARKS if not mark.isascii()
                               and not "\u2000" <= mark <= "\u2e7f")
# A word of these characters alone is a symbol (datatrove `utils/text.py`, PUNCTUATION).
SYMBOLS = frozenset((
    *string.punctuation, *TERMINAL_MARKS, *"—”％１〈、━【「」，】；“《„’∶´．（–：～«〉》）…►»",
    *map(chr, (*range(9), *range(11, 32), *range(127, 160)))))

_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪" + _QUOTES  # split off at ends
_CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"
_UNITS = ("km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb "
          "oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² м м² кг г мг")

# Chunks that are not split.
_WHOLE = """
    \\") <space> C++ and/or w/o ma'am Ma'am o'clock O'clock 's 'S 're 'd 'll 'em 'nuff 'cause
    'Cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout doin' goin' nothin' nuthin' ol' somethin' lovin'
    havin' Doin' Goin' Nothin' Somethin' Lovin' Havin' Ol'
    Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind.
    Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. Neb. Nebr. Nev. Nov. Oct. Okla.
    Ore. Pa. Sep. Sept. Tenn. Va. Wash. Wis. a.m. p.m. Adm. Bros. co. Co. Corp. Dr. e.g. E.g. Gen.
    Gov. i.e. I.e. Inc. Jr. Ltd. Md. Messrs. Mo. Mont. Mr. Mrs. Ms. Ph.D. Prof. Rep. Rev. Sen. St.
    vs. v.s."""
_EMOTICONS = """
    :) :-) :)) :-)) :))) (: (-: =) (= :] :-] [: =] :} 8) 8-) ;) ;-) (; :( :-( :(( ): )-: =( >:( :')
    :'( :/ :-/ =/ =| :| :-| ]= :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :* :-* :3 =3 :> :-> :X :x :D
    :-D ;D =D xD XD 8D <3 <33 ^_^ -_- o_o O_O o.o O.O ._. T_T \\o/ ¯\\(ツ)/¯"""


def _english_contractions() -> Iterator[tuple[str, ...]]:
    """Parts of each contraction of auxiliary verbs, with the apostrophe."""
    question = ("who", "what", "when", "where", "why", "how", "there")
    persons = ("i", "you", "he", "she", "it", "we", "they")
    pointing = ("that", "this", "these", "those")
    modal = ("ca", "could", "do", "does", "did", "had", "may", "might", "must", "need", "ought",
             "sha", "should", "wo", "would")
    for stem in (*persons, *question, *pointing):
        yield from ((stem, "'ll"), (stem, "'d"), (stem, "'d", "'ve"), (stem, "'ll", "'ve"))
    for stem in ("i", "you", "we", "they", *question, "these", "those", "could", "might", "must",
                 "should", "would", "not"):
        yield stem, "'ve"
    for stem in ("you", "we", "they", *question, "these", "those"):
        yield stem, "'re"
    for stem in ("he", "she", "it", *question, "that", "this", "let"):
        yield stem, "'s"
    for stem in (*modal, "ai", "are", "is", "was", "were", "have", "has", "dare"):
        yield stem, "n't"
    for stem in modal:
        yield stem, "n't", "'ve"
    yield from (("i", "'m"), ("i", "'m", "a"))


@cache
def _exceptions(language: str) -> dict[str, tuple[str, ...]]:
    whole = [f"{letter}." for letter in string.ascii_lowercase + "äöü"] + _EMOTICONS.split()
    table = {word: (word,) for word in ("'", "''", "’’", *whole)}
    if language != "en":
        return table
    for parts in _english_contractions():
        for cased in (parts, (parts[0].title(), *parts[1:])):
            for apostrophe in ("'", "’", ""):
                written = tuple(part.replace("'", apostrophe) for part in cased)
                table["".join(written)] = written
    for word in ("ill", "its", "hell", "shell", "shed", "were", "well", "lets"):  # words themselves
        del table[word], table[word.title()]
    for parts in ("can not", "gon na", "got ta", "c'm on"):
        for cased in (parts.split(), parts.capitalize().split()):
            table["".join(cased)] = tuple(cased)
    for hour in range(1, 13):
        table |= {f"{hour}{half}": (str(hour), half) for half in ("am", "a.m.", "pm", "p.m.")}
    whole = _WHOLE.split()
    return table | {"y'all": ("y'", "all")} | {
        word: (word,) for word in (*whole, *(word.replace("'", "’") for word in whole))}


@cache
def _pictures() -> str:
    """Characters of the category "other symbol": arrows, boxes, dingbats, most emoji."""
    return "".join(char for char in map(chr, (*range(0xA0, 0x10000), *range(0x1F000, 0x1FB00)))
                   if unicodedata.category(char) == "So")


class Splitter:
    """Splits a chunk into the words of a language.

    Args:
        language: two letters, e.g. ``en``; other languages follow the general rules.
    """

    def __init__(self, language: str):
        self._exceptions = _exceptions(language)
        marks = frozenset(_MARKS) | frozenset(_pictures())
        self._heads = marks | frozenset(_CURRENCY) | frozenset("§%=—–+")
        self._tails = marks | frozenset("—–")
        before_hyphen = r"[^\W_]" if language == "en" else r"[^\W\d_]"
        hyphen = "" if language in _HYPHENATING else \
            rf"|(?<={before_hyphen})(?:---|--|——|[-–—~])(?=[^\W\d_])"
        elision = r"|(?<=[^\W\d_]['’])(?=[^\W\d_])" if language in _ELIDING else ""
        self._inside = re.compile(
            rf"\.\.+|[…{re.escape(_pictures())}]|(?<=[0-9])[+\-*^](?=[0-9-])"
            rf"|(?:(?<=[^\W\d_])|(?<=[{_QUOTES}]))\.(?=[^\W\d_]|[{_QUOTES}])"
            rf"|(?<=[^\W\d_]),(?=[^\W\d_])"
            rf"|(?<=[^\W_])[:<>=/](?=[^\W\d_]){hyphen}{elision}")

    def split(self, chunk: str) -> tuple[str, ...]:
        """The words of `chunk`, a run of characters without white space."""
        if chunk in self._exceptions:
            return self._exceptions[chunk]
        if chunk.isalpha() or len(chunk) > MAX_CHUNK_CHARS:
            return (chunk,)
        word, mark = chunk[:-1], chunk[-1]  # fast path
        if mark in ",.;:!?" and word.isalpha() and word.islower() and len(word) > 1 \
                and word not in self._exceptions:
            return word, mark
        heads, middle, tails = self._cut_ends(chunk)
        return tuple(self._merge([*heads, *self._split_middle(middle), *reversed(tails)]))

    def _merge(self, words: list[str]) -> Iterator[str]:
        """Joins neighbouring words that form an exception, e.g. the emoticon in "(see):"."""
        before = ""
        for word in words:
            if before and self._exceptions.get(before + word) == (before + word,):
                before += word
                continue
            if before:
                yield before
            before = word
        yield before

    def _cut_ends(self, chunk: str) -> tuple[list[str], str, list[str]]:
        heads, tails = [], []
        while chunk and chunk not in self._exceptions:
            head = self._head_length(chunk)
            if head and chunk[head:] in self._exceptions:
                heads.append(chunk[:head])
                chunk = chunk[head:]
                break
            tail = self._tail_length(chunk[head:])
            if tail and chunk[:-tail] in self._exceptions:
                tails.append(chunk[-tail:])
                chunk = chunk[:-tail]
                break
            if not head and not tail:
                break
            if head:
                heads.append(chunk[:head])
            if tail:
                tails.append(chunk[-tail:])
            chunk = chunk[head:len(chunk) - tail]
        return heads, chunk, tails

    def _head_length(self, chunk: str) -> int:
        if chunk[0] not in self._heads:
            if chunk.startswith(".."):
                return len(chunk) - len(chunk.lstrip("."))
            return 3 if chunk.startswith("US$") else 2 if chunk[:2] in ("A$", "C$") else 0
        return 0 if chunk[0] == "+" and chunk[1:2].isdigit() else 1

    def _tail_length(self, chunk: str) -> int:
        if not chunk:
            return 0
        last, before = chunk[-1], chunk[-2:-1]
        if last in "sS" and before and before in "'’":
            return 2
        if last in self._tails:
            return 1
        if last == ".":
            if before == ".":
                return len(chunk) - len(chunk.rstrip("."))
            ends = before and (before.isdigit() or before in "%²-+" or before in _MARKS or (
                before.isalpha() and (not before.isupper() or chunk[-3:-2].isupper())))
            return 1 if ends else 0
        if last in _CURRENCY or last == "+":
            return 1 if before.isdigit() else 0
        unit = _NUMBER_WITH_UNIT.search(chunk)
        return len(unit.group(1)) if unit else 0

    def _split_middle(self, middle: str) -> Sequence[str]:
        if middle in self._exceptions:
            return self._exceptions[middle]
        if middle.isalnum() or not middle:
            return (middle,) if middle else ()
        if "." in middle and _ADDRESS.fullmatch(middle):
            return (middle,)
        words, end = [], 0
        for match in self._inside.finditer(middle):
            start, stop = match.span()
            if match.group() == "." and (middle[start - 1].isupper() or middle[stop].islower()):
                continue
            words += (middle[end:start], middle[start:stop])
            end = stop
        words.append(middle[end:])
        return list(filter(None, words))


_NUMBER_WITH_UNIT = re.compile(
    rf"(?<=[0-9])({'|'.join(sorted(map(re.escape, _UNITS.split()), key=len, reverse=True))})$")
# Host names, file names and links are one word: `numpy.org/doc`, `my-file.txt`.
_ADDRESS = re.compile(
    r"(?:[\w+.\-]{2,}://)?(?:[^\s@]+@)?(?:(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+"
    r"[a-z\u00df-\u00ff]{2,63}|(?:[0-9]{1,3}\.){3}[0-9]{1,3})(?::[0-9]{2,5})?(?:[/?#]\S*)?")
