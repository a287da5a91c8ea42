"""MediaWiki XML dumps, plain, gz, bz2 or zst: articles as plain text, read as a stream.

A file is one unit; large dumps are published in parts (``pages-articles1.xml.bz2``, ...).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import BinaryIO
from xml.parsers import expat

import pyarrow as pa

from data.readers import storage, wikitext
from data.readers.records import (
    MAX_RECORD_BYTES,
    READ_BYTES,
    Corrupt,
    Item,
    RawRecord,
    Skipped,
    corrupt,
)
from data.readers.units import Unit

FIELDS = ("title", "ns", "id", "text", "model", "base", "namespace")
MEDIA_NAMESPACES = ("-2", "6", "14")     # media, files and categories


def read(unit: Unit) -> Iterator[Item]:
    """The articles of a dump; redirects and other pages (talk, templates) are skipped."""
    name = posixpath.basename(unit.path)
    pages = _Pages(name)
    try:
        with storage.open_binary(unit.path) as file:
            codec = storage.codec_of(file)
            stream = storage.decompress(file, codec) if codec else file
            yield from _read_stream(stream, pages)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        yield corrupt(pages.place, "wiki", error)


def _read_stream(stream: BinaryIO, pages: _Pages) -> Iterator[Item]:
    chunk = None
    while chunk != b"":
        chunk = stream.read1(READ_BYTES)
        try:
            pages.parser.Parse(chunk, not chunk)
        except expat.ExpatError:
            yield from pages.take()
            yield Corrupt(pages.place, "wiki: damaged XML" if chunk else "wiki: file is cut off")
            return
        yield from pages.take()
    if not pages.num_pages:
        yield Corrupt(pages.place, "wiki: holds no page")


class _Pages:
    """Collects pages from parser events; holds one page at a time, of bounded size."""

    def __init__(self, name: str):
        self.num_pages, self._name, self._done = 0, name, []
        self._page: dict[str, str] = {}
        self._base, self._namespaces = "", set()    # of the site
        self._field, self._parts, self._num_chars, self._key = "", [], 0, ""
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data

    @property
    def place(self) -> str:
        """The current page."""
        return f"{self._name}@{self.num_pages}"

    def take(self) -> list[Item]:
        """Items completed since the last call."""
        done, self._done = self._done, []
        return done

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "page":
            self._page = {}
        elif name == "redirect":
            self._page["redirect"] = attributes.get("title", "")
        self._field, self._parts, self._num_chars = name, [], 0
        self._key = attributes.get("key", "")

    def _data(self, data: str) -> None:
        self._num_chars += len(data)
        if self._field in FIELDS and self._num_chars <= MAX_RECORD_BYTES:
            self._parts.append(data)

    def _end(self, name: str) -> None:
        if name == "page":
            self._done.append(self._read_page())
            self.num_pages += 1
        elif name == self._field and name in FIELDS:
            self._keep(name, "".join(self._parts))
        self._field = ""

    def _keep(self, name: str, value: str) -> None:
        if name == "base":
            self._base = value
        elif name == "namespace":
            if self._key in MEDIA_NAMESPACES:
                self._namespaces.add(value.lower())
        else:
            if self._num_chars > MAX_RECORD_BYTES:
                self._page["too_large"] = name
            self._page.setdefault(name, value)  # the id of the page precedes that of its revision

    def _read_page(self) -> Item:
        page, title = self._page, self._page.get("title", "").strip()
        source = self._address(title) if title else self.place
        if "too_large" in page:
            return Corrupt(source, "wiki: record is too large")
        if page.get("ns", "0").strip() != "0":
            return Skipped(source, "wiki: not an article")
        if "redirect" in page or wikitext.is_redirect(page.get("text", "")):
            return Skipped(source, "wiki: redirect")
        if page.get("model", "wikitext") != "wikitext":
            return Skipped(source, "wiki: not wikitext")
        text = wikitext.to_plain_text(page.get("text", ""), self._namespaces)
        return RawRecord(source, f"# {title}\n\n{text}" if text else "", "text/markdown",
                         "encyclopedia", id=page.get("id"), meta={"title": title})

    def _address(self, title: str) -> str:
        """The page's URL, derived from that of the site's main page."""
        root, slash, _ = self._base.rpartition("/")
        return f"{root}{slash}{title.replace(' ', '_')}" if slash else f"{self._name}#{title}"
