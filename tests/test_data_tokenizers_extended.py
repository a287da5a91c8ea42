"""Tokens added to tokenizers of every kind: old ids stay, and new tokens are found and decoded."""

import base64
import json

import pytest
from hub_tokenizers import byte_level, sentence_piece, word_piece, write_hub
from hub_tokenizers import unigram as t5

from core.errors import UserError
from data.tokenizers import bpe, byte, character, ranks, unigram, word, wordpiece
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.export import hub_files
from data.tokenizers.extended import extend
from data.tokenizers.load import load_tokenizer
from data.tokenizers.recipe import Recipe

TEXT = """The function returns an array, and the array's values aren't changed. It's 12.5 for [10].
    return sum(values) / len(values)  # the mean of values
""" * 5
OTHERS = ["The values\n\n  return", "naïve 日本語 🌲", "", " ", "x<|end|>y", "Theremin"]
TRAINED = {bpe: 320, byte: 261, unigram: 500, wordpiece: 140, word: 40, character: 40}
HUB = {"byte-level": byte_level, "sentence-piece": sentence_piece, "t5": t5, "bert": word_piece}
CONFIG = {"eos_token": "<|endoftext|>"}
WORDS = {"bert": ("catnip", "themes"), "wordpiece": ("catnip", "themes"),
         "t5": (" catnip", " themes")}
USUAL = (" catnip", " themes", "größer")


@pytest.fixture(scope="module", params=["ranks", *HUB, *TRAINED],
                ids=lambda kind: getattr(kind, "__name__", kind).rpartition(".")[2])
def kind(request, tmp_path_factory):
    """A tokenizer, and words that it cuts."""
    folder, name = tmp_path_factory.mktemp("kind"), request.param
    if name == "ranks":
        return _read_rank_file(folder), USUAL
    pytest.importorskip("tokenizers")
    if name in HUB:
        end = {"byte-level": "<|endoftext|>", "bert": "[SEP]"}.get(name, "</s>")
        write_hub(folder, HUB[name](), tokenizer_config={"eos_token": end})
        return load_tokenizer(folder), WORDS.get(name, USUAL[:2])
    own = name.__name__.rpartition(".")[2]
    return name.train([TEXT], Recipe(TRAINED[name])), WORDS.get(own, USUAL)


def _read_rank_file(folder):
    """One whose special tokens have the ids 300 and 420, with a gap between the ordinary ones."""
    trained = bpe.train([TEXT], Recipe(320)).ranks
    lines = [f"{base64.b64encode(token).decode()} {rank + (rank >= 300)}\n"
             for token, rank in trained.items()]
    (folder / "tiny.tiktoken").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ranks.ENCODINGS, "tiny", ranks.Encoding(
            "", "cl100k", {"<|endoftext|>": 300, "<|a|>": 420}))
        return load_tokenizer(folder / "tiny.tiktoken")


def test_all_ids_stay_and_texts_without_new_tokens_are_encoded_as_before(kind):
    old, words = kind
    new = extend(old, words)
    ids = [*range(old.vocab_size)]
    known = [i for i, piece in zip(ids, old.list_bytes(ids)) if piece]
    assert new.list_bytes(known) == old.list_bytes(known)
    assert new.specials == old.specials and new.special_ids == old.special_ids
    assert (new.bos, new.end, new.stops, new.adds_bos) == (old.bos, old.end, old.stops,
                                                           old.adds_bos)
    for text in (*OTHERS, TEXT):
        assert new.encode(text) == old.encode(text)
    assert new.encode_batch(OTHERS) == old.encode_batch(OTHERS)


def test_a_new_token_is_one_id_that_no_token_had_and_is_decoded_as_written(kind):
    old, words = kind
    new = extend(old, words)
    before = {i for i in range(old.vocab_size) if old.list_bytes([i]) != [b""]}
    found = [new.encode_rendered(token, "", begins=False) for token in words]
    assert all(len(ids) == 1 and not {*ids} & before for ids in found)
    assert [ids[0] for ids in found] == sorted(ids[0] for ids in found), "in their order"
    text = f"a{words[0]} b {words[1]}, 12"
    assert len(new.encode(text)) < len(old.encode(text)) or old.losses
    assert {found[0][0], found[1][0]} < {*new.encode(text)}
    assert b"".join(new.stream(new.encode(text))).decode() == new.decode(new.encode(text))
    assert new.token_bytes()[found[0][0]] >= len(words[0].encode())
    if not old.losses:
        assert new.decode(new.encode(text)) == text


def test_an_extended_tokenizer_is_saved_and_loaded_and_extended_again(kind, tmp_path):
    old, words = kind
    new = extend(old, words)
    new.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded == new and loaded.fingerprint == new.fingerprint != old.fingerprint
    again = extend(extend(old, words[:1]), words[1:])
    assert again.encode(TEXT + words[0]) == new.encode(TEXT + words[0])
    with pytest.raises(UserError, match=r"is a token already: leave it out$"):
        extend(new, words)


def test_a_byte_level_token_is_found_as_a_piece_of_its_split():
    old = bpe.train([TEXT], Recipe(320))
    new = extend(old, [" them"])
    assert new.encode("a them")[1:] == [320]
    assert new.encode("a themes")[1:] == [320, *old.encode("es")], "two neighbours make one"
    assert 320 not in new.encode("a [them]")


def test_a_token_of_the_hub_is_found_within_words():
    pytest.importorskip("tokenizers")
    old = word.train([TEXT], Recipe(40))
    new = extend(old, [" val"])
    unknown = old.encode("ues")
    assert new.encode("the values") == [*old.encode("the"), old.vocab_size, *unknown]


def test_the_files_for_the_hub_give_the_same_ids():
    library = pytest.importorskip("tokenizers")
    new = extend(bpe.train([TEXT], Recipe(320)), USUAL)
    files = hub_files(new, chat=True, context_tokens=64)
    backend = library.Tokenizer.from_str(files["tokenizer.json"])
    for text in (TEXT, "a catnip, größer themes"):
        assert backend.encode(text).ids == [new.bos, *new.encode(text)]
    assert backend.encode("<|end|>").ids == [new.bos, new.end]


BPE = BytePairTokenizer({bytes([i]): i for i in range(256)} | {b"th": 256})
LOWER = BytePairTokenizer(BPE.ranks, normalization="lower")


@pytest.mark.parametrize("tokenizer, tokens, line, rest", [
    (BPE, [], "the new tokens: are none", ""), (BPE, ["ab", ""], "the token '': is empty", ""),
    (BPE, ["ab", "cd", "ab"], "the token 'ab': is named twice: leave it out", ""),
    (BPE, ["<|end|>"], "the token '<|end|>': is a special token", ""),
    (BPE, ["ab", "th"], "the token 'th': is a token already", ""),
    (BPE, ["New York"], "the token 'New York': would never be found: ", "['N', 'e', 'w', ' ', "),
    (LOWER, ["Hello"], "the token 'Hello': would never be found: texts are normalised or split ",
     "['h', 'e', 'l', 'l', 'o']")],
    ids=["none", "empty", "twice", "special", "known", "split", "normalised"])
def test_what_cannot_be_added_is_refused(tokenizer, tokens, line, rest):
    with pytest.raises(UserError) as raised:
        extend(tokenizer, tokens)
    assert str(raised.value).startswith(line) and rest in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("token, line", [
    ("naïf", "the token 'naïf': would be decoded as 'na\ufffdf': leave it out, or begin it with a"),
    ("\u0120cat", "the token '\u0120cat': is how the vocabulary writes one that it has: leave it"),
    ("<|im_start|>", "the token '<|im_start|>': is a special token")],
    ids=["decoded", "named", "special"])
def test_what_the_library_would_take_for_something_else_is_refused(tmp_path, token, line):
    pytest.importorskip("tokenizers")
    tokenizer = load_tokenizer(write_hub(tmp_path, byte_level(), tokenizer_config=CONFIG))
    with pytest.raises(UserError) as raised:
        extend(tokenizer, [" catnip", token])
    assert str(raised.value).startswith(line)
    assert extend(tokenizer, [" naïf"]).decode([tokenizer.vocab_size]) == " naïf"


def test_a_vocabulary_with_gaps_is_refused_where_the_library_would_fill_them(tmp_path):
    pytest.importorskip("tokenizers")
    described = json.loads(word.train([TEXT], Recipe(40)).text)
    described["model"]["vocab"] |= {token["content"]: token["id"] + 7
                                    for token in described["added_tokens"]}
    for token in described["added_tokens"]:
        token["id"] += 7
    write_hub(tmp_path, json.dumps(described), tokenizer_config={"eos_token": "<|end|>"})
    with pytest.raises(UserError, match=r"the library 40, as .* an id has no token"):
        extend(load_tokenizer(tmp_path), [" catnip"])
