"""The benchmark of tokenizers: all trainers and encoders do the same work."""

import os

import pytest

from core.errors import UserError
from data.documents import Document, write_documents
from data.tokenizers import bpe
from data.tokenizers.recipe import Recipe
from scripts.bench import tokenizer as bench

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
TEXTS = ["the mean of the values of the arrays " * 20, "Größe und Länge, 1234 日本 " * 20]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder / "part-00000.parquet", [
        Document(id=str(i), text=text, source="test://", domain="pages")
        for i, text in enumerate(TEXTS)])
    return bench.train_all(TEXTS, folder, Recipe(290), 1)


def test_all_learn_the_same_and_are_timed(trained):
    secs, ours, merges = trained
    assert {*secs} == {"heartwood", "heartwood, by units", "rustbpe", "tokenizers"}
    assert all(value > 0 for value in secs.values()) and ours.vocab_size == 290
    assert merges["library_tokens_shared_frac"] > 0.95


def test_all_encode_the_same_and_the_cores_are_given_back(trained):
    cores = os.sched_getaffinity(0)
    secs, by_cores = bench.encode_all(TEXTS, trained[1], 1)
    assert {*secs} == {"heartwood", "tiktoken", "tokenizers"}
    assert "1" in by_cores and os.sched_getaffinity(0) == cores


def test_other_ids_are_refused(trained, monkeypatch):
    monkeypatch.setattr(bpe.BytePairTokenizer, "encode_array", lambda self, text: [1])
    with pytest.raises(UserError, match="are not those of tiktoken"):
        bench.encode_all(TEXTS, trained[1], 1)
    assert len(os.sched_getaffinity(0)) >= 1
