"""Pass 1, per unit: reads and extracts documents, identifies languages, measures signals.

Its output depends on the input and the extraction alone, not on thresholds: after a change of rules
these columns are read, not the pages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import xxhash

from data.dedup.blocks import hash_lines
from data.dedup.shingles import exact_key
from data.extraction.guard import Failure, GuardedExtractor
from data.filters.language import identify
from data.filters.signals import measure_batch
from data.readers.fields import Fields
from data.readers.read import read
from data.readers.records import Corrupt, Item, RawRecord, RowNotes
from data.readers.storage import join
from data.readers.units import Unit, is_folder
from data.tables import TableWriter, write_array

BATCH_PAGES, BATCH_BYTES = 256, 16 << 20   # pages held in memory at once

MEASURED_SCHEMA = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("site", pa.string()),
    ("domain", pa.string()), ("language", pa.string()), ("language_score", pa.float64()),
    ("bytes", pa.int64()), ("signals", pa.string()),
    ("origin", pa.string()), ("origin_id", pa.string()), ("line_hashes", pa.list_(pa.uint64()))])
LOST_SCHEMA = pa.schema([("source", pa.string()), ("kind", pa.string()), ("reason", pa.string())])


def measure(*, output: Path, path: str, start: int, stop: int, content: str,
            reading: Mapping[str, Any], extraction: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and measures a unit; writes its documents, records without a document, and keys.

    Besides ``<output>.parquet`` and ``.lost.parquet`` it writes ``.exact.npy`` ([n, 2] uint64: the
    normalised text) and ``.url.npy`` ([n] uint64), one key per document.

    Args:
        path, start, stop: the unit, see `data.readers.units.Unit`.
        content: fingerprint of the file, so that a changed file is read again.
        reading: domain of records without one; code_domains, whose documents are measured as source
            code; fields, those of `data.readers.fields.Fields`; limit, at which reading ends (0 =
            none).
        extraction: mode ("fast" or "quality"), timeout_secs and max_page_bytes of a page,
            emoji_names and punctuation of `data.extraction.normalise`.

    Returns:
        Counts: documents, raw and text bytes, documents by domain, corrupt and skipped records by
        reason, and losses: bytes of the input that were not read, by file and reason; rows by the
        field of their text, by configured fields that they lack, and by fields that are not kept;
        rows without a text, and the fields of the first.

    Raises:
        PassingError: the input could not be read to its end for a reason that may pass.
    """
    counts = {name: Counter() for name in ("corrupt", "skipped", "domains", "text_fields",
                                           "missing_fields", "cut_fields")}
    textless: dict[str, Any] = {"rows": 0, "fields": ()}
    losses: dict[str, Counter] = {}
    documents = text_bytes = raw_bytes = 0
    exact_keys, url_keys = [], []
    with (TableWriter(f"{output}.parquet", MEASURED_SCHEMA, 256) as measured,
          TableWriter(f"{output}.lost.parquet", LOST_SCHEMA) as lost,
          GuardedExtractor(**extraction) as extractor):
        items = read(Unit(path, start, stop), Fields(**reading["fields"]))
        while batch := _next_batch(items, documents, reading["limit"]):
            records = [item for item in batch if isinstance(item, RawRecord)]
            outcomes = iter(extractor.run([(record.content, _media_type(record))
                                           for record in records]))
            pages = []
            for item in batch:
                failure = item
                if isinstance(item, RawRecord):
                    raw_bytes += len(item.content)
                    outcome = next(outcomes)
                    if not isinstance(outcome, Failure):
                        pages.append((item, outcome))
                        continue
                    failure = Corrupt(item.source, outcome.reason)
                kind = "corrupt" if isinstance(failure, Corrupt) else "skipped"
                textless["rows"] += kind == "corrupt" and bool(failure.fields)
                textless["fields"] = textless["fields"] or failure.fields
                if kind == "corrupt" and failure.num_bytes:
                    file = join(path, failure.source) if is_folder(path) else path
                    losses.setdefault(file, Counter())[failure.reason] += failure.num_bytes
                counts[kind][failure.reason] += 1
                lost.write({"source": failure.source, "kind": kind, "reason": failure.reason})
            _count_fields(counts, [record.notes for record, _ in pages if record.notes])
            for row in _rows(pages, reading["domain"], reading["code_domains"]):
                documents += 1
                counts["domains"][row["domain"]] += 1
                text_bytes += row["bytes"]
                exact_keys.append(_key_words(exact_key(row["text"])))
                page = same_url(row["source"]) or row["id"]     # a file is a page of its own
                url_keys.append(xxhash.xxh3_64_intdigest(page.encode()))
                measured.write(row)
    write_array(f"{output}.exact.npy", np.array(exact_keys, np.uint64).reshape(-1, 2))
    write_array(f"{output}.url.npy", np.array(url_keys, np.uint64))
    return {"documents": documents, "bytes": text_bytes, "raw_bytes": raw_bytes,
            "textless": textless,
            "losses": {file: dict(counter) for file, counter in losses.items()},
            **{kind: dict(counter) for kind, counter in counts.items()}}


def _next_batch(items: Iterator[Item], documents: int, limit: int) -> list[Item]:
    """The next items, no more than the limit leaves after so many documents."""
    batch, num_bytes = [], 0
    most = min(BATCH_PAGES, limit - documents) if limit else BATCH_PAGES
    while len(batch) < most and num_bytes < BATCH_BYTES and (item := next(items, None)):
        batch.append(item)
        num_bytes += len(item.content) if isinstance(item, RawRecord) else 0
    return batch


def _count_fields(counts: Mapping[str, Counter], notes: Sequence[RowNotes]) -> None:
    counts["text_fields"].update(note.text for note in notes)
    counts["missing_fields"].update(name for note in notes for name in note.missing)
    counts["cut_fields"].update(name for note in notes for name in note.cut)


def _rows(pages: Sequence[tuple[RawRecord, str]], domain: str,
          code_domains: Sequence[str]) -> Iterator[dict[str, Any]]:
    texts = [text for _, text in pages]
    domains = [record.domain or domain for record, _ in pages]
    kinds = ["code" if name in code_domains else "prose" for name in domains]
    languages = [("und", 0.0) if kind == "code" else identify(text)
                 for kind, text in zip(kinds, texts)]
    signals = measure_batch(texts, kinds, languages)
    for place, (record, text) in enumerate(pages):
        language, score = languages[place]
        yield {
            "id": xxhash.xxh3_128_hexdigest(f"{record.source}\n{text}".encode()),
            "text": text,
            "source": record.source,
            "site": _site(record.source),
            "domain": domains[place],
            "language": language,
            "language_score": round(score, 4),
            "bytes": len(text.encode()),
            "signals": json.dumps(signals[place]),
            "origin": json.dumps(dict(record.meta), sort_keys=True),
            "origin_id": record.id,
            "line_hashes": [] if kinds[place] == "code" else hash_lines(text),
        }


def _media_type(record: RawRecord) -> str:
    """The content type, with the charset declared by the server."""
    declared = f"; charset={record.charset}" if record.charset else ""
    return record.content_type + declared


def _site(source: str) -> str:
    """Host of a URL; empty for other sources."""
    try:
        return (urlsplit(source).hostname or "") if "://" in source else ""
    except ValueError:      # an invalid URL, e.g. `http://[`
        return ""


def same_url(source: str) -> str:
    """What all spellings of a page's URL share; empty for what is no URL.

    Scheme, the host's case, a trailing slash and a fragment make no other page, but path and query
    do by their case (RFC 3986, section 6.2.2.1), and a fragment that is a route, ``#/guide/2``.
    """
    _, separator, rest = source.partition("://")
    if not separator:
        return ""
    address, _, fragment = rest.partition("#")
    host, slash, path = address.partition("/")
    route = f"#{fragment}" if fragment.startswith(("/", "!")) else ""
    return f"{host.lower()}{slash}{path}".rstrip("/") + route


def _key_words(key: str) -> tuple[int, int]:
    return int(key[:16], 16), int(key[16:], 16)
