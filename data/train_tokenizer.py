"""Stage: trains the tokenizer on the curated corpus.

    python -m data.train_tokenizer --config=configs/quickstart.py --workdir=runs/quickstart
    python -m data.train_tokenizer --config=configs/tokenizer.py:unigram --workdir=runs/unigram \\
        --config.tokenizer.corpus=runs/quickstart/corpus

Text is read as a stream, and BPE keeps only how often its pieces occur. Of more than a gigabyte the
pieces are counted in units, on all cores or machines; the merges are the same.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.entry import Stage, run_stage
from core.errors import UserError
from data.documents import read_documents
from data.engine import assist
from data.tokenizers import bpe, byte, character, unigram, word, wordpiece
from data.tokenizers.merging import learn_merges, spell_tokens
from data.tokenizers.recipe import Recipe, make_recipe
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.pieces import count_pieces

KINDS: Mapping[str, Callable[[Iterable[str], Recipe], Tokenizer]] = {
    "bpe": bpe.train, "unigram": unigram.train, "wordpiece": wordpiece.train, "word": word.train,
    "character": character.train, "byte": byte.train}
STREAMED_BYTES = 1_000_000_000      # of text, at most, that one process reads
MEASURED_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Sample:
    """The texts of a folder of documents until they hold `max_bytes`, each time it is iterated."""

    documents: Path
    max_bytes: int

    def __iter__(self) -> Iterator[str]:
        num_bytes = 0
        for document in read_documents(self.documents):
            if num_bytes >= self.max_bytes:
                return
            num_bytes += len(document.text.encode())
            yield document.text


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains on about `max_bytes` of text and measures the compression on at most 100 MB of it."""
    section = config.tokenizer
    if section.kind not in KINDS:
        raise UserError(f"tokenizer.kind={section.kind!r}", f"is none of {', '.join(KINDS)}",
                        "choose one of them with --config.tokenizer.kind")
    documents = parents["corpus"] / "documents"
    tokenizer = train(section, documents, folder / "counts")
    tokenizer.save(folder)
    shutil.rmtree(folder / "counts", ignore_errors=True)
    num_bytes = num_tokens = 0
    for text in Sample(documents, min(section.max_bytes, MEASURED_BYTES)):
        num_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode_array(text))
    return {"kind": section.kind, "vocab_size": tokenizer.vocab_size,
            "fingerprint": tokenizer.fingerprint, "measured_bytes": num_bytes,
            "bytes_per_token": round(num_bytes / num_tokens, 3)}


def train(section: ConfigDict, documents: Path, counts: Path) -> Tokenizer:
    """Trains the tokenizer that a section describes.

    Args:
        counts: folder for counts of pieces, where these are made in units.

    Raises:
        UserError: see the kinds' functions `train`.
    """
    recipe = make_recipe(section)
    if section.kind != "bpe" or section.max_bytes <= STREAMED_BYTES:
        return KINDS[section.kind](Sample(documents, section.max_bytes), recipe)
    pieces = count_pieces(documents, recipe, section.max_bytes, counts)
    merges = learn_merges(pieces, bpe.check_room(recipe) - 256)
    return bpe.make_tokenizer(spell_tokens(merges), recipe)


STAGE = Stage("tokenizer", build, parents=("corpus",), assist=assist)

if __name__ == "__main__":
    run_stage(STAGE)
