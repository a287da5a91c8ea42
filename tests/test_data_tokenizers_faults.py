"""Tokenizers of other people that are damaged, contradict themselves, or split without end."""

import json

import pytest

from core.errors import UserError
from data.tokenizers import bpe, patterns
from data.tokenizers.load import load_tokenizer
from data.tokenizers.patterns import SPLITS, check_split
from tests import hub_tokenizers as hub

SLOW = r"(?:a|a)*(?!!)y|[\s\S]"     # every way to part a run of "a" is tried
# As above, but `regex` looks for the "y" first: that it is slow shows in use alone.
HIDDEN = r"(?:b+b+)+y|[\s\S]"
RUN = "b" * 60


def _hub(folder, **changes):
    pytest.importorskip("tokenizers")
    described = json.loads(hub.byte_level())
    for path, value in changes.items():
        *parents, last = path.split("__")
        part = described
        for name in parents:
            part = part[name]
        part[last] = value(part[last]) if callable(value) else value
    return hub.write_hub(folder, json.dumps(described), tokenizer_config={
        "eos_token": "<|im_end|>"})


def _splitting_at(expression):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
         "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}


def _ours(folder, pattern):
    """A folder of our own kind with a split of another, and the fingerprint that belongs to it."""
    bpe.BytePairTokenizer({bytes([i]): i for i in range(256)}, pattern).save(folder)
    return folder


def _added(name, i):
    return [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}]


def _refusal(source):
    with pytest.raises(UserError) as raised:
        load_tokenizer(source)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500 and str(source) in message, message
    return message


@pytest.mark.parametrize("names, words", [
    ([("<|x|>", 330), ("<|x|>", 331)], "gives the added token '<|x|>' the id 331, and the"),
    ([("<|x|>", 330), ("<|y|>", 330)], "gives the added token '<|y|>' the id 330, and the"),
    ([("<|x|>", 50)], "gives the added token '<|x|>' the id 50, and the library 330"),
    ([("<|x|>", 400)], "gives the added token '<|x|>' the id 400, and the library 330"),
    ([("<|im_end|>", 330)], "gives the added token '<|im_end|>' the id 330, and the library 2"),
    ([("", 330)], "gives the added token '' the id 330, and the library None")])
def test_added_tokens_that_the_library_would_renumber_are_refused(names, words, tmp_path):
    more = [token for name, i in names for token in _added(name, i)]
    assert words in _refusal(_hub(tmp_path, added_tokens=lambda tokens: [*tokens, *more]))


def test_two_tokens_with_one_id_are_refused(tmp_path):
    twice = _hub(tmp_path, model__vocab=lambda vocabulary: vocabulary | {"a": vocabulary["b"]})
    assert "gives the tokens 'a' and 'b' the id" in _refusal(twice).replace(
        "'b' and 'a'", "'a' and 'b'")


@pytest.mark.parametrize("name, words", [
    ("tokenizer.json", "is not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ("tokenizer_config.json", "is not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ("special_tokens_map.json", "is not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ("chat_template.jinja", "is no UTF-8 text")])
def test_a_file_of_the_hub_that_is_no_text_is_refused(name, words, tmp_path):
    folder = _hub(tmp_path)
    (folder / name).write_bytes(b'{"a": "\xff"}')
    assert words in _refusal(folder)


@pytest.mark.parametrize("name, words", [
    ("tokenizer.json", "is not valid JSON ('utf-8' codec can't decode byte 0xff"),
    ("ranks.tiktoken", "line 1: is no token in base64 and its rank"),
    ("chat_template.jinja", "is no readable tokenizer ('utf-8' codec can't decode byte 0xff")])
def test_a_file_of_ours_that_is_no_text_is_refused(name, words, tmp_path):
    (_ours(tmp_path, SPLITS["gpt2"]) / name).write_bytes(b"\xff\xfe 1\n")
    assert words in _refusal(tmp_path)


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer", "decoder"])
def test_an_expression_of_the_hub_that_is_slow_is_refused(part, tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "MAX_PROBE_SECS", 0.05)
    split = _splitting_at(SLOW)
    replace = {"type": "Replace", "pattern": {"Regex": SLOW}, "content": ""}
    decoders = [json.loads(hub.byte_level())["decoder"], replace]
    folder = _hub(tmp_path, **{part: {
        "pre_tokenizer": split, "normalizer": replace,
        "decoder": {"type": "Sequence", "decoders": decoders}}[part]})
    assert "backtracks without end on a run of 'a'" in _refusal(folder)


def test_an_expression_of_ours_that_is_slow_or_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "MAX_PROBE_SECS", 0.05)
    for number, (pattern, words) in enumerate([
            (SLOW, "backtracks without end on a run of 'a'"), ("(", "missing )"),
            ("(?r)a", "is no readable tokenizer"), (5, "is no readable tokenizer")]):
        folder = _ours(tmp_path / str(number), pattern if isinstance(pattern, str) else "x")
        described = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(described | {"pattern": pattern}))
        assert words in _refusal(folder)


def test_the_splits_that_we_know_pass(monkeypatch):
    splits = [*SPLITS.values()]
    monkeypatch.setattr(patterns, "SPLITS", {})     # where they stand they are not probed
    for split in splits:
        check_split(split)


def test_what_a_splitter_gives_up_is_one_line(tmp_path):
    """The engines of both libraries bound a match, and panic."""
    theirs = load_tokenizer(_hub(tmp_path / "hub", pre_tokenizer=_splitting_at(HIDDEN)))
    ours = load_tokenizer(_ours(tmp_path / "ours", r"(?:b|b)*(?!!)y|[\s\S]"))
    for tokenizer, arrays in ((theirs, ()), (ours, (ours.encode_array,))):
        for encode in (tokenizer.encode, *arrays,
                       lambda text, tokenizer=tokenizer: tokenizer.encode_batch(["a", text])):
            with pytest.raises(UserError, match="the tokenizer: its library fails on a text") as \
                    raised:
                encode(RUN)
            assert "\n" not in str(raised.value)
        assert tokenizer.decode(tokenizer.encode("a b")) == "a b", "and serves other texts"
