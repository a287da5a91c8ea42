"""Labelled documents for training a classifier: read, sampled, deduplicated and split.

Every choice depends on a hash of the document's content alone, so neither the order nor the number
of the files changes the sample or the split.
"""

from __future__ import annotations

import dataclasses
import glob
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from core.errors import UserError
from data.dedup.shingles import exact_key
from data.readers import storage
from data.readers.records import Damage, encodable

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")
SPLITS = ("train", "calibration", "heldout")


@dataclasses.dataclass(frozen=True)
class Example:
    """A document and its target.

    Attributes:
        target: a label, or a number.
        key: hash of the content; equal texts share it.
        host: of the document's URL; None when its source is not a URL.
    """

    text: str
    target: str | float
    key: str
    host: str | None


def find_files(field: str, patterns: str) -> list[str]:
    """Files of comma-separated paths, folders and globs, sorted and distinct.

    A corpus of `python -m data.curate` contributes its kept documents; another folder, the Parquet
    and JSONL files directly in it.

    Raises:
        UserError: a pattern matches nothing, or a file has another format.
    """
    paths: set[str] = set()
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        matches = [pattern] if storage.is_remote(pattern) else sorted(glob.glob(pattern))
        files = [file for match in matches for file in _inside(match)]
        wrong = [file for file in files if not file.endswith(SUFFIXES)]
        if not files or wrong:
            raise UserError(f"{field}={pattern!r}",
                            f"{wrong[0]} has another format" if wrong else "matches no file",
                            f"give files of {', '.join(SUFFIXES)}, or a folder of them")
        paths.update(files)
    if not paths:
        raise UserError(f"{field}={patterns!r}", "names no file",
                        f"set --config.{field} to Parquet or JSONL files")
    return sorted(paths)


def _inside(match: str) -> list[str]:
    folder = Path(match)
    if storage.is_remote(match) or not folder.is_dir():
        return [match]
    folder = folder / "documents" if (folder / "documents").is_dir() else folder
    return [str(file) for file in folder.iterdir() if file.name.endswith(SUFFIXES)]


class Sample:
    """Keeps the `max_documents` examples of lowest hash, without duplicates.

    Args:
        max_documents: 0 keeps all.
        seed: of the hash.
    """

    def __init__(self, max_documents: int, seed: int):
        self._max_documents, self._seed = max_documents or math.inf, seed
        self._examples: dict[str, Example] = {}
        self._order: list[tuple[int, str]] = []     # (negated hash, key): the highest on top
        #: Skipped documents, by reason.
        self.left_out: Counter[str] = Counter()

    def add(self, example: Example) -> None:
        """Adds an example; beyond `max_documents` the one of highest hash is dropped."""
        if (first := self._examples.get(example.key)) is not None:
            same = "" if example.target == first.target else " with another target"
            self.left_out[f"exact duplicate{same}"] += 1
            return
        self._examples[example.key] = example
        heapq.heappush(self._order, (-_hash(example.key, self._seed), example.key))
        if len(self._examples) > self._max_documents:
            del self._examples[heapq.heappop(self._order)[1]]
            self.left_out["not sampled"] += 1

    def examples(self) -> list[Example]:
        """The examples in the order of their hashes."""
        return [self._examples[key] for _, key in sorted(self._order, reverse=True)]


def read_reference(positives: list[str], negatives: list[str], max_documents: int,
                   seed: int) -> tuple[list[Example], Counter[str]]:
    """Reads equal numbers of reference and random documents.

    Source: GPT-3 (arXiv:2005.14165, appendix A), CCNet's pages referenced by Wikipedia, DCLM
    (arXiv:2406.11794, section 4.4).

    Args:
        max_documents: of each class; 0 takes all.

    Returns:
        Examples with the targets "reference" and "random", and skipped documents by reason.
    """
    samples = []
    for files, label in ((positives, "reference"), (negatives, "random")):
        sample = Sample(max_documents, seed)
        for row in _read_rows(files, ("text", "source", "url"), sample.left_out):
            sample.add(_example(row, label))
        samples.append(sample)
    left_out = samples[0].left_out + samples[1].left_out
    examples = [sample.examples() for sample in samples]
    shared = set.intersection(*({example.key for example in part} for part in examples))
    left_out["both reference and random"] += 2 * len(shared)
    examples = [[one for one in part if one.key not in shared] for part in examples]
    size = min(map(len, examples))
    left_out["not sampled"] += sum(map(len, examples)) - 2 * size
    return [one for part in examples for one in part[:size]], +left_out


def read_targets(files: list[str], field: str, is_number: bool, max_documents: int,
                 seed: int) -> tuple[list[Example], Counter[str]]:
    """Reads documents with a label or a score; a score may be a string, and a label a number.

    Args:
        field: column of the label or the score.
        max_documents: in all; 0 takes all.

    Returns:
        Examples, and skipped documents by reason. The reason for values of another type quotes the
        first of them.

    Raises:
        UserError: no document has a usable target.
    """
    sample, wrong = Sample(max_documents, seed), ""
    for row in _read_rows(files, ("text", "source", "url", field), sample.left_out):
        value = row.get(field)
        target = _number(value) if is_number else _label(value)
        if target is not None:
            sample.add(_example(row, target))
        elif _is_missing(value):
            sample.left_out[f"`{field}` is missing"] += 1
        else:
            wrong = wrong or (f"`{field}` is no {'number' if is_number else 'label'}, "
                              f"e.g. {repr(value)[:40]}")
            sample.left_out[wrong] += 1
    if not (examples := sample.examples()):
        raise UserError(f"classifier.target_field={field!r}",
                        f"no document of {files[0]}{' ...' if files[1:] else ''} can be used"
                        f"{describe_left_out(sample.left_out)}; its fields are "
                        f"{', '.join(_fields_of(files[0])) or 'none'}",
                        "set --config.classifier.target_field, or correct the values")
    return examples, +sample.left_out


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Skipped documents by reason, in brackets; nothing if there are none."""
    reasons = [f"{count} x {reason}" for reason, count in sorted(left_out.items())]
    return f" (left out: {', '.join(reasons)})" if reasons else ""


def split(examples: list[Example], *, by: str, calibration_frac: float, heldout_frac: float,
          seed: int) -> dict[str, list[Example]]:
    """Splits examples into `SPLITS`; equal texts and, by "host", pages of one host stay together.

    Args:
        by: "host" or "document". A document without a known host forms a group of its own.
    """
    parts: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in examples:
        group = example.host if by == "host" and example.host else example.key
        place = _hash(group, seed + 1) / 2**64
        name = ("heldout" if place < heldout_frac
                else "calibration" if place < heldout_frac + calibration_frac else "train")
        parts[name].append(example)
    return parts


def _hash(key: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(), seed=seed)


def _example(row: Mapping[str, Any], target: str | float) -> Example:
    text = encodable(row["text"])
    return Example(text, target, exact_key(text), _host(row.get("url") or row.get("source")))


def _host(source: Any) -> str | None:
    try:
        return urlsplit(source).hostname if isinstance(source, str) and "://" in source else None
    except ValueError:      # an invalid URL
        return None


def _label(value: Any) -> str | None:
    """Labels are strings, whole numbers (also as floats: a column with gaps holds those) or
    booleans."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None if isinstance(value, str | int) else None


def _number(value: Any) -> float | None:
    """Finite numbers, and strings of them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _read_rows(files: list[str], columns: tuple[str, ...],
               left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows with text; unreadable and empty rows are counted in `left_out`."""
    for file in files:
        rows = _read_parquet(file, columns) if file.endswith(".parquet") else _read_jsonl(file)
        try:
            for row in rows:
                text = row.get("text") if isinstance(row, dict) else None
                if not isinstance(text, str):
                    left_out["row is damaged or holds no `text`"] += 1
                elif not text.strip():
                    left_out["empty"] += 1
                else:
                    yield row
        except (pa.ArrowException, OSError, Damage):
            left_out["rest of a damaged file"] += 1


def _fields_of(file: str) -> list[str]:
    """Names of a file's columns, or of the fields of its first row; none if it is damaged."""
    try:
        if file.endswith(".parquet"):
            with storage.open_binary(file) as raw:
                return pq.read_schema(raw).names
        return next((sorted(row) for row in _read_jsonl(file) if isinstance(row, dict)), [])
    except (pa.ArrowException, OSError, Damage):
        return []


def _read_parquet(file: str, columns: tuple[str, ...]) -> Iterator[Any]:
    with storage.open_binary(file) as raw:
        table = pq.ParquetFile(raw)
        present = [name for name in columns if name in table.schema_arrow.names]
        for batch in table.iter_batches(1024, columns=present):
            yield from batch.to_pylist()


def _read_jsonl(file: str) -> Iterator[Any]:
    """JSON value of each line; None for an invalid line."""
    with storage.open_binary(file) as raw:
        codec = storage.codec_of(raw)
        for line in storage.decompress(raw, codec) if codec else raw:
            try:
                yield json.loads(line) if line.strip() else {"text": ""}
            except (ValueError, RecursionError):
                yield None


def targets_of(examples: list[Example], labels: tuple[str, ...]) -> np.ndarray:
    """Targets as numbers: the index of each label, or the score when there are no labels."""
    if not labels:
        return np.array([example.target for example in examples], np.float32)
    index = {label: place for place, label in enumerate(labels)}
    return np.array([index[example.target] for example in examples], np.int32)
