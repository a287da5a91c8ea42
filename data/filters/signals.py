"""Signals: the numbers that the rules of all presets bound, computed from one tokenisation.

The name of a signal begins with the family whose definition it follows; the definitions below state
where published implementations differ. Only `words` has no family: chunks with a letter or digit,
or all chunks of code; 0 means an empty document. In scripts without spaces, except within English
text, chunks and words are the units of `data.writing`, each counted as a part of a word. A signal
that has no meaning for a document is left out, and its rules do not apply: `stop_words` without a
list for the language, and others as noted. The families have different units:

    gopher, fineweb   words of `data.filters.words`, punctuation marks included
    technical         *chunks*, runs of non-space characters; a word is one with a letter or digit
    code              lines and characters

gopher (arXiv:2112.11446 as datatrove 0.10 reads it: `gopher_quality_filter.py`,
`gopher_repetition_filter.py`):
    words: number of words, without symbols. mean_word_chars: their mean, not median, length.
    hash_word_ratio, ellipsis_word_ratio: "#", and "..." or "…", per word of any kind.
    bullet_line_frac, ellipsis_line_frac: share of lines, blank ones included, that begin with "•"
        or "-", or end in an ellipsis.
    alphabetic_word_frac: share of words of any kind that hold a letter.
    stop_words: number of distinct stop words of the language, case-sensitive; in languages
        without spaces and Korean they may be parts of words.
    dup_line_frac, dup_paragraph_frac: share of second and later occurrences. Lines are split
        at newlines, paragraphs at blank lines; neither is stripped.
    dup_line_char_frac, dup_paragraph_char_frac, top_<n>gram_char_frac, dup_<n>gram_char_frac:
        characters of repetitions (see `data.filters.repetition`) over characters of the text.
fineweb (arXiv:2406.17557, `fineweb_quality_filter.py`), on the text after
FineWeb's C4 line rules, which its pipeline applies first; fineweb2 on the unedited text:
    lines: number of non-blank lines, of which the following are shares.
    terminal_line_frac: lines that end in a sentence-ending mark of any script; a closing quote
        does not count. short_line_frac: lines of at most 30 characters, or, of units, 5 words.
    dup_line_char_frac: characters in second or later occurrences over all but newlines.
    newline_word_ratio: newlines per word of any kind.
technical, for documentation:
    words, mean_word_chars, bullet_line_frac, ellipsis_line_frac: over non-blank, stripped lines,
        with more kinds of bullets and ellipses. symbol_word_ratio: the larger of hash signs and
        ellipses.
        mean_word_chars: left out where most words are units.
    alphabetic_word_frac: share of chunks with a letter. duplicate_line_frac: of stripped non-blank
        lines. garbled_word_frac: words with symbols between letters, as text has that was decoded
        by a wrong charset. stop_words: those of the language in any case, where they are common in
        its texts and it is identified with at least `MIN_LANGUAGE_SCORE`; of other languages than
        English, words that recur in the text count too. letter_pair_ratio: see
        `data.filters.letters`; left out of English identified with that score, and of texts too
        short for it.
    top_2gram_char_frac: characters of the most frequent pair of words, if it occurs twice, over
        the characters of all words. lorem_ipsum: occurrences of the filler text.
code: see `data.filters.code`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from data.filters.code import measure_code
from data.filters.language import sample
from data.filters.letters import pair_ratio
from data.filters.lines import clean_lines
from data.filters.presets import FINEWEB_LINE_RULES
from data.filters.repetition import count_repeated_chars, count_top_pair_chars
from data.filters.vocabulary import (
    ALPHABETIC,
    CHUNK_ALPHABETIC,
    CHUNK_GARBLED,
    CHUNK_WORD,
    RARE_STOPS,
    STOPS_WITHIN_WORDS,
    SYMBOL,
    Vocabulary,
    stop_words_of,
    vocabulary_of,
)
from data.filters.words import TERMINAL_MARKS
from data.writing import PARTS, count_words, is_mostly_unspaced, is_unspaced

GOPHER_BULLETS = ("•", "-")
TECHNICAL_BULLETS = frozenset("•‣▪●-*・·◦○■◆－")
ELLIPSES = ("...", "…")
TECHNICAL_ELLIPSES = (*ELLIPSES, "⋯", "。。。")
SHORT_LINE_CHARS, SHORT_LINE_WORDS = 30, 5
# Left out of a document for which they have no meaning.
OPTIONAL_SIGNALS = ("gopher_stop_words", "technical_stop_words", "technical_mean_word_chars")
MIN_LANGUAGE_SCORE = 0.65  # of a sure identification, as FineWeb requires it
MIN_STOP_WORDS = 2  # of prose, as Gopher requires them
MIN_PROSE_LINE_WORDS = 6
BATCH_CHARS = 1_000_000  # measured at once, so that the arrays fit the cache
BATCH_DOCUMENTS = 4096
LINE_SIGNALS = ("lines", "terminal_line_frac", "short_line_frac", "dup_line_char_frac")

_LINE_BREAK, _PARAGRAPH_BREAK = re.compile("\n+"), re.compile("\n{2,}")


def measure_batch(texts: Sequence[str], kinds: Sequence[str],
                  languages: Sequence[tuple[str, float]]) -> list[dict[str, float]]:
    """Signals of many documents; those of code for code, all others for prose.

    Args:
        kinds: "prose" or "code", of each document.
        languages: code and score of each document, as from `data.filters.language`. They
            determine the words and the stop words.
    """
    measured: list[dict[str, float]] = [{}] * len(texts)
    batches: dict[str, list[int]] = {}
    for index, (text, kind, (language, score)) in enumerate(zip(texts, kinds, languages,
                                                                strict=True)):
        if kind == "code":
            measured[index] = measure_code(text)
            continue
        if language == "en" and score < MIN_LANGUAGE_SCORE and is_mostly_unspaced(text):
            language = "und"    # e.g. Chinese with much code, whose words English rules would join
        batches.setdefault(language, []).append(index)
    for language, indices in batches.items():
        for batch in _split(indices, texts):
            vocabulary = vocabulary_of(language)
            rows = _measure_prose(vocabulary, [texts[index] for index in batch])
            for index, row in zip(batch, rows):
                _omit_inapplicable(row, texts[index], vocabulary, languages[index][1])
                measured[index] = row
    return measured


def _omit_inapplicable(row: dict[str, float], text: str, vocabulary: Vocabulary,
                       score: float) -> None:
    """Takes out what has no meaning for a document, in place."""
    if not vocabulary.stop_words:
        del row["gopher_stop_words"]
    if not vocabulary.is_english or score < MIN_LANGUAGE_SCORE:
        ratio = pair_ratio(sample(text))
        row |= {} if ratio is None else {"technical_letter_pair_ratio": ratio}
    if not vocabulary.are_stops_common or score < MIN_LANGUAGE_SCORE:
        del row["technical_stop_words"]
    if row["technical_mean_word_chars"] < 0:
        del row["technical_mean_word_chars"]


def _split(indices: Sequence[int], texts: Sequence[str]) -> Iterator[Sequence[int]]:
    start, num_chars = 0, 0
    for end, index in enumerate(indices):
        num_chars += len(texts[index])
        if end > start and (num_chars > BATCH_CHARS or end - start == BATCH_DOCUMENTS):
            yield indices[start:end]
            start, num_chars = end, len(texts[index])
    yield indices[start:]


def _measure_prose(vocabulary: Vocabulary, texts: Sequence[str]) -> list[dict[str, float]]:
    edited = [clean_lines(text, FINEWEB_LINE_RULES).text for text in texts]
    by_text = list(map(vocabulary.chunks_of, texts))
    by_edited = [chunks if cleaned == text else vocabulary.chunks_of(cleaned)
                 for text, cleaned, chunks in zip(texts, edited, by_text)]
    chunks = _Ragged.join(by_text)
    num_words = vocabulary.num_words_of_chunk
    words = _Ragged(vocabulary.words_of(chunks.values), np.concatenate(
        [[0], np.cumsum(num_words[chunks.values])])[chunks.ends])
    all_words, edited_words = words.sizes, np.array([num_words[row].sum() for row in by_edited])
    if vocabulary.has_units:
        parts = vocabulary.parts_of_chunk * num_words
        all_words = chunks.sum(parts[chunks.values]) / PARTS
        edited_words = np.array([parts[row].sum() for row in by_edited]) / PARTS
    num_chars = np.array(list(map(len, texts)))
    lines = list(map(str.splitlines, texts))
    hashes = np.array([text.count("#") for text in texts])
    ellipses = np.array([sum(map(text.count, ELLIPSES)) for text in texts])
    technical = _measure_technical(vocabulary, chunks, texts, lines, np.maximum(hashes, ellipses))
    columns = {"words": technical["technical_words"]}
    columns |= _measure_words(vocabulary, words, all_words, texts)
    columns |= _repeated_fracs(vocabulary, words, num_chars)
    columns |= {"gopher_hash_word_ratio": _ratio(hashes, all_words),
                "gopher_ellipsis_word_ratio": _ratio(ellipses, all_words)}
    columns |= _measure_line_marks(lines)
    columns |= _measure_repeated_lines(texts)
    for family, of_texts, sizes in (("fineweb", edited, edited_words),
                                    ("fineweb2", texts, all_words)):
        measured = zip(*(_measure_lines(text, vocabulary.has_units) for text in of_texts))
        columns |= {f"{family}_{name}": values for name, values in zip(LINE_SIGNALS, measured)}
        newlines = np.array([text.count("\n") for text in of_texts])
        columns[f"{family}_newline_word_ratio"] = _ratio(newlines, sizes)
    columns |= technical
    rows = np.array(list(columns.values()), np.float64).T.tolist()
    return [dict(zip(columns, row)) for row in rows]


@dataclasses.dataclass(frozen=True)
class _Ragged:
    """Concatenated values of several documents, and the end of each."""

    values: np.ndarray
    ends: np.ndarray

    @classmethod
    def join(cls, rows: Sequence[np.ndarray]) -> _Ragged:
        return cls(np.concatenate(rows), np.cumsum(list(map(len, rows))))

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums per document of `values`, aligned with `self.values`."""
        before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return np.diff(before[self.ends], prepend=0)

    def keep(self, mask: np.ndarray) -> _Ragged:
        return _Ragged(self.values[mask], np.cumsum(self.sum(mask)))

    def count_distinct(self, numbers: np.ndarray) -> np.ndarray:
        """Distinct `numbers` above zero, all below 256, per document."""
        at = np.flatnonzero(numbers)
        document = np.searchsorted(self.ends, at, "right")
        pairs = np.unique(document * 256 + numbers[at])
        return np.bincount(pairs // 256, minlength=len(self.ends))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


def _count_words(words: _Ragged, parts: np.ndarray | None, mask: np.ndarray) -> np.ndarray:
    """Words per document where `mask` holds.

    Args:
        parts: of a word, for each of the words; None where all are whole.
    """
    return words.sum(mask) if parts is None else words.sum(parts * mask) / PARTS


def _measure_words(vocabulary: Vocabulary, words: _Ragged, all_words: np.ndarray,
                   texts: Sequence[str]) -> dict[str, np.ndarray]:
    chars, flags = (table[words.values] for table in (
        vocabulary.chars_of_word, vocabulary.flags_of_word))
    parts = vocabulary.parts_of_word[words.values] if vocabulary.has_units else None
    is_word = (flags & SYMBOL) == 0
    num_words = _count_words(words, parts, is_word)
    return {
        "gopher_words": num_words,
        "gopher_mean_word_chars": _ratio(words.sum(chars * is_word), num_words),
        "gopher_alphabetic_word_frac": _ratio(
            _count_words(words, parts, (flags & ALPHABETIC) != 0), all_words),
        "gopher_stop_words": _count_stop_words(
            vocabulary, words, vocabulary.stop_of_word, texts)}


def _count_stop_words(vocabulary: Vocabulary, words: _Ragged, numbers: np.ndarray,
                      texts: Sequence[str]) -> np.ndarray:
    if vocabulary.are_stops_within_words:
        return np.array([sum(word in text for word in vocabulary.stop_words) for text in texts])
    return words.count_distinct(numbers[words.values])


def _count_frequent_words(vocabulary: Vocabulary, words: np.ndarray) -> int:
    """Number of words, with a letter, that recur and are a hundredth of a text or more."""
    distinct, counts = np.unique(words, return_counts=True)
    is_word = (vocabulary.flags_of_chunk[distinct] & CHUNK_ALPHABETIC) != 0
    return int((is_word & (counts >= max(2, len(words) / 100))).sum())


def _repeated_fracs(vocabulary: Vocabulary, words: _Ragged,
                    num_chars: np.ndarray) -> dict[str, np.ndarray]:
    repeated = count_repeated_chars(words.values, vocabulary.chars_of_word[words.values],
                                    words.ends, vocabulary.units_per_word)
    return {f"gopher_{name}_char_frac": _ratio(counts, num_chars)
            for name, counts in repeated.items()}


def _measure_line_marks(lines: Sequence[Sequence[str]]) -> dict[str, tuple[float, ...]]:
    rows = []
    for of_text in lines:
        num_lines = max(len(of_text), 1)
        bullets = sum(line.lstrip().startswith(GOPHER_BULLETS) for line in of_text)
        ellipses = sum(line.rstrip().endswith(ELLIPSES) for line in of_text)
        rows.append((bullets / num_lines, ellipses / num_lines))
    return dict(zip(("gopher_bullet_line_frac", "gopher_ellipsis_line_frac"), zip(*rows)))


def _measure_repeated_lines(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    rows = []
    for text in texts:
        num_chars = max(len(text), 1)
        paragraphs = _PARAGRAPH_BREAK.split(text.strip()) if "\n\n" in text else [text]
        lines = _LINE_BREAK.split(text) if "\n\n" in text else text.split("\n")
        again, chars = _count_repeated(lines)
        paragraphs_again, paragraph_chars = _count_repeated(paragraphs)
        rows.append((again / len(lines), chars / num_chars, paragraphs_again / len(paragraphs),
                     paragraph_chars / num_chars))
    names = ("dup_line_frac", "dup_line_char_frac", "dup_paragraph_frac",
             "dup_paragraph_char_frac")
    return {f"gopher_{name}": column for name, column in zip(names, zip(*rows))}


def _count_repeated(items: Sequence[str]) -> tuple[int, int]:
    """Number of second and later occurrences in `items`, and their characters."""
    counts = Counter(items)
    if len(counts) == len(items):
        return 0, 0
    chars = sum(len(item) * (count - 1) for item, count in counts.items())
    return len(items) - len(counts), chars


def _measure_lines(text: str, has_units: bool) -> tuple[float, float, float, float]:
    """The `LINE_SIGNALS` of the FineWeb rules."""
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    num_lines = max(len(lines), 1)
    terminal = sum(line.endswith(TERMINAL_MARKS) for line in lines)
    short_lines = [line for line in lines if len(line) <= SHORT_LINE_CHARS]
    if has_units:
        short_lines = [line for line in short_lines
                       if not is_unspaced(line) or count_words(line) <= SHORT_LINE_WORDS]
    _, chars = _count_repeated(lines)
    num_chars = max(len(text) - text.count("\n"), 1)
    return len(lines), terminal / num_lines, len(short_lines) / num_lines, chars / num_chars


def _measure_technical(vocabulary: Vocabulary, chunks: _Ragged, texts: Sequence[str],
                       lines: Sequence[Sequence[str]], symbols: np.ndarray) -> dict[str, Any]:
    flags = vocabulary.flags_of_chunk[chunks.values]
    words = chunks.keep((flags & CHUNK_WORD) != 0)
    chars = vocabulary.chars_of_chunk[words.values]
    parts = chunk_parts = None
    if vocabulary.has_units:
        chunk_parts = vocabulary.parts_of_chunk[chunks.values]
        parts = vocabulary.parts_of_chunk[words.values]
    num_words = words.sizes if parts is None else words.sum(parts) / PARTS
    num_chunks = chunks.sizes if parts is None else chunks.sum(chunk_parts) / PARTS
    rows = []
    for text, of_text in zip(texts, lines):
        filled = list(filter(None, map(str.strip, of_text)))
        num_lines = max(len(filled), 1)
        rows.append((
            sum(line[0] in TECHNICAL_BULLETS for line in filled) / num_lines,
            sum(line.endswith(TECHNICAL_ELLIPSES) for line in filled) / num_lines,
            1 - len(set(filled)) / num_lines if filled else 0.0,
            text.lower().count("lorem ipsum")))
    bullets, ellipses, duplicates, lorem_ipsum = map(np.array, zip(*rows))
    pairs = count_top_pair_chars(words.values, chars, words.ends)
    stop_words = _count_stop_words(vocabulary, chunks, vocabulary.stop_of_chunk, texts)
    if not vocabulary.is_english:
        # Languages that the identifier does not know are taken for others, whose words they lack.
        for place in np.flatnonzero(stop_words < MIN_STOP_WORDS):
            start, stop = words.ends[place] - words.sizes[place], words.ends[place]
            stop_words[place] = max(stop_words[place], _count_frequent_words(
                vocabulary, words.values[start:stop]))
    return {
        "technical_words": num_words,
        "technical_mean_word_chars": _mean_word_chars(words, chars, parts, num_words),
        "technical_symbol_word_ratio": _ratio(symbols, num_words),
        "technical_bullet_line_frac": bullets,
        "technical_ellipsis_line_frac": ellipses,
        "technical_alphabetic_word_frac": _ratio(
            _count_words(chunks, chunk_parts, (flags & CHUNK_ALPHABETIC) != 0), num_chunks),
        "technical_garbled_word_frac": _ratio(chunks.sum((flags & CHUNK_GARBLED) != 0), num_words),
        "technical_stop_words": stop_words,
        "technical_duplicate_line_frac": duplicates,
        "technical_top_2gram_char_frac": np.minimum(_ratio(pairs, words.sum(chars)), 1.0),
        "technical_lorem_ipsum": lorem_ipsum}


def _mean_word_chars(words: _Ragged, chars: np.ndarray, parts: np.ndarray | None,
                     num_words: np.ndarray) -> np.ndarray:
    """Mean length of the words that are no units; -1 where most are units."""
    if parts is None:
        return _ratio(words.sum(chars), num_words)
    is_whole = parts == PARTS
    num_whole = words.sum(is_whole)
    return np.where(2 * num_whole < num_words, -1.0, _ratio(words.sum(chars * is_whole), num_whole))


def prose_frac(text: str, language: str) -> float:
    """Share of words in sentence-like lines, those of six words or more with a stop word.

    Used as the quality of a document: tables, signatures and generated code score near 0, prose
    near 1. In a language without a list of common stop words the line must end a sentence instead.
    """
    stop_words = _stop_words_of(language)
    are_parts = language in STOPS_WITHIN_WORDS
    total = prose = 0
    for line in text.splitlines():
        tokens = line.split()
        num_words = len(tokens) if language == "en" else count_words(line)
        total += num_words
        if num_words < MIN_PROSE_LINE_WORDS:
            continue
        if not stop_words:
            is_prose = line.rstrip().endswith(TERMINAL_MARKS)
        elif are_parts:
            is_prose = any(word in line for word in stop_words)
        else:
            is_prose = not stop_words.isdisjoint(tokens)
        prose += num_words if is_prose else 0
    return prose / total if total else 0.0


@cache
def _stop_words_of(language: str) -> frozenset[str]:
    return frozenset(() if language in RARE_STOPS else stop_words_of(language))


PROSE_SIGNALS = (*measure_batch([""], ["prose"], [("en", 1.0)])[0], "technical_letter_pair_ratio")
