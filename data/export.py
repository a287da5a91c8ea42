"""Writes the documents of a corpus as JSONL, for tools that do not read Parquet.

    python -m data.export --corpus=runs/mine/corpus --to=mine [--kind=removed] [--packing=gzip]

The folder gets one file per part of the corpus, ``part-00000.jsonl.zst`` and so on. A line holds
the columns of the document; ``meta`` is an object.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import Progress
from data.corpus import KINDS, Corpus
from data.tables import read_rows

SUFFIXES = {"zstd": ".zst", "gzip": ".gz", "none": ""}


def export(corpus: Corpus, to: Path, kind: str = "documents",
           packing: str = "zstd") -> dict[str, Any]:
    """Writes all documents of a kind into a new folder, which gets its name when complete.

    Args:
        kind: one of `data.corpus.KINDS`.
        packing: one of `SUFFIXES`.

    Returns:
        ``documents``, and the ``path`` of the folder.

    Raises:
        UserError: the folder exists, or the corpus is damaged.
    """
    if to.exists():
        raise UserError(f"--to={str(to)!r}", "exists already", "name a new folder")
    partial, num_documents = to.with_name(f"{to.name}.partial"), 0
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = corpus.parts[kind]
    with Progress("export", len(parts), "files") as progress:
        for number, part in enumerate(parts):
            path = partial / f"{part.stem}.jsonl{SUFFIXES[packing]}"
            with pa.CompressedOutputStream(str(path), packing) if packing != "none" else open(
                    path, "wb") as file:
                for row in _read(part):
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                    num_documents += 1
            progress.update(number + 1)
    partial.rename(to)
    return {"documents": num_documents, "path": str(to)}


def _read(part: Path) -> Iterator[dict[str, Any]]:
    try:
        for _, row in read_rows(part):
            yield row | {"meta": json.loads(row["meta"])}
    except (pa.ArrowException, ValueError) as error:
        raise UserError(str(part), f"cannot be read ({str(error).splitlines()[0]})",
                        "build its corpus anew") from None


def main() -> dict[str, Any]:
    """Runs the command given by the flags."""
    for name in ("corpus", "to"):
        if getattr(flags.FLAGS, name) is None:
            raise UserError(f"--{name}", "is missing", "try --corpus=runs/mine/corpus --to=mine")
    return export(Corpus(Path(flags.FLAGS.corpus)), Path(flags.FLAGS.to), flags.FLAGS.kind,
                  flags.FLAGS.packing)


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Output folder of `python -m data.curate`.")
    flags.DEFINE_string("to", None, "Folder that is written.")
    flags.DEFINE_enum("kind", "documents", KINDS, "Which documents.")
    flags.DEFINE_enum("packing", "zstd", list(SUFFIXES), "Compression of the files.")
    entry.run(main)
