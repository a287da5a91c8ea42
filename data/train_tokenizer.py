"""Stage: trains the tokenizer on the curated corpus.

    python -m data.train_tokenizer --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.entry import Stage, run_stage
from data.documents import read_documents
from data.tokenizers import bpe


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains on about `max_bytes` of text and measures the compression on it."""
    section = config.tokenizer
    sample = list(_texts(parents["corpus"] / "documents", section.max_bytes))
    tokenizer = bpe.train(sample, section.vocab_size, mask_token=section.mask_token,
                          num_sentinels=section.num_sentinels)
    tokenizer.save(folder)
    num_tokens = sum(map(len, tokenizer.encode_batch(sample)))
    num_bytes = sum(len(text.encode()) for text in sample)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint,
            "trained_bytes": num_bytes, "bytes_per_token": round(num_bytes / num_tokens, 3)}


def _texts(folder: Path, max_bytes: int) -> Iterator[str]:
    num_bytes = 0
    for document in read_documents(folder):
        if num_bytes >= max_bytes:
            return
        num_bytes += len(document.text.encode())
        yield document.text


STAGE = Stage("tokenizer", build, parents=("corpus",))

if __name__ == "__main__":
    run_stage(STAGE)
