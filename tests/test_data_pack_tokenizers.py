"""Packing with tokenizers of other programs: their documents are read back as they were."""

import functools
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from piece_models import BYTES, NORMAL, SPECIALS, PieceModel, write_model

from core.artifacts import parent, read_json
from core.errors import UserError
from data import pack
from data.documents import Document, write_documents
from data.tokenizers import bpe
from data.tokenizers.load import load_tokenizer
from data.tokenizers.recipe import Recipe
from data.tokens.rows import open_tokens
from tests import hub_tokenizers as hub

TEXTS = ["the cat is in the cat", "größer 日本語 🌲", "", "<|endoftext|> </s> <s> is text\n",
         "a 1 2"]


def _ranks(folder: Path) -> Path:
    """A rank file, read by its name: its special token has the id 50256."""
    bpe.train([*hub.TEXT, *TEXTS], Recipe(270)).save(folder)
    return (folder / bpe.RANKS).rename(folder / "r50k_base.tiktoken")


def _hub(folder: Path) -> Path:
    return hub.write_hub(folder, hub.byte_level(), tokenizer_config={"eos_token": "<|im_end|>"})


def _pieces(folder: Path) -> Path:
    model = PieceModel([*SPECIALS, *BYTES, *((letter, -1.0, NORMAL) for letter in "▁thecaisn")],
                       has_bytes=True, trims=False)
    (folder / "tokenizer.model").write_bytes(write_model(model))
    return folder


def _gguf(folder: Path) -> Path:
    return hub.write_gguf(folder / "x.gguf", hub.gguf_metadata(hub.byte_level()))


MAKE = {"rank file": _ranks, "folder of the hub": _hub, "model of SentencePiece": _pieces,
        "GGUF file": _gguf}


def _run_here(work, tasks, folder, *, key, num_workers):
    """Replaces `run_units`: runs the units in this process, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    return [work(output=folder / f"{unit:05d}", **task) for unit, task in enumerate(tasks)]


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_documents_are_packed_and_read_back(make, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(pack, "run_units", _run_here)
    write_documents(tmp_path / "corpus" / "documents" / "part-0.parquet", [
        Document(id=str(i), text=text, source="s", domain="pages") for i, text in enumerate(TEXTS)])
    (tmp_path / "theirs").mkdir()
    source = make(tmp_path / "theirs")
    tokenizer = load_tokenizer(source)
    found, mark = parent(tmp_path, "pack.tokenizer", str(source), foreign=pack.mark_tokenizer)
    assert (found, mark) == (source, tokenizer.fingerprint)
    section = ConfigDict(dict(best_domains=(), best_frac=0.25, seed=0))
    folder = tmp_path / "tokens"
    folder.mkdir()
    pack.build(ConfigDict({"pack": section}), {"corpus": tmp_path / "corpus", "tokenizer": source},
               folder)
    described = read_json(folder / "tokens.json")
    assert described["tokenizer"] == tokenizer.fingerprint
    assert described["vocab_size"] == tokenizer.vocab_size
    assert load_tokenizer(folder) == tokenizer, "its tokenizer folder holds the same one"
    tokens, ends = open_tokens(folder, "pages")
    documents = np.split(tokens[:], ends[:-1])
    assert {(int(ids[0]), int(ids[-1])) for ids in documents} == {(tokenizer.bos, tokenizer.end)}
    assert sorted(tokenizer.decode(ids[1:-1]) for ids in documents) == sorted(TEXTS)


def test_a_missing_tokenizer_is_refused(tmp_path):
    find = functools.partial(parent, tmp_path, "pack.tokenizer", foreign=pack.mark_tokenizer)
    for name in ("none", str(tmp_path / "none.tiktoken"), str(tmp_path / "none.model"),
                 str(tmp_path / "none.gguf"), str(tmp_path)):
        with pytest.raises(UserError, match="no finished artifact at"):
            find(name)
