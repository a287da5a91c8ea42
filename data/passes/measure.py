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
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord, Skipped
from data.readers.units import Unit
from data.tables import TableWriter, write_array

BATCH_PAGES, BATCH_BYTES = 256, 16 << 20   # pages held in memory at once

MEASURED_SCHEMA = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("site", pa.string()),
    ("domain", pa.string()), ("language", pa.string()), ("language_score", pa.float64()),
    ("bytes", pa.int64()), ("signals", pa.string()),
    ("origin", pa.string()), ("line_hashes", pa.list_(pa.uint64()))])
LOST_SCHEMA = pa.schema([("source", pa.string()), ("kind", pa.string()), ("reason", pa.string())])


def measure(*, output: Path, path: str, start: int, stop: int, content: str, domain: str,
            code_domains: Sequence[str], extraction: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and measures a unit; writes its documents, records without a document, and keys.

    Besides ``<output>.parquet`` and ``.lost.parquet`` it writes ``.exact.npy`` ([n, 2] uint64: the
    normalised text) and ``.url.npy`` ([n] uint64), one key per document.

    Args:
        path, start, stop: the unit, see `data.readers.units.Unit`.
        content: fingerprint of the file, so that a changed file is read again.
        domain: domain of records without one.
        code_domains: domains whose documents are measured as source code.
        extraction: mode ("fast" or "quality"), timeout_secs and max_page_bytes of a page,
            emoji_names and punctuation of `data.extraction.normalise`.

    Returns:
        Counts: documents, raw and text bytes, documents by domain, corrupt and skipped records by
        reason.
    """
    counts = {"corrupt": Counter(), "skipped": Counter(), "domains": Counter()}
    documents = text_bytes = raw_bytes = 0
    exact_keys, url_keys = [], []
    with (TableWriter(f"{output}.parquet", MEASURED_SCHEMA, 256) as measured,
          TableWriter(f"{output}.lost.parquet", LOST_SCHEMA) as lost,
          GuardedExtractor(**extraction) as extractor):
        for batch in _batches(read(Unit(path, start, stop))):
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
                counts[kind][failure.reason] += 1
                lost.write({"source": failure.source, "kind": kind, "reason": failure.reason})
            for row in _rows(pages, domain, code_domains):
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
            **{kind: dict(counter) for kind, counter in counts.items()}}


def _batches(items: Iterator[RawRecord | Corrupt | Skipped]) -> Iterator[list]:
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item.content) if isinstance(item, RawRecord) else 0
        if len(batch) >= BATCH_PAGES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
