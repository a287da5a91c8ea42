"""Encodes documents as token ids, in units of rows; run by the workers of `data.pack`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.errors import UserError
from data.domains import file_stem, token_domain
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.shards import shuffle_key, write_run

COLUMNS = ("id", "text", "domain", "meta")
READ_BATCH = 256  # documents decoded at once
MIN_UNIT_BYTES, MAX_UNIT_BYTES, MAX_UNITS = 4_000_000, 256_000_000, 1024

Span = tuple[str, int, int, int]  # part, row group, first row in it, number of rows


def plan_units(folder: Path, unit_bytes: int | None = None) -> list[list[Span]]:
    """Divides a folder of Parquet parts into units of rows of about `unit_bytes` each.

    Args:
        unit_bytes: uncompressed. By default a 1024th of the folder, from 4 to 256 MB, so that
            the merge of 1 TB of tokens reads slices of 64 KB.

    Returns:
        No unit where there is no document.

    Raises:
        UserError: a part is damaged.
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    groups = [(str(part), *group) for part in parts for group in _row_groups(part)]
    if not groups:
        return []
    total_bytes = sum(num_bytes for *_, num_bytes in groups)
    unit_bytes = unit_bytes or min(max(total_bytes // MAX_UNITS, MIN_UNIT_BYTES), MAX_UNIT_BYTES)
    units: list[list[Span]] = [[]]
    filled = 0.0
    for part, group, num_rows, num_bytes in groups:
        num_slices = min(math.ceil(num_bytes / unit_bytes), num_rows)
        edges = [num_rows * i // num_slices for i in range(num_slices + 1)]
        for first, stop in itertools.pairwise(edges):
            if filled and filled + num_bytes / num_slices > unit_bytes:
                units.append([])
                filled = 0.0
            units[-1].append((part, group, first, stop - first))
            filled += num_bytes / num_slices
    return units


def read_domains(folder: Path) -> set[str]:
    """The domains of a folder of Parquet parts, as a token folder calls them; no text is read.

    Raises:
        UserError: a part is damaged.
    """
    found = set()
    for part in Path(folder).glob("*.parquet"):
        with _reading(part):
            for batch in pq.ParquetFile(part).iter_batches(columns=["domain"]):
                found.update(batch.column(0).unique().to_pylist())
    return {token_domain(domain) for domain in found}


def encode_unit(output: Path, spans: Sequence[Span], tokenizer: str, seed: int,
                domain: str | None = None) -> dict[str, dict[str, int]]:
    """Encodes the rows of `spans` and writes a run per domain, ``{output}.{file_stem(domain)}``.

    Args:
        tokenizer: see `load_tokenizer`.
        seed: of the shuffle.
        domain: replaces the domains of the documents.

    Returns:
        Documents, tokens, bytes of text, and documents without a quality (unscored), by domain.

    Raises:
        UserError: a part is damaged.
    """
    encoder = _load(tokenizer)
    encoded: dict[str, list[tuple[int, float, int, np.ndarray]]] = defaultdict(list)
    for row in read_spans(spans):
        encoded[domain or token_domain(row["domain"])].append(
            (shuffle_key(row["id"], seed), _quality(row["meta"]), len(row["text"].encode()),
             encode_document(encoder, row["text"])))
    counts = {}
    for name in sorted(encoded):
        keys, scores, sizes, tokens = zip(*encoded.pop(name))
        write_run(Path(f"{output}.{file_stem(name)}"), keys, scores, sizes, tokens)
        counts[name] = {"documents": len(keys), "tokens": sum(map(len, tokens)),
                        "bytes": sum(sizes), "unscored": scores.count(-math.inf)}
    return counts


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids of one document in a token file: bos, text, end; also where these are one token."""
    ids = tokenizer.encode_array(text)
    return np.concatenate([[tokenizer.bos], ids, [tokenizer.end]]).astype(token_dtype(tokenizer))


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Type of a token in the files: little-endian, of two bytes if the vocabulary fits."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


@functools.lru_cache(maxsize=1)
def _load(folder: str) -> Tokenizer:
    return load_tokenizer(Path(folder))


def _quality(meta: str) -> float:
    """The quality score; minus infinity, the lowest, for a document without one."""
    score = json.loads(meta).get("quality")
    is_scored = isinstance(score, int | float) and not math.isnan(score)
    return float(score) if is_scored else -math.inf


def _row_groups(part: Path) -> Iterator[tuple[int, int, int]]:
    """Number, rows and uncompressed bytes of each non-empty row group."""
    with _reading(part):
        file = pq.ParquetFile(part)
        if missing := set(COLUMNS) - set(file.schema_arrow.names):
            raise ValueError(f"it lacks the columns {', '.join(sorted(missing))}")
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if group.num_rows:
                yield number, group.num_rows, group.total_byte_size


def read_spans(spans: Iterable[Span]) -> Iterator[Mapping[str, Any]]:
    """The rows of a unit, with `COLUMNS`; raises `UserError` for a damaged part."""
    for part, group, first, num_rows in spans:
        with _reading(part):
            begin, stop = 0, first + num_rows  # of the batch, of the span
            for batch in pq.ParquetFile(part).iter_batches(READ_BATCH, [group], list(COLUMNS)):
                offset = min(max(first - begin, 0), len(batch))
                yield from batch.slice(offset, max(stop - begin - offset, 0)).to_pylist()
                begin += len(batch)


@contextlib.contextmanager
def _reading(part: Path | str) -> Iterator[None]:
    """Raises `UserError` for a damaged part; errors of the disk (with an errno) propagate."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(str(part), f"is not a readable document file "
                        f"({' '.join(str(error).split())})", "build the corpus anew") from None
