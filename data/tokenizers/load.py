"""Reads tokenizers of every kind."""

from __future__ import annotations

import re
from pathlib import Path

from core.artifacts import read_json
from core.errors import UserError
from data.tokenizers import bpe, huggingface
from data.tokenizers.gguf import import_gguf
from data.tokenizers.gguf_header import MAGIC
from data.tokenizers.hub import import_tokenizer
from data.tokenizers.ranks import SUFFIXES
from data.tokenizers.sentencepiece import import_sentence_piece
from data.tokenizers.tokenizer import Tokenizer

KINDS = {bpe.KIND: bpe.load, huggingface.KIND: huggingface.load}
FILES = ("tokenizer.json", "tokenizer.model")       # of a folder, the first that it has
MODEL, GGUF = ".model", ".gguf"
START_BYTES = 1024
RANKS_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
PIECES = re.compile(rb"\n[\s\S]*[\0-\x08\x0e-\x1f]")    # as no text begins, a JSON file neither


def find_tokenizer(source: Path) -> Path:
    """The file that describes a tokenizer, which may be missing.

    Args:
        source: that file; or the folder that holds it, or whose folder `tokenizer` does.
    """
    source = Path(source)
    if source.is_file() or (source.name.endswith((*SUFFIXES, MODEL, GGUF))
                            and not source.exists()):
        return source
    places = [folder / name for folder in (source, source / "tokenizer") for name in FILES]
    return next((place for place in places if place.exists()), places[0])


def load_tokenizer(source: Path) -> Tokenizer:
    """Reads a tokenizer folder, or the one in a folder of tokens or a model directory.

    Args:
        source: such a folder; or a `tokenizer.json` of the Hugging Face hub, a rank file as
            tiktoken has them and Llama 3 in its `tokenizer.model`, or a model of SentencePiece as
            Llama 2 has in a file of that name; or the folder that holds it; or a GGUF file.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written; or its kind is
            unknown.
    """
    file = find_tokenizer(source)
    if not file.is_file():
        raise UserError(str(file), "no such file", "name a tokenizer's folder or file, or build "
                        "the artifact that should hold it")
    with open(file, "rb") as opened:
        start = opened.read(START_BYTES)        # which tell the format
    if file.name.endswith(SUFFIXES) or RANKS_LINE.match(start):
        return bpe.import_ranks(file)
    if start.startswith(MAGIC):
        return import_gguf(file)
    if file.name.endswith(MODEL) or PIECES.match(start):
        return import_sentence_piece(file)
    described = read_json(file)
    if not isinstance(described, dict):
        raise UserError(str(file), "describes no tokenizer", "name another folder")
    if "model" in described:
        return import_tokenizer(file)
    if described.get("kind") not in KINDS:
        raise UserError(str(file), f"names no kind of tokenizer among {', '.join(KINDS)}",
                        "train the tokenizer anew, or name a tokenizer.json of the hub")
    return KINDS[described["kind"]](file.parent, described)
