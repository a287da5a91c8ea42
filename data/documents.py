"""`Document`, the unit of text before tokenisation, and its Parquet files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.errors import UserError
from data.tables import TableWriter, read_rows

SCHEMA = pa.schema([
    ("id", pa.string()),        # unique in the corpus; derived from source and content
    ("text", pa.string()),
    ("source", pa.string()),    # URL, or file path and row
    ("domain", pa.string()),    # kind of text: pages, readme, licence, code, ...
    ("language", pa.string()),  # ISO 639-1, or "und"
    ("meta", pa.string()),      # JSON object: signals, scores, spans, the input's own fields
])
REMOVED_FIELDS = {"stage": pa.string(), "reason": pa.string(), "score": pa.float64(),
                  "representative": pa.string()}    # more columns of removed documents


@dataclasses.dataclass(frozen=True)
class Document:
    """One document; the fields are the columns of `SCHEMA`."""

    id: str
    text: str
    source: str
    domain: str
    language: str = "und"
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def row(self) -> dict[str, str]:
        """The document as a Parquet row."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"meta": json.dumps(dict(self.meta), sort_keys=True)}


def write_documents(path: Path, documents: Iterable[Document],
                    extra: Mapping[str, pa.DataType] | None = None) -> tuple[int, int]:
    """Writes documents as zstd Parquet, in batches; the file gets its final name when complete.

    Args:
        extra: further columns, taken from `meta` (e.g. ``{"reason": pa.string()}``).

    Returns:
        Number of documents, and of UTF-8 bytes of text.
    """
    extra = dict(extra or {})
    path.parent.mkdir(parents=True, exist_ok=True)
    num_documents = num_bytes = 0
    with TableWriter(path, pa.schema([*SCHEMA, *extra.items()])) as writer:
        for document in documents:
            writer.write(document.row() | {name: document.meta.get(name) for name in extra})
            num_documents += 1
            num_bytes += len(document.text.encode())
    return num_documents, num_bytes


def read_documents(folder: Path) -> Iterator[Document]:
    """Reads all Parquet parts of a folder in the order of their names.

    Raises:
        UserError: the folder has no part, or a part is damaged.
    """
    parts = sorted(Path(folder).glob("*.parquet"))
    if not parts:
        raise UserError(str(folder), "holds no Parquet files", "run `python -m data.curate` first")
    for part in parts:
        try:
            for _, row in read_rows(part, SCHEMA.names):
                yield Document(**row | {"meta": json.loads(row["meta"])})
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise UserError(str(part), f"is not a readable document file ({error})",
                            "build the corpus anew") from None
