"""What curation did: removed documents with their reasons, and the story of one document.

    python -m data.inspect removed --corpus=runs/quickstart/corpus [--reason=NAME] [--num=5]
    python -m data.inspect doc ID --corpus=runs/quickstart/corpus
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from absl import flags

from core import entry
from core.errors import UserError

KINDS = ("documents", "heldout", "removed")
NUM_CHARS, NUM_LINES = 100, 6


def removed(corpus: Path, reason: str | None, num: int) -> dict[str, Any]:
    """Prints the first `num` removed documents (of one reason); returns counts by reason.

    Raises:
        UserError: nothing was removed for that reason.
    """
    counts = Counter(row["reason"] for row in _rows(corpus, "removed", ["reason"]))
    if reason and reason not in counts:
        raise UserError(f"--reason={reason}", "removed no document",
                        f"choose one of {', '.join(sorted(counts)) or '(nothing was removed)'}")
    shown = 0
    for row in _rows(corpus, "removed"):
        if shown < num and reason in (None, row["reason"]):
            shown += 1
            print(f"{row['id']}  {row['reason']} = {row['score']:.4g}  {row['source']}")
            print(_beginning(row["text"]) + "\n")
    return {"removed": dict(counts.most_common())}


def tell(corpus: Path, document_id: str) -> dict[str, Any]:
    """Prints where a document is and why; returns its columns but the text.

    Args:
        document_id: an id, or the beginning of one.

    Raises:
        UserError: no document, or more than one, has an id that begins so.
    """
    found = [(kind, row) for kind in KINDS for row in _rows(corpus, kind)
             if row["id"].startswith(document_id)]
    if len({row["id"] for _, row in found}) != 1:
        raise UserError(f"doc {document_id!r}", f"{len(found)} documents have such an id",
                        "give the id as `python -m data.inspect removed` prints it")
    kind, row = found[0]
    print(_beginning(row.pop("text")) + "\n")
    return {"kind": kind, **row, "meta": json.loads(row["meta"])}


def _rows(corpus: Path, kind: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    if not (corpus / kind).is_dir():
        raise UserError(f"--corpus={str(corpus)!r}", f"holds no folder {kind}/",
                        "give the folder that `python -m data.curate` wrote")
    for part in sorted((corpus / kind).glob("*.parquet")):
        yield from pq.read_table(part, columns=columns).to_pylist()


def _beginning(text: str) -> str:
    lines = [line[:NUM_CHARS] for line in text.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in lines[:NUM_LINES])


def main(words: list[str]) -> dict[str, Any]:
    """Runs the command that `words` name."""
    if flags.FLAGS.corpus is None:
        raise UserError("--corpus", "is missing", "try --corpus=runs/quickstart/corpus")
    corpus = Path(flags.FLAGS.corpus)
    match words:
        case ["removed"]:
            return removed(corpus, flags.FLAGS.reason, flags.FLAGS.num)
        case ["doc", document_id]:
            return tell(corpus, document_id)
    raise UserError(" ".join(words) or "no command", "is not a command of data.inspect",
                    "write `removed` or `doc ID`")


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Folder that `python -m data.curate` wrote.")
    flags.DEFINE_string("reason", None, "removed: only documents of this reason.")
    flags.DEFINE_integer("num", 5, "removed: documents to print.")
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
