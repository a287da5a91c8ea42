"""Kinds of tokenizers that are trained here: what each keeps, and that trainers agree."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import regex
import rustbpe
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.tokenizer import VOCABULARIES, get_config
from core.artifacts import ROOT
from core.errors import UserError
from data import train_tokenizer
from data.chat import Conversation, Message, render
from data.documents import Document, write_documents
from data.tokenizers import bpe, byte, character, plain_bpe, unigram, word, wordpiece
from data.tokenizers.export import hub_files
from data.tokenizers.load import load_tokenizer
from data.tokenizers.marks import MARK, mark, without_look_ahead
from data.tokenizers.merging import learn_merges, spell_tokens
from data.tokenizers.patterns import NORMALIZATIONS, SPLITS
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import SPECIAL_TOKENS, UNKNOWN
from data.tokens.encode import encode_document
from data.tokens.pieces import count_pieces

# Daft leaves the pipes of its worker processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

TEXT = """def mean(values, axis=None):
    '''Returns the mean of the values; it's 12.5 for [10, 15].'''
    return sum(values) / len(values)

The function returns an array, and the array's values aren't changed. Größe, naïve, 日本語, 🌲🌲.
""" * 5
SIZES = {bpe: 330, unigram: 500, wordpiece: 140, word: 120, character: 120, byte: 261}
LOSSLESS = (bpe, unigram, byte)


@pytest.fixture(scope="module", params=SIZES, ids=lambda kind: kind.__name__.rpartition(".")[2])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind):
    return kind.train([TEXT], Recipe(SIZES[kind]))


def make_document(name, text):
    return Document(id=name, text=text, source="test://", domain="pages")


# Trainers of BPE ----------------------------------------------------------------------------------

def count(text, pattern=SPLITS["heartwood"]):
    return {piece.encode(): n for piece, n in Counter(regex.findall(pattern, text)).items()}


@pytest.mark.parametrize("split", SPLITS)
def test_merges_are_those_of_rustbpe_and_of_the_plain_trainer(split):
    merges = learn_merges(count(TEXT, SPLITS[split]), 80)
    assert merges == plain_bpe.train(TEXT, 80, SPLITS[split])
    peer = rustbpe.Tokenizer()
    peer.train_from_iterator(iter([TEXT]), 336, pattern=SPLITS[split])
    assert spell_tokens(merges) == [bytes(token) for token, _ in peer.get_mergeable_ranks()]


@settings(max_examples=60)
@given(text=st.text("ab ", max_size=60))
def test_ties_and_overlaps_are_settled_as_by_the_plain_trainer(text):
    assert learn_merges(count(text), 20) == plain_bpe.train(text, 20, SPLITS["heartwood"])


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@settings(max_examples=150)
@given(text=st.one_of(st.text("ab1 !'/\t\n\r\xa0\u2028\u3000日\u0301", max_size=24),
                      st.text(st.characters(exclude_characters=MARK), max_size=24)))
def test_marked_texts_have_the_same_pieces_without_look_ahead(split, text):
    fast = without_look_ahead(split)
    assert "(?!" not in fast
    assert regex.findall(fast, mark(text, split)) == regex.findall(split, text)


@pytest.mark.parametrize("text", ["a  b", "a\uffffb  \uffff c \n d", "\ud800  x", "  ", ""])
def test_a_text_with_the_mark_has_the_ids_of_tiktoken(text):
    tokenizer = bpe.train([TEXT], Recipe(300 + len(SPECIAL_TOKENS)))
    plain = tiktoken.Encoding("plain", pat_str=tokenizer.pattern, special_tokens={},
                              mergeable_ranks=tokenizer.ranks)
    ids = plain.encode_ordinary(text)
    assert tokenizer.encode(text) == ids == [*tokenizer.encode_array(text)]
    assert tokenizer.encode_batch(["a  a", text, "b"])[1] == ids
    assert tokenizer.decode(ids) == text.replace("\ud800", "\ufffd")


def test_the_plain_encoder_gives_the_ids_of_tiktoken():
    merges = plain_bpe.train(TEXT, 60, SPLITS["heartwood"])
    tokenizer = bpe.make_tokenizer(spell_tokens(merges), Recipe(316 + len(SPECIAL_TOKENS)))
    for text in (TEXT[:300], "naïve means 日本 1234", "aaaa  aaa"):
        assert tokenizer.encode(text) == plain_bpe.encode(text, merges, SPLITS["heartwood"])


def test_merges_are_those_of_the_library_where_counts_differ():
    """Ties are broken by ids, which the library numbers by its own alphabet."""
    library = pytest.importorskip("tokenizers")
    rng = random.Random(0)
    text = " ".join(rng.choices([f"{a}{b}" for a in "bdkmt" for b in "aeiou"],
                                [1.3**i for i in range(25)], k=4000))
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.Sequence([
        library.pre_tokenizers.Split(library.Regex(SPLITS["heartwood"]), "isolated"),
        library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.train_from_iterator([text], library.trainers.BpeTrainer(
        vocab_size=256 + 30, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    theirs = [a + b for a, b in json.loads(backend.to_str())["model"]["merges"]]
    ours = [token.decode().replace(" ", "Ġ") for token in
            spell_tokens(learn_merges(count(text), 30))[256:]]
    assert ours[:20] == theirs[:20] and {*ours} == {*theirs}


def test_counts_of_units_give_the_tokenizer_of_the_whole_text(tmp_path, monkeypatch):
    documents = [make_document(str(i), TEXT[i * 7:i * 7 + 400]) for i in range(40)]
    write_documents(tmp_path / "documents" / "part-00000.parquet", documents[:25])
    write_documents(tmp_path / "documents" / "part-00001.parquet", documents[25:])
    whole = bpe.train([document.text for document in documents], Recipe(330, split="threes"))
    section = get_config("bpe").tokenizer
    section.update(vocab_size=330, split="threes")
    monkeypatch.setattr(train_tokenizer, "STREAMED_BYTES", 0)
    counted = train_tokenizer.train(section, tmp_path / "documents", tmp_path / "counts")
    assert counted == whole
    pieces = count_pieces(tmp_path / "documents", Recipe(330, split="threes"), 10**9,
                          tmp_path / "others", unit_bytes=3000, num_workers=1)
    assert len([*(tmp_path / "others").glob("*.parquet")]) > 3
    assert pieces == sum((Counter(count(document.text, SPLITS["threes"]))
                          for document in documents), Counter())


# What each kind keeps -----------------------------------------------------------------------------

def test_known_text_is_decoded_unchanged(tokenizer, kind):
    decoded = tokenizer.decode(tokenizer.encode(TEXT))
    assert decoded == TEXT if kind is not wordpiece else decoded.split() != TEXT.split()
    assert (not tokenizer.losses) == (kind in (bpe, byte))


@given(text=st.text())
def test_text_without_losses_is_decoded_unchanged(tokenizer, kind, text):
    if kind in LOSSLESS:
        expected = text.replace("\u2581", " ") if kind is unigram else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_what_is_not_in_the_vocabulary_is_unknown(tokenizer, kind):
    ids = tokenizer.encode("日 Ж")
    if kind in LOSSLESS:
        assert UNKNOWN not in tokenizer.decode(ids)
    else:
        assert tokenizer.special(UNKNOWN) in ids


@given(text=st.lists(st.sampled_from([*SPECIAL_TOKENS, UNKNOWN, "<|", "|>", "end", " "]))
       .map("".join))
def test_names_of_special_tokens_in_a_text_are_text(tokenizer, text):
    never = {tokenizer.special(name) for name in SPECIAL_TOKENS}
    assert never.isdisjoint(tokenizer.encode(text))
    assert all(never.isdisjoint(ids) for ids in tokenizer.encode_batch([text]))


def test_a_vocabulary_has_the_ids_that_were_asked_for(tokenizer, kind):
    assert tokenizer.vocab_size <= SIZES[kind]
    if kind in (bpe, byte):
        assert tokenizer.vocab_size == SIZES[kind]
    ids = [tokenizer.special(name) for name in tokenizer.specials]
    assert ids == list(range(tokenizer.vocab_size - len(ids), tokenizer.vocab_size))
    assert [*tokenizer.turn_tokens] == ["system", "user", "assistant"]
    assert tokenizer.stops == (tokenizer.end, *tokenizer.turn_tokens.values())


def test_bytes_are_those_of_the_text_that_is_kept(tokenizer, kind):
    ids = tokenizer.encode(TEXT)
    assert b"".join(tokenizer.stream(ids)).decode() == tokenizer.decode(ids)
    if kind in LOSSLESS:
        assert tokenizer.token_bytes()[ids].sum() == len(TEXT.encode())


@pytest.mark.parametrize("kind", [unigram, wordpiece], ids=["unigram", "wordpiece"])
def test_every_training_gives_the_same_tokenizer(kind):
    """Also where counts are equal, and characters rare: the library finds words in any order."""
    words = " ".join(f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "nrtlm")
    first, *others = (kind.train([words, "äöüßéèêñåø"], Recipe(400)).text for _ in range(4))
    assert others == [first] * 3


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded == tokenizer and loaded.fingerprint == tokenizer.fingerprint
    document = encode_document(loaded, "the mean")
    assert [document[0], document[-1]] == [tokenizer.bos, tokenizer.end]


def test_exported_files_give_the_same_ids(tokenizer):
    library = pytest.importorskip("tokenizers")
    files = hub_files(tokenizer, chat=True, context_tokens=64)
    backend = library.Tokenizer.from_str(files["tokenizer.json"])
    for text in (TEXT, "日 Ж \n\n  x", "it's 12"):
        assert backend.encode(text).ids == [tokenizer.bos, *tokenizer.encode(text)]
    assert "<|assistant|>" in files["chat_template.jinja"]


@pytest.mark.parametrize("split", SPLITS)
def test_an_exported_split_cuts_as_ours(split):
    """Two digits in a row are merged first, wherever a split leaves them together."""
    library = pytest.importorskip("tokenizers")
    tokenizer = bpe.train([TEXT, "23 " * 99], Recipe(330, split=split))
    backend = library.Tokenizer.from_str(
        hub_files(tokenizer, chat=True, context_tokens=64)["tokenizer.json"])
    for text in ("0123 123456 x0123", "日本語Привет \n\n  x \n", "it's HelloWorld'S", TEXT):
        assert backend.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


# Recipes ------------------------------------------------------------------------------------------

TALKS = [
    [("user", "What is a mean?"), ("assistant", "The sum over the number.")],
    [("system", "Be brief."), ("user", "Who's there?"), ("assistant", "It's me.")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("user", ""), ("assistant", "the function")],
    [("user", "the array"), ("assistant", "")],
    [("system", ""), ("user", "values"), ("assistant", "len(values)")],
    [("user", " spaces  around "), ("assistant", "\n\n  lines\n")],
    [("user", "Größe, 日本語 🌲"), ("assistant", "naïve 12.5")],
    [("system", "x"), *[("user", "more"), ("assistant", "less")] * 4],
    [("user", "say <|assistant_start|> and <|end|>"), ("assistant", "no <|bos|>")]]


@pytest.mark.full
@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
def test_conversations_are_rendered_as_by_transformers(tokenizer, kind, talk, tmp_path):
    transformers = pytest.importorskip("transformers")
    for file, text in hub_files(tokenizer, chat=True, context_tokens=64).items():
        (tmp_path / file).write_text(text)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": role, "content": content} for role, content in talk]
    tokens, _ = render(Conversation(tuple(Message(*message) for message in talk)), tokenizer)
    if "<|" not in str(talk):      # they read the name of a special token as the token
        assert theirs.apply_chat_template(messages, return_dict=False) == tokens
    if kind in LOSSLESS:
        assert theirs.apply_chat_template(messages, tokenize=False) == tokenizer.decode(tokens)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_text_is_normalised_before_it_is_encoded(normalization, kind):
    tokenizer = kind.train([TEXT], Recipe(SIZES[kind], normalization=normalization))
    text = "The VALUES aﬃrm e\u0301"
    normal = NORMALIZATIONS[normalization](text)
    assert tokenizer.encode(text) == tokenizer.encode(normal)
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    if kind in LOSSLESS:
        assert tokenizer.decode(tokenizer.encode(text)) == normal


@pytest.mark.parametrize("split, text, pieces", [
    ("heartwood", "a12345", ["a", "1", "2", "3", "4", "5"]),
    ("threes", "a12345", ["a", "123", "45"]),
    ("heartwood", "\n        if", ["\n", "       ", " if"]),
    ("heartwood", "日本語text", ["日本語text"]),
    ("scripts", "日本語text Привет", ["日本語", "text", " Привет"]),
    ("gpt2", "a 12345 it's", ["a", " 12345", " it", "'s"]),
    ("o200k", "HelloWorld", ["Hello", "World"]),
    ("llama3", "12345'S", ["123", "45", "'S"]),
    ("qwen", "123", ["1", "2", "3"])])
def test_splits(split, text, pieces):
    assert regex.findall(SPLITS[split], text) == pieces


@pytest.mark.parametrize("split", SPLITS)
@given(text=st.text())
def test_splits_lose_nothing(split, text):
    assert "".join(regex.findall(SPLITS[split], text)) == text


@pytest.mark.parametrize("train, message", [
    (lambda: Recipe(300, split="gtp2"), r"tokenizer\.split='gtp2': is none of heartwood"),
    (lambda: Recipe(300, normalization="nfd"), r"tokenizer\.normalization='nfd': is none of none"),
    (lambda: byte.train([], Recipe(260)), r"vocab_size=260: .*--config.tokenizer.vocab_size=261"),
    (lambda: unigram.train([TEXT], Recipe(200)), r"vocab_size=200: leaves 194 ids"),
    (lambda: word.train([TEXT], Recipe(6)), r"vocab_size=6: leaves 0 ids"),
    (lambda: bpe.train([TEXT], Recipe(100)), r"vocab_size=100: must be at least 261")])
def test_recipes_that_cannot_be_followed_are_refused(train, message):
    with pytest.raises(UserError, match=message):
        train()


@pytest.mark.parametrize("kind_name", VOCABULARIES)
def test_the_stage_trains_every_kind(kind_name, tmp_path):
    folder = tmp_path / "corpus" / "documents"
    write_documents(folder / "part-00000.parquet",
                    [make_document("a", TEXT)])
    config = get_config(kind_name)
    if kind_name != "byte":
        config.tokenizer.vocab_size = {"bpe": 330, "unigram": 500}.get(kind_name, 200)
    metrics = train_tokenizer.build(config, {"corpus": tmp_path / "corpus"}, tmp_path / "made")
    assert metrics["fingerprint"] == load_tokenizer(tmp_path / "made").fingerprint
    assert metrics["bytes_per_token"] >= 1 and metrics["measured_bytes"] == len(TEXT.encode())


def test_a_text_with_too_few_tokens_is_said(capsys):
    assert character.train(["abc"], Recipe(100)).vocab_size == 9
    assert "the text yields only 9 of 100 tokens" in capsys.readouterr().err


def test_an_unknown_kind_is_refused(tmp_path):
    config = get_config("bpe")
    config.tokenizer.kind = "sentencepiece"
    with pytest.raises(UserError, match=r"tokenizer\.kind='sentencepiece': is none of bpe"):
        train_tokenizer.build(config, {"corpus": Path("none")}, tmp_path)


def test_the_guide_shows_what_its_code_prints(capsys):
    _, code, _, printed, *_ = re.split(r"```(?:python|text)?\n",
                                       (ROOT / "docs/tokenizers.md").read_text())
    exec(code, {})
    assert capsys.readouterr().out == printed
