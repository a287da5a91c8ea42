"""Reads tokenizers of every kind."""

from __future__ import annotations

from pathlib import Path

from core.artifacts import read_json
from core.errors import UserError
from data.tokenizers import bpe, huggingface
from data.tokenizers.hub import import_tokenizer
from data.tokenizers.tokenizer import Tokenizer

KINDS = {bpe.KIND: bpe.load, huggingface.KIND: huggingface.load}


def load_tokenizer(source: Path) -> Tokenizer:
    """Reads a tokenizer folder, or the one in a folder of tokens or a model directory.

    Args:
        source: such a folder; or a `tokenizer.json` of the Hugging Face hub, or the folder that
            holds it.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written; or its kind is
            unknown.
    """
    source = Path(source)
    if not source.is_file() and not (source / "tokenizer.json").exists() \
            and (source / "tokenizer").exists():
        source = source / "tokenizer"
    file = source if source.is_file() else source / "tokenizer.json"
    described = read_json(file)
    if not isinstance(described, dict):
        raise UserError(str(file), "describes no tokenizer", "name another folder")
    if "model" in described:
        return import_tokenizer(source)
    if described.get("kind") not in KINDS:
        raise UserError(str(file), f"names no kind of tokenizer among {', '.join(KINDS)}",
                        "train the tokenizer anew, or name a tokenizer.json of the hub")
    return KINDS[described["kind"]](file.parent, described)
