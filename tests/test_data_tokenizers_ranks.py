"""Rank files: ids are tiktoken's, special tokens have ids of their own, faults are named."""

import base64
import dataclasses
import gzip
import hashlib
import json

import numpy as np
import pytest
import tiktoken
import tokenizer_texts as texts
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from core.errors import UserError
from data.chat import ask, render
from data.tokenizers import ranks
from data.tokenizers.bpe import BytePairTokenizer, train
from data.tokenizers.export import hub_files
from data.tokenizers.huggingface import byte_alphabet
from data.tokenizers.load import load_tokenizer
from data.tokenizers.patterns import SPLITS
from data.tokenizers.recipe import Recipe

# As p50k_base and cl100k_base: one special token amid the ranks, others behind a gap.
TINY = ranks.Encoding("", "cl100k", {"<|endoftext|>": 300, "<|a|>": 400, "<|b|>": 420},
                      stops=("<|b|>",))


@pytest.fixture(scope="module", autouse=True)
def tiny_encoding():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranks.ENCODINGS, "tiny", TINY)
        yield


def _tokens():
    """Tokens by their ranks, of which 300 has none."""
    words = " ".join(f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in "nrt")
    trained = train([f"The cat's größer 日本語\n\n    x = x; {words}"] * 9, Recipe(330))
    return {rank + (rank >= 300): token for token, rank in trained.ranks.items()}


def _write(folder, tokens, name="tiny.tiktoken"):
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in tokens.items()]
    (folder / name).write_text("".join(lines))
    return folder / name


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("ranks"), _tokens())


@pytest.fixture(scope="module")
def tokenizer(file):
    return load_tokenizer(file)


@pytest.fixture(scope="module")
def reference():
    return tiktoken.Encoding("tiny", pat_str=SPLITS["cl100k"], special_tokens=dict(TINY.specials),
                             mergeable_ranks={token: rank for rank, token in _tokens().items()})


def _same(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode_ordinary(text) == tokenizer.encode_array(text).tolist()
    assert tokenizer.decode(ids) == text
    return ids


@settings(max_examples=200)
@given(text=st.text() | st.lists(st.sampled_from([*TINY.specials, "<|", "a", " "])).map("".join))
def test_ids_are_those_of_tiktoken(tokenizer, reference, text):
    assert not {*_same(tokenizer, reference, text)} & {*TINY.specials.values()}


def test_special_tokens_have_the_ids_that_their_encoding_names(tokenizer, reference):
    assert tokenizer.specials == ("<|endoftext|>", "<|a|>", "<|b|>")
    assert [*map(tokenizer.special, tokenizer.specials)] == [300, 400, 420]
    assert tokenizer.vocab_size == reference.n_vocab == 421
    assert (tokenizer.bos, tokenizer.end, tokenizer.stops) == (300, 300, (300, 420))
    assert not tokenizer.adds_bos, "what only ends texts begins none"
    assert not tokenizer.turn_tokens and tokenizer.end_names == ("<|endoftext|>", "<|b|>")
    assert tokenizer.decode([300, 420]) == "<|endoftext|><|b|>"


def test_ids_without_a_token_are_no_text(tokenizer):
    ids = [399, *tokenizer.encode("cat"), 401, 421, 9999]
    assert tokenizer.decode(ids) == "cat" == b"".join(tokenizer.stream(ids)).decode()
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (421,) and not sizes[[300, 399, 400, 401, 420]].any()
    assert sizes[tokenizer.encode("größer")].sum() == len("größer".encode())
    assert np.count_nonzero(sizes) == len(tokenizer.ranks)


def test_a_gzipped_file_and_another_order_are_the_same_tokenizer(file, tokenizer, tmp_path):
    packed = tmp_path / "tiny.tiktoken.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert load_tokenizer(packed) == tokenizer
    lines = file.read_text().splitlines()
    (tmp_path / "tiny.tiktoken").write_text("\r\n".join(reversed(lines)))
    again = load_tokenizer(tmp_path / "tiny.tiktoken")
    assert again == tokenizer and again.fingerprint == tokenizer.fingerprint


def test_an_encoding_is_found_by_its_ranks_and_else_by_its_name(file, monkeypatch, tmp_path,
                                                                 capsys):
    assert load_tokenizer(file) and "not those of the published tiny" in capsys.readouterr().err
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(ranks.ENCODINGS, "tiny", TINY._replace(sha256=digest))
    edit = TINY._replace(sha256=digest, specials={"<|endoftext|>": 300, "<|b|>": 500})
    monkeypatch.setitem(ranks.ENCODINGS, "tiny_edit", edit)
    for name, last in (("tokenizer.model", 420), ("tiny.tiktoken", 420), ("edit.tiktoken", 420),
                       ("tiny_edit.tiktoken", 500), ("cl100k_base.tiktoken", 420)):
        (tmp_path / name).write_bytes(file.read_bytes())
        assert load_tokenizer(tmp_path / name).vocab_size == last + 1
    assert load_tokenizer(tmp_path).vocab_size == 421, "a folder with tokenizer.model"
    assert not capsys.readouterr().err


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded == tokenizer and loaded.fingerprint == tokenizer.fingerprint
    other = BytePairTokenizer(tokenizer.ranks, tokenizer.pattern, tokenizer.specials,
                              ids=(300, 400, 421), bos_name="<|a|>", end_name="<|endoftext|>")
    assert other.fingerprint != tokenizer.fingerprint and other.adds_bos
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    assert described["stops"] == ["<|b|>"]
    for change in ({"ids": [300, 400, 421]}, {"end": "<|a|>"}, {"ids": [300]}, {"ids": "300"},
                   {"ids": ["x", 1, 2]}, {"bos": "<|c|>"}, {"stops": ["<|c|>"]}, {"ids": []}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(described | change))
        with pytest.raises(UserError):
            load_tokenizer(tmp_path)


def test_tokenizers_of_ours_keep_their_files_and_fingerprints(tmp_path):
    """Both as they were before special tokens could have ids of their own."""
    ours = BytePairTokenizer({bytes([i]): i for i in range(256)})
    assert ours.fingerprint == "1d37bc23697a3025"
    ours.save(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    assert set(described) == {"kind", "pattern", "specials", "vocab_size", "fingerprint"}
    assert load_tokenizer(tmp_path) == ours and ours.adds_bos and ours.stops[0] == ours.end == 257


@pytest.mark.parametrize("bos", ["<|endoftext|>", "<|a|>"])
def test_exported_files_are_the_same_tokenizer(tokenizer, bos, tmp_path):
    pytest.importorskip("tokenizers")
    given = dataclasses.replace(tokenizer, bos_name=bos)
    for name, contents in hub_files(given, chat=False, context_tokens=64).items():
        (tmp_path / name).write_text(contents)
    found = load_tokenizer(tmp_path)
    assert (found.bos, found.end, found.adds_bos) == (given.bos, given.end, bos == "<|a|>")
    assert [*map(found.special, found.specials)] == [300, 400, 420]
    for text in texts.TRICKY:       # with digits in threes
        assert found.encode(text) == given.encode(text)


def test_conversations_are_rendered_by_a_named_template(tokenizer):
    pytest.importorskip("jinja2")
    with pytest.raises(UserError, match="has no chat template: name one"):
        render(ask("2+2?", "4"), tokenizer)
    ids, weights = render(ask("<|b|>?", "4"), tokenizer, template="plain")
    assert tokenizer.decode(ids) == "<|b|>?\n\n4<|endoftext|>" and 420 not in ids
    assert tokenizer.decode([i for i, weight in zip(ids, weights) if weight]) == "4<|endoftext|>"


def _changed(change):
    tokens = _tokens()
    change(tokens)
    return tokens


@pytest.mark.parametrize("change, words", [
    (lambda tokens: tokens.pop(260), "has no token of the rank 260, and ranks up to 325"),
    (lambda tokens: tokens.pop(65), "lacks the tokens of 1 single bytes, the first 0x"),
    (lambda tokens: tokens.update({300: b"abc"}), "'<|endoftext|>' has the id 300, which is that "
     "of the ordinary token b'abc'"),
    (lambda tokens: tokens.update({326: tokens[5]}), "line 326: names the token b'.*' again"),
    (lambda tokens: tokens.update({"7": b"abc"}), "line 326: names the rank 7 again"),
    (lambda tokens: tokens.update({-1: b"abc"}), "line 326: has the rank -1"),
    (lambda tokens: tokens.update({10**30: b"abc"}), "has no token of the rank 326"),
    (lambda tokens: tokens.update({"326 7": b"abc"}), "line 326: is no token in base64 and its"),
    (lambda tokens: tokens.update({"x": b"abc"}), "line 326: is no token in base64 and its rank"),
    (lambda tokens: tokens.update({326: b""}), "line 326: is no token in base64 and its rank"),
    (lambda tokens: tokens.clear(), "lacks the tokens of 256 single bytes, the first 0x00")])
def test_a_wrong_rank_file_is_refused(tmp_path, change, words):
    file = _write(tmp_path, _changed(change))
    with pytest.raises(UserError, match=words.replace("|", r"\|")) as raised:
        load_tokenizer(file)
    assert "\n" not in str(raised.value) and str(file) in str(raised.value)
    assert "fetch it anew" in str(raised.value)


def test_a_file_that_is_no_rank_file_is_refused(file, tmp_path, monkeypatch):
    whole = file.read_bytes()
    packed = gzip.compress(whole)
    monkeypatch.setattr(ranks, "MAX_BYTES", len(whole))
    damages = {"no base64": (b"!!!! 0\n" + whole[8:], "line 1: is no token in base64"),
               "cut": (packed[:len(packed) // 2], "is not a readable rank file"),
               "torn": (packed[:40] + b"x" * 40 + packed[80:], "is not a readable rank file"),
               "long": (gzip.compress(whole + b"\n"), "has more than"),
               "binary": (bytes(range(256)), "line 1: is no token in base64")}
    for name, (contents, words) in damages.items():
        (tmp_path / "tiny.tiktoken").write_bytes(contents)
        with pytest.raises(UserError, match=words):
            load_tokenizer(tmp_path / "tiny.tiktoken")
            pytest.fail(name)
    with pytest.raises(UserError, match=r"missing\.tiktoken: no such file"):
        load_tokenizer(tmp_path / "missing.tiktoken")
    with pytest.raises(UserError, match=r"holds 325 ranks of no encoding that is known here .*"
                       r"name the file by the one whose split and special tokens it has"):
        load_tokenizer(_write(tmp_path, _tokens(), "mine.tiktoken"))


def test_what_tiktoken_refuses_is_encoded(tokenizer):
    surrogate = "lone \ud800 x"
    assert tokenizer.encode_array(surrogate).tolist() == tokenizer.encode(surrogate)
    long = "b " + " " * 250_000 + "a"
    assert tokenizer.encode_batch(["cat", long, ""]) == [*map(tokenizer.encode, ["cat", long, ""])]
    assert tokenizer.decode(tokenizer.encode(long)) == long


@pytest.mark.full
@pytest.mark.parametrize("name", ["r50k_base", "gpt2", "p50k_base", "p50k_edit", "cl100k_base",
                                  "o200k_base", "o200k_harmony"])
def test_published_encodings_are_those_of_tiktoken(name, tmp_path, monkeypatch):
    """Split, ranks and special tokens are those that openai_public.py itself puts together."""
    stored = {"gpt2": "r50k_base", "p50k_edit": "p50k_base", "o200k_harmony": "o200k_base"}
    packed = texts.datasets() / "tokenizers" / f"{stored.get(name, name)}.tiktoken.gz"

    def read(*_, **__):
        lines = gzip.decompress(packed.read_bytes()).splitlines()
        return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", read)
    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", read)
    reference = tiktoken.Encoding(**openai_public.ENCODING_CONSTRUCTORS[name]())
    file = tmp_path / f"{name}.tiktoken.gz"
    file.write_bytes(packed.read_bytes())
    tokenizer = load_tokenizer(file)
    special_ids = {name: tokenizer.special(name) for name in tokenizer.specials}
    # o200k_harmony has two names for one id, of which a tokenizer has one.
    second = {"<|reserved_200018|>": 200018} if name == "o200k_harmony" else {}
    assert special_ids | second == reference._special_tokens
    assert tokenizer.vocab_size == reference.n_vocab
    special = {*reference._special_tokens.values()}
    many = name == stored.get(name, name)
    for text in (*texts.TRICKY, *tokenizer.specials, *(texts.noise(20) if many else ()),
                 *(texts.every_code_point() if many else ()),
                 *(texts.real_texts() if many else ())):
        assert not special & {*_same(tokenizer, reference, text)}

    @settings(max_examples=10_000 if many else 100)
    @given(text=st.text())
    def compare(text):
        _same(tokenizer, reference, text)

    compare()


@pytest.mark.full
def test_the_rank_file_of_llama_3_is_its_file_of_the_hub(tmp_path):
    """Both hold the same model; the rank file is made of the hub's vocabulary."""
    pytest.importorskip("tokenizers")
    folder = texts.datasets() / "tokenizers" / "llama3"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(gzip.decompress((folder / f"{name}.gz").read_bytes()))
    theirs, letters = load_tokenizer(tmp_path), byte_alphabet()
    vocabulary = json.loads(theirs.text)["model"]["vocab"]
    (tmp_path / "rank").mkdir()
    file = _write(tmp_path / "rank", {rank: bytes(map(letters.get, token)) for token, rank in
                                      sorted(vocabulary.items(), key=lambda item: item[1])},
                  "tokenizer.model")
    ours = load_tokenizer(file)
    assert ours.specials == theirs.specials and ours.vocab_size == theirs.vocab_size == 128256
    assert (ours.bos, ours.end, ours.adds_bos) == (theirs.bos, 128001, True)
    assert ours.stops == (128001, 128009)
    for text in (*texts.TRICKY, *texts.noise(5), *texts.real_texts()):
        assert ours.encode(text) == theirs.encode(text)
