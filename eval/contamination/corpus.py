"""The documents of a training corpus, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from data.documents import read_documents
from data.extraction.extract import extract
from data.layouts.faults import Faults
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord
from data.readers.units import find_inputs, plan, split_patterns

UNIT_BYTES = 64 << 20


class Page(NamedTuple):
    """A document's place, for people, and its text."""

    source: str
    text: str


def is_curated(path: str) -> bool:
    """Whether a path is a folder that `python -m data.curate` wrote."""
    return (Path(path) / "manifest.json").exists() and (Path(path) / "documents").is_dir()


def find_questions(inputs: str) -> Path | None:
    """The first curated folder among the inputs that came with questions."""
    return next((Path(path) for path in split_patterns(inputs)
                 if is_curated(path) and (Path(path) / "questions.parquet").exists()), None)


def read_corpus(inputs: str, faults: Faults, num: int = 0) -> Iterator[Page]:
    """The documents of all inputs, in their order; of a curated folder those that it keeps.

    HTML is reduced to its main text, as in curation; nothing else is left out but what has no text.

    Args:
        inputs: comma-separated, as `data.readers.units` describes them, or curated folders.
        faults: counts what has no text.
        num: how many, the first ones; 0: all.

    Raises:
        UserError: an input does not exist or is damaged, or there is no text in any.
    """
    patterns = list(dict.fromkeys(split_patterns(inputs)))
    curated = [path for path in patterns if is_curated(path)]
    raw = ",".join(path.replace(",", "\\,") for path in patterns if path not in curated)
    paths = find_inputs(raw) if raw else []
    found = 0
    for page in _read(curated, paths, faults):
        yield page
        found += 1
        if found == num:
            return
    if not found:
        faults.report()
        raise UserError(f"inputs={inputs!r}", "holds no text", "name files of text, rows with a "
                        "field `text`, or a folder of data.curate")


def _read(curated: list[str], paths: list[str], faults: Faults) -> Iterator[Page]:
    for folder in curated:
        for document in read_documents(Path(folder) / "documents"):
            yield Page(document.source, document.text)
    for unit in plan(paths, UNIT_BYTES):
        for item in read(unit):
            if isinstance(item, Corrupt):
                faults.add("damaged", item.source, f"cannot be read ({item.reason})")
            elif not isinstance(item, RawRecord):
                faults.add("no_text", item.source, f"has no text ({item.reason})")
            elif text := extract(item.content, item.content_type):
                yield Page(item.source, text)
            else:
                faults.add("no_text", item.source, "has no text")
