"""Models of SentencePiece: ids are its own, what it is not known to mean is refused."""

import gzip
import json
import unicodedata
from itertools import islice

import piece_models as pieces
import pytest
import tokenizer_texts as texts
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_models import BPE, BYTES, CONTROL, NORMAL, SPECIALS, UNIGRAM, PieceModel, field

from core.errors import UserError
from data.tokenizers import sentencepiece
from data.tokenizers.load import load_tokenizer
from tests import hub_tokenizers as hub

pytest.importorskip("tokenizers")

LETTERS = [(letter, -100.0 - place, NORMAL) for place, letter in enumerate("▁abct<>s/0x41.日")]
# "▁ca" is made of two pairs, and "ab" takes the "b" from "bc".
MERGES = [("ab", -1.0, NORMAL), ("bc", -2.0, NORMAL), ("▁c", -3.0, NORMAL), ("ca", -4.0, NORMAL),
          ("▁ca", -5.0, NORMAL), ("▁cat", -6.0, NORMAL), ("aa", -7.0, NORMAL),
          ("▁▁", -8.0, NORMAL), ("abab", -9.0, NORMAL), ("▁▁▁▁", -10.0, NORMAL)]
SCORED = [("▁cat", -2.5, NORMAL), ("▁c", -1.25, NORMAL), ("at", -1.75, NORMAL),
          ("ab", -2.0, NORMAL), ("abc", -3.5, NORMAL), ("bcab", -4.0, NORMAL),
          ("▁▁", -3.0, NORMAL), *((letter, -3.25 - place / 8, NORMAL)
                                  for place, (letter, *_) in enumerate(LETTERS))]
SYMBOLS = [("<m>", 0.0, pieces.USER_DEFINED), ("a.b", 0.0, pieces.USER_DEFINED)]
MODELS = {
    "merges and bytes": PieceModel([*SPECIALS, *BYTES, *MERGES, *LETTERS], has_bytes=True,
                                   trims=False),
    "merges": PieceModel([*SPECIALS, *MERGES, *LETTERS]),
    "merges, no space in front": PieceModel([*SPECIALS, *MERGES, *LETTERS], has_prefix=False),
    "merges and symbols": PieceModel([*SPECIALS, *SYMBOLS, *BYTES, *MERGES, *LETTERS],
                                     has_bytes=True),
    "unigram": PieceModel([*SPECIALS, *SCORED], UNIGRAM),
    "unigram and bytes": PieceModel([*SPECIALS, *BYTES, *SCORED], UNIGRAM, has_bytes=True,
                                    trims=False),
    "unigram and symbols": PieceModel([
        *SPECIALS, *SYMBOLS, ("bt", 0.0, pieces.USER_DEFINED), ("abt", -3.3125, NORMAL),
        ("btc", -5.0, NORMAL), *SCORED], UNIGRAM)}
TEXTS = st.lists(st.sampled_from([
    *"abct ▁.日é\n\0", "cat", " cat", "  ", "<m>", "a.b", "abab", "<s>", "</s>", "<unk>",
    "<0x41>"]), max_size=12).map("".join) | st.text(max_size=20)


def _write(folder, model, **beside):
    """A folder with the model alone, and further JSON files by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = model if isinstance(model, bytes) else pieces.write_model(model)
    (folder / "tokenizer.model").write_bytes(contents)
    for name, described in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    return {name: load_tokenizer(_write(folder / name, model)) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=50)
@given(text=TEXTS)
def test_ids_are_those_of_the_plain_encoder(loaded, name, text):
    ids = loaded[name].encode(text)
    assert ids == pieces.encode(MODELS[name], text)
    assert loaded[name].encode_batch([text]) == [ids]


@pytest.mark.parametrize("name, text, expected", [
    ("merges", "cat abc", ["▁cat", "▁", "ab", "c"]),
    ("merges", "  cat  a ", ["▁cat", "▁", "a"]),
    ("merges", "aaa 日éüa", ["▁", "aa", "a", "▁", "日", "<unk>", "a"]),
    ("merges", "", []), ("merges", "  ", []), ("merges", "▁", []),
    ("merges, no space in front", "cat", ["ca", "t"]),
    ("merges and bytes", " é a", ["▁▁", "<0xC3>", "<0xA9>", "▁", "a"]),
    ("merges and bytes", "<0x41></s>", ["▁", *"<0x41></s>"]),
    ("merges and symbols", "a<m>ab", ["▁", "a", "<m>", "ab"]),
    ("merges and symbols", "aa.bab", ["▁", "a", "a.b", "ab"]),
    ("unigram", "cat", ["▁cat"]),                           # -2.5, and in two pieces -3
    ("unigram", "abcab", ["▁", "abc", "ab"]),               # -5.5, and a + bcab -7.375
    ("unigram and bytes", "é", ["▁", "<0xC3>", "<0xA9>"]),
    ("unigram and symbols", "ca.b", ["▁c", "a.b"]),
    ("unigram and symbols", "abt", ["▁", "a", "bt"]),       # -3.375 + 0.1
    ("unigram and symbols", "btc", ["▁", "bt", "c"])])      # 0.1 - 3.625
def test_ids_of_some_texts(loaded, name, text, expected):
    ids = {piece: i for i, (piece, *_) in enumerate(MODELS[name].pieces)}
    assert loaded[name].encode(text) == [ids[piece] for piece in expected]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=30)
@given(text=TEXTS)
def test_text_is_decoded_unchanged_where_the_model_keeps_it(loaded, name, text):
    """Lost are the character U+2581, unknown text without bytes, and outer and double spaces."""
    tokenizer, model = loaded[name], MODELS[name]
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    assert decoded == b"".join(tokenizer.stream(ids)).decode()
    if model.has_bytes and not model.trims:
        assert decoded == text.replace("▁", " ")
    elif model.has_bytes and "▁" not in text:
        assert decoded == " ".join(part for part in text.split(" ") if part)
    assert "the character U+2581, which becomes a space" in tokenizer.losses
    unknown = "what the vocabulary cannot spell, which becomes the unknown token"
    assert (unknown in tokenizer.losses) == (not model.has_bytes)


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens_are_those_of_the_model(loaded, name):
    tokenizer = loaded[name]
    assert tokenizer.specials == ("<unk>", "<s>", "</s>")
    assert (tokenizer.bos, tokenizer.end, tokenizer.stops) == (1, 2, (2,))
    assert tokenizer.adds_bos == (MODELS[name].kind == BPE)
    assert tokenizer.vocab_size == len(MODELS[name].pieces)
    assert tokenizer.named == {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def test_files_beside_a_model_name_its_tokens_and_template(tmp_path):
    model = MODELS["merges"]._replace(pieces=[
        *SPECIALS, ("<end>", 0.0, CONTROL), *MERGES, *LETTERS])
    tokenizer = load_tokenizer(_write(
        tmp_path, model, generation_config={"eos_token_id": [2, 3]}, tokenizer_config={
            "eos_token": "<end>", "add_bos_token": False, "chat_template": hub.BRACKETS,
            "added_tokens_decoder": {"1": {"content": "<s>"}}}))
    assert (tokenizer.end, tokenizer.stops, tokenizer.adds_bos) == (3, (3, 2), False)
    assert tokenizer.chat_template == hub.BRACKETS
    for number, beside in enumerate([
            {"added_tokens": {"<pad>": 99}}, {"added_tokens": {"<s>": 0}},
            {"tokenizer_config": {"added_tokens_decoder": {"0": {"content": "<s>"}}}},
            {"special_tokens_map": {"additional_special_tokens": ["<extra_id_0>"]}}]):
        with pytest.raises(UserError, match="names 1 tokens that its model lacks or gives other"):
            load_tokenizer(_write(tmp_path / str(number), model, **beside))


def test_fields_name_special_tokens_by_their_ids(tmp_path):
    """As models write these fields: by number, and -1 in 32 or 64 bits for none."""
    contents = pieces.write_model(MODELS["merges"], trainer=b"".join([
        field(41, 2), field(42, 1), field(40, 0), field(43, -1)]))
    tokenizer = load_tokenizer(_write(tmp_path, contents))
    assert (tokenizer.bos, tokenizer.end) == (2, 1)
    assert load_tokenizer(_write(tmp_path, pieces.write_model(
        MODELS["merges"], trainer=field(41, (1 << 32) - 1)))).named == {
            "unk_token": "<unk>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_tokenizer_is_loaded_unchanged(loaded, name, tmp_path):
    loaded[name].save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again == loaded[name] and again.fingerprint == loaded[name].fingerprint
    text = "cat <m>a.b  é <s>"
    assert again.encode(text) == pieces.encode(MODELS[name], text)


def test_a_model_is_told_by_its_contents(tmp_path):
    model = MODELS["unigram"]
    expected = load_tokenizer(_write(tmp_path, model))
    for name in ("spiece.model", "sentencepiece.bpe.model", "pieces"):
        (tmp_path / name).write_bytes(pieces.write_model(model))
        assert load_tokenizer(tmp_path / name) == expected
    (tmp_path / "tokenizer.json").write_text("\n" + hub.unigram())
    assert load_tokenizer(tmp_path) != expected, "of a folder, tokenizer.json comes first"


def test_a_model_that_is_cut_anywhere_is_refused(tmp_path):
    contents = pieces.write_model(PieceModel([*SPECIALS, *LETTERS[:3]]))
    assert load_tokenizer(_write(tmp_path, contents))
    for size in range(len(contents)):
        with pytest.raises(UserError, match="is no model of SentencePiece") as raised:
            load_tokenizer(_write(tmp_path, contents[:size]))
        assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def _model(*others, **changes):
    return pieces.write_model(PieceModel([*SPECIALS, *LETTERS, *others]), **changes)


REFUSED = {
    "words": (_model(trainer=field(3, 3)), "has the model type word, which is not known here"),
    "characters": (_model(trainer=field(3, 4)), "has the model type char, which is not known"),
    "another type": (_model(trainer=field(3, 77)), "has the model type 77, which is not known"),
    "spaces behind": (_model(trainer=field(24, 1)), r"spaces behind words \(treat_whitespace_as"),
    "plain spaces": (_model(normaliser=field(5, 0)), r"spaces as they are \(escape_whitespaces"),
    "unused pieces": (_model(("cab", -9.0, pieces.UNUSED)), "has pieces that are unused"),
    "a piece twice": (_model(("a", -9.0, NORMAL)), "18 of 19 pieces differ, and 1 are for unknown"),
    "unknown twice": (_model(("<x>", 0.0, pieces.UNKNOWN)), "and 2 are for unknown text"),
    "no unknown": (pieces.write_model(PieceModel(LETTERS)), "and 0 are for unknown text"),
    "few bytes": (pieces.write_model(PieceModel([*SPECIALS, *BYTES[1:], *LETTERS],
                                                has_bytes=True)), "has 255 pieces for bytes"),
    "no byte": (_model(("<0xG1>", 0.0, pieces.OF_BYTE)), "it has 1 pieces for bytes, expected 256"),
    "an empty piece": (_model(("", 0.0, NORMAL)), "the piece '' has the type 1"),
    "type of a piece": (_model(("cab", 0.0, 7)), "the piece 'cab' has the type 7"),
    "no score": (_model(("cab", float("nan"), NORMAL)), "'cab' has the type 1 and the score nan"),
    "infinite": (_model(("cab", float("inf"), NORMAL)), "'cab' has the type 1 and the score inf"),
    "no UTF-8": (_model((b"\xff", 0.0, NORMAL)), "codec can't decode byte 0xff"),
    "no text": (field(1, field(1, 7)), "a whole number stands in place of bytes"),
    "no number": (_model(trainer=field(3, "bpe")), "bytes stand in place of a whole number"),
    "no float": (field(1, field(1, "a") + field(2, "12")), "a number has 2 bytes, expected 4"),
    "no table": (_model(normaliser=field(2, b"\0")), "normaliser: is no table of"),
    "table beyond": (_model(normaliser=field(2, b"\xff" * 9)), "normaliser: is no table"),
    "a number as table": (_model(normaliser=field(2, 1 << 40)), "a whole number stands in place"),
    "table of nothing": (_model(("<m>", 0.0, pieces.USER_DEFINED), normaliser=field(2, bytes(4))),
                         "its library fails on a text"),
    "field 0": (b"\x02\x00", "a field has the number 0 at byte 1"),
    "group": (b"\x0b", "field 1 is written in the unknown way 3"),
    "size": (b"\n\x7f\x01", "field 1 has 127 bytes, and 1 are left"),
    "endless": (b"\n" + b"\xff" * 20, "a whole number at byte 1 does not end"),
    "no protobuf": (bytes(range(256)), "a field has the number 0 at byte 1"),
    "text": (b"Entry not found", "is no model of SentencePiece"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_model_is_refused_in_one_line(case, tmp_path):
    contents, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as raised:
        load_tokenizer(_write(tmp_path, contents))
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500 and str(tmp_path) in message


def test_a_file_that_is_missing_or_too_long_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"missing\.model: no such file"):
        load_tokenizer(tmp_path / "missing.model")
    folder = _write(tmp_path, MODELS["merges"])
    monkeypatch.setattr(sentencepiece, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="it has more than 100 bytes"):
        load_tokenizer(folder)


@settings(max_examples=50)
@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3),
       byte=st.integers(0, 255))
def test_changed_bytes_are_refused_or_read(places, byte, tmp_path_factory):
    contents = bytearray(_model())
    for place in places:
        contents[int(place * len(contents))] = byte
    try:
        found = load_tokenizer(_write(tmp_path_factory.mktemp("changed"), bytes(contents)))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert max(found.encode("cat <s> é")) < found.vocab_size


# Real vocabularies --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    """The vocabulary of Llama 2, as its file of the hub and as a model of SentencePiece.

    Its merges in the hub's file show the scores: they fall with the ids of the pieces, and runs of
    spaces have the lowest.
    """
    packed, folder = texts.datasets() / "tokenizers" / "llama2", tmp_path_factory.mktemp("llama2")
    text = gzip.decompress((packed / "tokenizer.json.gz").read_bytes()).decode()
    vocabulary = json.loads(text)["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [*SPECIALS, *BYTES]
    assert tokens[:259] == [piece for piece, *_ in kinds]
    scores = [-1e9 if {*piece} == {"▁"} and piece != "▁" else -float(place)
              for place, piece in enumerate(tokens[259:])]
    model = PieceModel([*kinds, *((piece, score, NORMAL)
                                  for piece, score in zip(tokens[259:], scores))],
                       has_bytes=True, trims=False)
    config = json.loads(gzip.decompress((packed / "tokenizer_config.json.gz").read_bytes()))
    return (hub.write_hub(folder / "hub", text, tokenizer_config=config),
            _write(folder / "pieces", model, tokenizer_config=config))


@pytest.mark.full
def test_llama_2_is_its_file_of_the_hub(llama2):
    theirs, ours = map(load_tokenizer, llama2)
    assert ours.specials == theirs.specials and ours.vocab_size == theirs.vocab_size == 32000
    assert (ours.bos, ours.stops, ours.adds_bos) == (theirs.bos, theirs.stops, True) == \
        (1, (2,), True)
    merges = [[pair.split(" ") if isinstance(pair, str) else pair for pair in
               json.loads(tokenizer.text)["model"]["merges"]] for tokenizer in (theirs, ours)]
    assert {*map(tuple, merges[0])} == {*map(tuple, merges[1])}
    made = [["".join(pair) for pair in pairs if {*"".join(pair)} != {"▁"}] for pairs in merges]
    assert made[0] == made[1], "the order of merges follows from the scores"
    for text in (*texts.TRICKY, *texts.noise(4), *texts.every_code_point(),
                 *islice(texts.real_texts(), 0, None, 16)):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == text.replace("▁", " ")


@pytest.mark.full
def test_ids_are_those_of_the_library_of_sentencepiece(llama2, tmp_path):
    library = pytest.importorskip("sentencepiece")
    files = [_write(tmp_path / name, model) / "tokenizer.model" for name, model in MODELS.items()]
    for file in (*files, llama2[1] / "tokenizer.model"):
        theirs, ours = library.SentencePieceProcessor(model_file=str(file)), load_tokenizer(file)
        names = [theirs.id_to_piece(i) for i in range(theirs.get_piece_size())]
        assert ours.vocab_size == len(names)
        for text in (*texts.TRICKY, *texts.noise(3), *names[:1000]):
            assert ours.encode(text) == theirs.encode(text), (file, text)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("normalization", ["identity", "nmt_nfkc"])
def test_trained_models_give_the_ids_of_their_library(kind, normalization, tmp_path):
    """Marks behind replaced characters and nearly equal sums are where they differ: see the module.
    """
    library = pytest.importorskip("sentencepiece")
    samples = [*texts.TRICKY, *islice(texts.real_texts(), 15)]
    lines = [line for text in samples for line in text.splitlines() if line.strip()]
    for has_bytes in (False, True):
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), vocab_size=1000,
            model_type=kind, normalization_rule_name=normalization, byte_fallback=has_bytes,
            user_defined_symbols=["<mask>"], character_coverage=0.98, minloglevel=2)
        theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
        ours = load_tokenizer(tmp_path / "m.model")
        for text in (*samples, "a <mask>b", *texts.noise(2)):
            if normalization != "identity" and any(map(unicodedata.combining, text)):
                continue
            ids, expected = ours.encode(text), theirs.encode(text)
            if kind == "bpe":
                assert ids == expected, text[:80]
            else:
                assert sum(map(theirs.get_score, ids)) == pytest.approx(
                    sum(map(theirs.get_score, expected)), rel=1e-5)
                assert ours.decode(ids) == ours.decode(expected)
