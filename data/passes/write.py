"""Pass 7, per unit: writes training documents, held-out pages and removed documents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data.dedup.substrings import cut
from data.documents import REMOVED_FIELDS, SCHEMA, Document
from data.passes.roster import Roster, read_removed
from data.readers.metadata import lookup
from data.tables import TableWriter, read_rows, write_array

BATCH_DOCUMENTS = 512


def write(*, output: Path, measured: str, passes: Sequence[str], duplicates: str,
          heldout_rows: Sequence[int], cuts: str,
          columns: Mapping[str, str]) -> dict[str, Any]:
    """Writes ``<output>.documents.parquet``, ``.heldout.parquet`` and ``.removed.parquet``,
    and the exact keys of the documents.

    Args:
        measured: output of `data.passes.measure`, without suffix.
        passes: outputs of decide, clean, settle and split, without suffix.
        duplicates: near duplicates of the unit, see `data.passes.near.cluster`.
        heldout_rows: held-out documents of this unit.
        cuts: path of a table of spans to cut from this unit's texts, or empty.
        columns: further columns, with the fields of the input that they are taken from.

    Returns:
        ``tallies`` of the stages; documents and bytes by ``domains``, ``languages`` and
        ``domains_heldout``; ``hash``, the sum of the documents' hashes.
    """
    roster, heldout_rows = Roster.load(passes[-1]), set(heldout_rows)
    roster.begin("substrings")
    removed = read_removed(passes)
    clusters = {row["row"]: row for row in pq.read_table(
        duplicates, columns=["row", "cluster", "cluster_size"]).to_pylist()}
    spans = _read_cuts(cuts)
    counts = {"domains": {}, "languages": {}, "domains_heldout": {}}
    corpus_hash, rows_kept = 0, []
    schema = pa.schema([*SCHEMA, *((name, pa.string()) for name in columns)])
    removed_schema = pa.schema([*schema, *REMOVED_FIELDS.items()])
    with (TableWriter(f"{output}.documents.parquet", schema, BATCH_DOCUMENTS) as kept,
          TableWriter(f"{output}.heldout.parquet", schema, BATCH_DOCUMENTS) as held_out,
          TableWriter(f"{output}.removed.parquet", removed_schema, BATCH_DOCUMENTS) as dropped):
        for row, document in _documents(f"{measured}.parquet", f"{passes[1]}.parquet", clusters):
            if row in removed:
                dropped.write(_row(document, columns) | {name: getattr(removed[row], name)
                                                         for name in REMOVED_FIELDS})
            elif row in heldout_rows:
                held_out.write(_row(document, columns))
                _count(counts, "domains_heldout", document)
            else:
                document = _cut(document, spans.get(row, ()), row, roster)
                corpus_hash += xxhash.xxh3_128_intdigest(f"{document.id}\n{document.text}".encode())
                kept.write(_row(document, columns))
                rows_kept.append(row)
                _count(counts, "domains", document)
                _count(counts, "languages", document)
    write_array(f"{output}.exact.npy", np.load(f"{measured}.exact.npy")[rows_kept])
    return {"tallies": roster.save(output), "hash": f"{corpus_hash % 2**128:032x}", **counts}


def _row(document: Document, columns: Mapping[str, str]) -> dict[str, str | None]:
    """A document's row, with further columns from the fields of the input."""
    values = {name: lookup(document.meta["origin"], field) for name, field in columns.items()}
    return document.row() | {name: value if value is None or isinstance(value, str)
                             else json.dumps(value) for name, value in values.items()}


def _documents(measured: str, cleaned: str,
               clusters: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, Document]]:
    """All documents of a unit, with their cleaned text if they were cleaned."""
    columns = ("id", "text", "source", "domain", "language", "language_score", "signals",
               "origin", "origin_id")
    cleaned_rows = (row for _, row in read_rows(cleaned, batch_rows=BATCH_DOCUMENTS))
    clean = next(cleaned_rows, None)
    for number, raw in read_rows(measured, columns, BATCH_DOCUMENTS):
        meta = {name: round(value, 4) for name, value in json.loads(raw["signals"]).items()}
        meta |= {"language_score": raw["language_score"], "origin": json.loads(raw["origin"])}
        if raw["origin_id"] is not None:
            meta["origin_id"] = raw["origin_id"]
        text, domain = raw["text"], raw["domain"]
        if clean is not None and clean["row"] == number:
            text, domain = clean["text"], clean["domain"]
            meta |= {"quality": clean["quality"], "cluster_size": 1,
                     **{name: json.loads(clean[name])
                        for name in ("scores", "trimmed", "redacted", "hits")}}
            clean = next(cleaned_rows, None)
        if number in clusters:
            meta |= {"cluster_id": clusters[number]["cluster"],
                     "cluster_size": clusters[number]["cluster_size"]}
        yield number, Document(raw["id"], text, raw["source"], domain, raw["language"], meta)


def _cut(document: Document, spans: Sequence[tuple[int, int]], row: int,
         roster: Roster) -> Document:
    """The document without the given spans of characters."""
    if not spans:
        return document
    text = cut(document.text, spans)
    num_bytes = len(text.encode())
    cut_bytes = len(document.text.encode()) - num_bytes
    roster.trim(row, num_bytes, {"repeated_substring": cut_bytes})
    trimmed = {**document.meta["trimmed"], "repeated_substring": cut_bytes}
    return dataclasses.replace(document, text=text, meta={**document.meta, "trimmed": trimmed})


def _read_cuts(path: str) -> dict[int, list[tuple[int, int]]]:
    """Spans by row; empty when `path` is."""
    if not path:
        return {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for span in pq.read_table(path).to_pylist():
        spans.setdefault(span["row"], []).append((span["start"], span["stop"]))
    return spans


def _count(counts: dict[str, dict], table: str, document: Document) -> None:
    name = document.language if table == "languages" else document.domain
    count = counts[table].setdefault(name, {"documents": 0, "bytes": 0})
    count["documents"] += 1
    count["bytes"] += len(document.text.encode())
