"""Texts whose likelihood is measured: plain text, rows of files, pages of WikiText."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.errors import UserError
from data.extraction.encoding import decode
from data.extraction.extract import HTML_TYPES
from data.layouts.faults import Faults
from data.layouts.rows import log_once
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord
from data.readers.units import find_inputs, plan

UNIT_BYTES = 64 << 20
HEADING = re.compile(r"= .* =", re.S)


class Text(NamedTuple):
    """A document.

    Attributes:
        name: of its line in the table.
        text: what the model reads.
        original: what bytes, characters and words are counted on; "" is the text itself.
    """

    name: str
    text: str
    original: str = ""

    @property
    def counted(self) -> str:
        """The text whose units are counted."""
        return self.original or self.text


def read_texts(pattern: str, faults: Faults, *, documents: str = "whole",
               num: int = 0) -> Iterator[Text]:
    """The texts of a file, a folder or a glob, as they are: nothing is normalised.

    A text file is one document, a row of a JSONL, CSV or Parquet file is one; `data.readers` finds
    the field of its text. The first is read at once, so that a wrong input is refused early.

    Args:
        pattern: see `data.readers.units`; the name of all texts.
        faults: counts what has no text: damaged rows, empty ones, HTML.
        documents: a name of `DOCUMENTS`: what of a file or row is one document.
        num: how many, the first ones; 0 or less: all.

    Raises:
        UserError: there is no such input, or no text in it.
    """
    if documents not in DOCUMENTS:
        raise UserError(f"documents={documents!r}", f"is none of {', '.join(DOCUMENTS)}",
                        "choose one of them")
    name = pattern.replace("\\,", ",")
    texts = (Text(name, part, original) for text in _read_contents(find_inputs(pattern), faults)
             for part, original in DOCUMENTS[documents](text))
    first = next(texts, None)
    if first is None:
        faults.report()
        raise UserError(f"inputs={name!r}", "holds no text", "name files of text, or rows with a "
                        "field `text`")
    return itertools.islice(itertools.chain([first], texts), num if num > 0 else None)


def _read_contents(paths: Sequence[str], faults: Faults) -> Iterator[str]:
    for unit in plan(paths, UNIT_BYTES):
        for item in read(unit):
            if isinstance(item, Corrupt):
                faults.add("damaged", item.source, f"cannot be read ({item.reason})")
            elif not isinstance(item, RawRecord):
                faults.add("no_text", item.source, f"has no text ({item.reason})")
            elif item.content_type.lower().startswith(HTML_TYPES):
                faults.add("html", item.source, "is HTML, which is no plain text")
            else:
                yield item.content if isinstance(item.content, str) else _decode(item)


def _decode(record: RawRecord) -> str:
    text = decode(record.content, record.content_type)
    if text.encode() != record.content.removeprefix(codecs.BOM_UTF8):
        log_once(f"{record.source}: is not UTF-8; what is read, and its number of bytes, are of "
                 "the text in UTF-8")
    return text


def split_pages(text: str) -> Iterator[tuple[str, str]]:
    """The pages of a raw file of WikiText, which begin at headings of level one, ``= Title =``.

    As in EleutherAI/wikitext_document_level, from which lm-evaluation-harness takes its pages: the
    line end between two pages is in neither.
    """
    page: list[str] = []
    for line in text.split("\n"):
        # A deeper heading, `= = Section = =`, becomes `== Section ==`.
        if HEADING.fullmatch(line.replace("= = =", "===").replace("= =", "==").strip()):
            if "\n".join(page).strip():
                yield "\n".join(page), ""
            page = []
        page.append(line)
    if "\n".join(page).strip():
        yield "\n".join(page), ""


# Replacements of `wikitext_detokenizer` of lm-evaluation-harness, in its order.
_NUMBERS = {" @-@ ": "-", " @,@ ": ",", " @.@ ": "."}
_MARKS = {f" {mark} ": f"{mark} " for mark in ":;.!?,"}
_PAIRS = (r"\(\s*([^\)]*?)\s*\)", r"\[\s*([^\]]*?)\s*\]", r"{\s*([^}]*?)\s*}",
          r"\"\s*([^\"]*?)\s*\"", r"'\s*([^']*?)\s*'")
_OTHERS = {"= = = =": "====", "= = =": "===", "= =": "==", " \u00b0 ": "\u00b0", " \n": "\n",
           "\n ": "\n", " N ": " 1 ", " 's": "'s"}


def detokenise(page: str) -> str:
    """Joins what WikiText sets apart: numbers, punctuation, brackets.

    As lm-evaluation-harness@4e7e0d4, lm_eval/tasks/wikitext/preprocess_wikitext.py, down to its
    second rule, which writes a pattern in place of a digit.
    """
    page = re.sub(r"/' [0-9]/", "/'[0-9]/", page.replace("s '", "s'"))
    page = _replace(page, _NUMBERS | _MARKS)
    for pattern in _PAIRS:
        opening, closing = pattern.replace("\\", "")[0], pattern.replace("\\", "")[-1]
        page = re.sub(pattern, lambda match, o=opening, c=closing: f"{o}{match[1]}{c}", page)
    return _replace(page, _OTHERS)


def _replace(text: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        text = text.replace(old, new)
    return text


#: What is one document, each with the original whose units are counted ("": itself).
DOCUMENTS = {
    "whole": lambda text: [(text, "")],
    "wikitext_pages": split_pages,
    "wikitext_detokenised": lambda text: (
        (detokenise(page), page) for page, _ in split_pages(text))}
