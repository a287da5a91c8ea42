"""The texts on which tokenizers are compared: a sample of each domain, the same on every run.

A domain's sample are its documents with the smallest hashes of content, so it depends neither on
their order nor on the names of their files. A long document is cut at line ends into several, so
that none of them fills the sample alone.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import re2
import xxhash

from core.artifacts import digest
from core.errors import UserError
from core.progress import log
from data.corpus import Corpus
from data.embedded import corpus as embedded
from data.extraction.extract import HTML_TYPES, extract
from data.layouts.faults import Faults
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord
from data.readers.units import find_inputs, plan
from data.writing import count_words, separate

SAMPLE_BYTES = 1_000_000            # of a domain
MAX_READ_BYTES = 256_000_000        # of a domain, from its beginning; what follows is not read
MAX_DOCUMENT_CHARS = 20_000
UNIT_BYTES = 64 << 20
HELDOUT = "heldout"                 # domain of a corpus's documents on which nothing is trained
# Of the standard library, whose pages and source are the text without a download.
PACKAGES = "asyncio,email,json,logging,decimal,statistics,argparse,html"
WORD = re2.compile(r"\p{L}[\p{L}\p{M}]*")
ASCII_WORD = re.compile("[A-Za-z]+")    # the same in such text, and faster


@dataclasses.dataclass(frozen=True)
class Domain:
    """The sample of a domain.

    Attributes:
        texts: documents, by their hashes.
        read_bytes: size of the text that the sample was chosen from.
    """

    name: str
    texts: tuple[str, ...]
    read_bytes: int

    @functools.cached_property
    def num_bytes(self) -> int:
        """Size of the sample in UTF-8."""
        return sum(len(text.encode()) for text in self.texts)

    @functools.cached_property
    def num_characters(self) -> int:
        """Number of its code points."""
        return sum(map(len, self.texts))

    @functools.cached_property
    def num_words(self) -> int:
        """Number of its words; see `data.writing.count_words`."""
        return sum(map(count_words, self.texts))

    @functools.cached_property
    def words(self) -> Counter[str]:
        """How often each word of letters occurs; in scripts without spaces, each unit."""
        return Counter(word for text in self.texts for word in (
            ASCII_WORD.findall(text) if text.isascii() else WORD.findall(separate(text))))

    def describe(self) -> dict[str, object]:
        """Sizes and a fingerprint, for the report."""
        return {"documents": len(self.texts), "bytes": self.num_bytes,
                "characters": self.num_characters, "words": self.num_words,
                "distinct_words": len(self.words), "read_bytes": self.read_bytes,
                "fingerprint": digest(self.texts)}


class Sampler:
    """Chooses the documents with the smallest hashes, of `max_bytes` in all, in their memory."""

    def __init__(self, max_bytes: int = SAMPLE_BYTES):
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, str]] = []      # the largest hash first
        self._bound = 1 << 64           # hashes from here on are too large
        self._num_bytes = self.read_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether enough was read."""
        return self.read_bytes >= MAX_READ_BYTES

    def add(self, text: str) -> None:
        """Takes a document into account; one without any text is none."""
        for part in cut(text):
            content = part.encode("utf-8", "replace")
            self.read_bytes += len(content)
            number = xxhash.xxh3_64_intdigest(content)
            if number >= self._bound:
                continue
            self._num_bytes += len(content)
            heapq.heappush(self._heap, (-number, content.decode()))
            while self._num_bytes > self._max_bytes and len(self._heap) > 1:
                number, left_out = heapq.heappop(self._heap)
                self._bound = -number
                self._num_bytes -= len(left_out.encode())

    def domain(self, name: str) -> Domain:
        """The sample; raises `UserError` where there is no text."""
        if not self._heap:
            raise UserError(f"text {name!r}", "is empty", "name files with text in them")
        if self.is_full:
            log(f"{name}: sampled from its first {self.read_bytes / 1e6:.0f} MB")
        return Domain(name, tuple(text for _, text in sorted(self._heap, reverse=True)),
                      self.read_bytes)


def cut(text: str) -> Iterator[str]:
    """The text in parts of at most `MAX_DOCUMENT_CHARS`, at line ends where there are any."""
    place = 0
    while place < len(text) and not text.isspace():
        end = place + MAX_DOCUMENT_CHARS
        if end < len(text):
            end = text.rfind("\n", place, end) + 1 or end
        yield text[place:end]
        place = end


def read_domain(name: str, pattern: str) -> Domain:
    """The sample of files, as they are: nothing is normalised.

    Args:
        pattern: a file, a folder or a glob; see `data.readers.units`.

    Raises:
        UserError: there is no such input, it has no text, or its text is not UTF-8.
    """
    sampler, faults = Sampler(), Faults("text")
    for text in _read_contents(pattern, faults):
        sampler.add(text)
        if sampler.is_full:
            break
    faults.report()
    return sampler.domain(name)


def _read_contents(pattern: str, faults: Faults) -> Iterator[str]:
    for unit in plan(find_inputs(pattern.replace(",", "\\,")), UNIT_BYTES):
        for item in read(unit):
            if isinstance(item, Corrupt):
                faults.add("damaged", item.source, f"cannot be read ({item.reason})")
            elif not isinstance(item, RawRecord):
                faults.add("no_text", item.source, f"has no text ({item.reason})")
            elif item.content_type.lower().startswith(HTML_TYPES):
                faults.add("html", item.source, "is HTML, which is no plain text")
            else:
                yield decode_utf8(item.source, item.content)


def decode_utf8(source: str, content: bytes | str) -> str:
    """The text of UTF-8 without a byte order mark; raises `UserError` where it is none."""
    if isinstance(content, str):
        return content
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise UserError(source, f"is not UTF-8 text ({error.reason} at byte {error.start})",
                        "convert the file") from None


def read_corpus(folder: Path) -> list[Domain]:
    """A sample of each domain of a corpus, and one of its held-out documents.

    Raises:
        UserError: the folder holds no corpus, or no document.
    """
    corpus, samplers = Corpus(folder), {}
    for kind in ("documents", HELDOUT):
        for _, row in corpus.rows(kind, ["text", "domain"]):
            name = HELDOUT if kind == HELDOUT else row["domain"]
            sampler = samplers.setdefault(name, Sampler())
            if not sampler.is_full:
                sampler.add(row["text"])
            if all(sampler.is_full for sampler in samplers.values()):
                break
    if not samplers:
        raise UserError(str(folder), "holds no documents", "name another corpus")
    return [sampler.domain(name) for name, sampler in sorted(samplers.items())]


def read_embedded() -> list[Domain]:
    """Samples of the text that needs no download: pages and source of `PACKAGES`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = embedded.build(Path(folder), packages=PACKAGES, code_max_bytes=SAMPLE_BYTES,
                               seed=0)
        samplers: Mapping[str, Sampler] = {}
        for unit in plan(list(map(str, paths)), UNIT_BYTES):
            for item in read(unit):
                if isinstance(item, RawRecord):
                    samplers.setdefault(item.domain or "pages", Sampler()).add(
                        extract(item.content, item.content_type))
    return [sampler.domain(name) for name, sampler in sorted(samplers.items())]


def read_languages(folder: Path) -> dict[str, str]:
    """Texts by language: files ``LANGUAGE.txt`` of a folder, translations of one text.

    Raises:
        UserError: the folder has no such file with text, or one that is not UTF-8; or none of
            them is English.
    """
    files: Iterable[Path] = sorted(folder.glob("*.txt")) if folder.is_dir() else ()
    texts = {file.stem: decode_utf8(str(file), file.read_bytes()) for file in files}
    if empty := [name for name, text in texts.items() if not text.strip()]:
        log(f"languages: left out {len(empty)} without text: {', '.join(empty)}")
    texts = {name: text for name, text in texts.items() if name not in empty}
    if not texts:
        raise UserError(f"--languages={str(folder)!r}", "holds no file LANGUAGE.txt with text",
                        "name a folder with one text for each language")
    english_name(texts)
    return texts


def english_name(texts: Mapping[str, object]) -> str:
    """The name of English among languages; raises `UserError` where it is missing."""
    for name in texts:
        if name.lower() in ("eng", "en", "english"):
            return name
    raise UserError("--languages", "none of the texts is English, which the others are compared "
                    "with", "call its file eng.txt")
