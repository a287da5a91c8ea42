"""The tokenizer: lossless, no special tokens from text, merges equal to the trainer's."""

import json

import pytest
import rustbpe
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs.common import make_tokens
from core.errors import UserError
from data.tokenizers.bpe import train
from data.tokenizers.load import load_tokenizer
from data.tokenizers.patterns import HEARTWOOD
from data.tokenizers.recipe import Recipe, make_recipe
from data.tokenizers.tokenizer import SPECIAL_TOKENS

TEXT = """def mean(values, axis=None):
    '''Returns the mean of the values; it's 12.5 for [10, 15].'''
    return sum(values) / len(values)

The function returns an array, and the array's values aren't changed. Größe, naïve, 日本語, 🌲🌲.
""" * 20
SAMPLES = [TEXT, "The arrays' mean is 1234567.", "   indented\n\n\n  text \t", "", "🌲 wood\r\n日"]


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT], Recipe(360))


def test_merges_are_those_of_the_trainer(tokenizer):
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter([TEXT]), 360 - len(SPECIAL_TOKENS), pattern=HEARTWOOD)
    for text in SAMPLES:
        assert tokenizer.encode(text) == list(trainer.encode(text))
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode()) / 2, "it compresses"


@given(text=st.text())
def test_any_text_is_decoded_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_any_bytes_can_be_decoded(tokenizer):
    assert {bytes([i]) for i in range(256)} <= set(tokenizer.ranks)


@given(text=st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "end", " "])).map("".join))
def test_names_of_special_tokens_in_a_text_are_ordinary(tokenizer, text):
    ids = tokenizer.encode(text)
    assert all(i < len(tokenizer.ranks) for i in ids)
    assert tokenizer.decode(ids) == text


def test_special_tokens_follow_the_ordinary_ones(tokenizer):
    assert tokenizer.vocab_size == 360 == max(map(tokenizer.special, SPECIAL_TOKENS)) + 1
    assert tokenizer.bos != tokenizer.end
    assert tokenizer.decode([tokenizer.end]) == "<|end|>"


def test_what_begins_another_turn_stops_an_answer_and_is_no_text(tokenizer):
    assert tokenizer.stops[0] == tokenizer.end
    assert {tokenizer.special(f"<|{role}|>") for role in ("user", "assistant")} < {*tokenizer.stops}
    drawn = [tokenizer.special("<|user|>"), *tokenizer.encode("yes <|user|>"), tokenizer.end]
    assert tokenizer.text_of(drawn) == "yes <|user|>", "a name that was spelled stays"


def test_special_tokens_of_objectives_are_part_of_the_vocabulary():
    def section(vocab_size):
        tokens = make_tokens(vocab_size=vocab_size, tokenizer_bytes=1)
        return ConfigDict(tokens.tokenizer.to_dict() | dict(mask_token=True, num_sentinels=3))

    tokenizer = train([TEXT], make_recipe(section(360)))
    added = ("<|mask|>", "<|extra_0|>", "<|extra_1|>", "<|extra_2|>")
    assert tokenizer.specials == (*SPECIAL_TOKENS, *added) and tokenizer.vocab_size == 360
    assert len(tokenizer.ranks) == 360 - 9, "they take the place of ordinary ones"
    assert [tokenizer.special(name) for name in added] == [356, 357, 358, 359]
    ids = tokenizer.encode("a <|mask|> and <|extra_0|>")
    assert all(i < len(tokenizer.ranks) for i in ids)
    with pytest.raises(UserError, match="must be at least 265"):
        train([TEXT], make_recipe(section(264)))


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("1234567")) == 7


def test_bytes_of_the_tokens_add_up_to_those_of_the_text(tokenizer):
    sizes = tokenizer.token_bytes()
    for text in SAMPLES:
        assert sizes[tokenizer.encode(text)].sum() == len(text.encode())
    assert not sizes[[tokenizer.special(name) for name in SPECIAL_TOKENS]].any()


def test_encode_batch_equals_encode(tokenizer):
    assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded == tokenizer and loaded.fingerprint == tokenizer.fingerprint
    again = train([TEXT], Recipe(360))
    assert again.fingerprint == tokenizer.fingerprint, "training is deterministic"
    assert train([TEXT], Recipe(359)).fingerprint != tokenizer.fingerprint


def _swap_two_ranks(folder):
    lines = (folder / "ranks.tiktoken").read_text().splitlines()
    tokens = [line.split()[0] for line in lines]
    tokens[300], tokens[301] = tokens[301], tokens[300]
    (folder / "ranks.tiktoken").write_text(
        "".join(f"{token} {rank}\n" for rank, token in enumerate(tokens)))


def _tear(folder):
    text = (folder / "ranks.tiktoken").read_text()
    (folder / "ranks.tiktoken").write_text(text[:len(text) // 2] + "\nnonsense")


def _rename_special(folder):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["specials"][0] = "<|begin|>"
    (folder / "tokenizer.json").write_text(json.dumps(described))


@pytest.mark.parametrize("damage", [
    _swap_two_ranks, _tear, _rename_special,
    lambda folder: (folder / "ranks.tiktoken").unlink(),
    lambda folder: (folder / "tokenizer.json").unlink(),
    lambda folder: (folder / "tokenizer.json").write_text("{")],
    ids=["ranks swapped", "torn", "special renamed", "no ranks", "no description", "bad JSON"])
def test_a_damaged_tokenizer_is_refused(tokenizer, tmp_path, damage):
    tokenizer.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_impossible_vocabularies_are_refused():
    with pytest.raises(UserError, match="vocab_size=200: must be at least 261"):
        train([TEXT], Recipe(200))
    with pytest.raises(UserError, match="vocab_size=5000: the text yields only"):
        train(["too short"], Recipe(5000))
