"""Stage: encodes the corpus into flat token files, per domain, documents shuffled.

    python -m data.pack --config=configs/quickstart.py --workdir=runs/quickstart

Writes the files that `data.rows` reads: one pair per domain of the corpus, `best` (the documents
of highest quality, for annealing), and `heldout`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from core import entry
from core.artifacts import write_json
from core.errors import UserError
from core.progress import Progress
from data.documents import Document, read_documents
from data.tokenizer import Tokenizer, load_tokenizer

ENCODE_BATCH = 512  # documents handed to the encoder's threads at once


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Encodes every domain; `best` repeats documents that a domain's own file holds too."""
    section = config.pack
    tokenizer = load_tokenizer(parents["tokenizer"])
    groups: dict[str, list[Document]] = defaultdict(list)
    for document in read_documents(parents["corpus"] / "documents"):
        groups[document.domain].append(document)
    groups["best"] = _best(groups, section.best_domains, section.best_frac)
    groups["heldout"] = list(read_documents(parents["corpus"] / "heldout"))

    rng = np.random.default_rng(section.seed)
    domains = {}
    with Progress("pack", sum(map(len, groups.values())), "documents") as progress:
        done = 0
        for name in sorted(groups):
            documents = groups[name]
            if name != "heldout":
                documents = [documents[i] for i in rng.permutation(len(documents))]
            domains[name] = _encode(name, documents, tokenizer, folder)
            done += len(documents)
            progress.update(done)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "tokens.json", {
        "dtype": _dtype(tokenizer).name, "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint, "domains": domains})
    trained = sum(d["tokens"] for n, d in domains.items() if n not in ("best", "heldout"))
    return {"tokens": trained, "domains": domains}


def _best(groups: Mapping[str, Sequence[Document]], domains: Sequence[str],
          frac: float) -> list[Document]:
    """The share `frac` of the named domains' documents with the highest quality score."""
    pool = [document for name in domains for document in groups.get(name, ())]
    if not pool:
        raise UserError(f"pack.best_domains={tuple(domains)}",
                        f"the corpus holds only {sorted(groups)}", "set --config.pack.best_domains")
    pool.sort(key=lambda document: (-float(document.meta.get("quality", 0.0)), document.id))
    return pool[:max(round(frac * len(pool)), 1)]


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("uint16" if tokenizer.vocab_size <= 2**16 else "uint32")


def _encode(name: str, documents: Sequence[Document], tokenizer: Tokenizer,
            folder: Path) -> dict[str, int]:
    """Writes one domain's token file and its index of document ends."""
    dtype = _dtype(tokenizer).newbyteorder("<")
    ends, num_tokens, num_bytes = [], 0, 0
    with open(folder / f"{name}.tokens", "wb") as file:
        for first in range(0, len(documents), ENCODE_BATCH):
            texts = [document.text for document in documents[first:first + ENCODE_BATCH]]
            for text, ids in zip(texts, tokenizer.encode_batch(texts)):
                file.write(np.asarray([tokenizer.bos, *ids, tokenizer.end], dtype).tobytes())
                num_tokens += len(ids) + 2
                num_bytes += len(text.encode())
                ends.append(num_tokens)
    (folder / f"{name}.ends").write_bytes(np.asarray(ends, "<i8").tobytes())
    return {"documents": len(documents), "tokens": num_tokens, "bytes": num_bytes}


if __name__ == "__main__":
    entry.run_stage("pack", build, parents=("corpus", "tokenizer"))
