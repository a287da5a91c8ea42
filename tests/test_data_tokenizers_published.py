"""Vocabularies that are in use, from their files of the hub: ids are the library's and tiktoken's.

Text is decoded as it was, with the exceptions that `LOST` names.
"""

import gzip
import json
import unicodedata
from itertools import chain, islice

import pytest
import tiktoken
import tokenizer_texts as texts

from data.tokenizers.huggingface import byte_alphabet
from data.tokenizers.load import load_tokenizer
from data.tokenizers.patterns import SPLITS

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.full

# By model: what `losses` says, and what becomes of a text.
LOST = {
    "llama2": (("normalisation: Prepend, Replace", "the character U+2581, which becomes a space"),
               lambda text: text.replace("\u2581", " ")),
    "llama3": ((), lambda text: text),
    # Of the library, whose tables know fewer marks than Python's.
    "qwen3": (("normalisation: NFC",),
              lambda text: tokenizers.normalizers.NFC().normalize_str(text))}
SIZES = {"llama2": (32000, 3), "llama3": (128256, 256), "qwen3": (151669, 26)}


@pytest.fixture(scope="module", params=LOST)
def model(request, tmp_path_factory):
    """Its name, its folder of the hub, and our tokenizer of it."""
    folder = tmp_path_factory.mktemp(request.param)
    for file in (texts.datasets() / "tokenizers" / request.param).iterdir():
        (folder / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    return request.param, folder, load_tokenizer(folder)


def _texts():
    """All assigned planes, some of the others, noise, and texts in many languages."""
    chunks = [*texts.every_code_point()]
    planes = [*chunks[:64], *chunks[64::16]]        # 16 chunks a plane
    return chain(texts.TRICKY, planes, texts.noise(3), islice(texts.real_texts(), 0, None, 12))


def test_ids_are_those_of_the_library(model):
    name, folder, ours = model
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    losses, decoded = LOST[name]
    assert ours.losses == losses
    special = {ours.special(name) for name in ours.specials}
    for text in chain(_texts(), texts.short_texts(10_000)):
        ids = ours.encode(text)
        if not any(name in text for name in ours.specials):     # which the library takes for tokens
            assert ids == theirs.encode(text, add_special_tokens=False).ids, text[:80]
        assert special.isdisjoint(ids)
        assert ours.decode(ids) == decoded(text), text[:80]


def test_text_in_use_is_normalised_as_python_does():
    for text in chain(texts.TRICKY, texts.real_texts()):
        assert LOST["qwen3"][1](text) == unicodedata.normalize("NFC", text), text[:80]


def test_batches_arrays_and_streams_agree(model):
    _, _, ours = model
    some = [*texts.TRICKY, *islice(texts.short_texts(500, seed=1), 500)]
    for text, ids in zip(some, ours.encode_batch(some)):
        assert ids == ours.encode(text) == ours.encode_array(text).tolist()
        assert b"".join(ours.stream(ids)).decode() == ours.decode(ids)


def test_special_tokens_are_those_of_the_files(model):
    name, folder, ours = model
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["content"]: int(i) for i, token in config["added_tokens_decoder"].items()
             if token["special"]}
    assert {name: ours.special(name) for name in ours.specials} == added
    assert (ours.vocab_size, len(added) + (name == "qwen3") * 12) == SIZES[name]
    assert ours.end_name == config["eos_token"] and ours.end in ours.stops
    assert ours.chat_template == config.get("chat_template", "")
    for special in ours.specials:
        assert ours.decode([ours.special(special)]) == special
        if special != "<unk>":
            assert ours.special(special) not in ours.encode(f"a {special} b")


@pytest.mark.parametrize("model", ["llama3", "qwen3"], indirect=True)
def test_byte_level_ids_are_those_of_tiktoken(model):
    """With the ids of tokens as ranks: pieces are merged in the order of their ids."""
    name, folder, ours = model
    letters = byte_alphabet()
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    reference = tiktoken.Encoding(
        name, pat_str=SPLITS[name.removesuffix("3") if name == "qwen3" else name],
        special_tokens={},
        mergeable_ranks={bytes(map(letters.get, token)): i for token, i in vocabulary.items()})
    added = [token for token in ours._added.values() if not token.special]
    for text in chain(_texts(), texts.short_texts(2000, seed=2)):
        if not any(token.content in text for token in added):       # as <think>
            assert ours.encode(text) == reference.encode_ordinary(LOST[name][1](text)), text[:80]
