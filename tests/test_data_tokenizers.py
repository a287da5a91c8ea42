"""Tokenizers of other models: text is data, ids are the library's, folders are read unchanged."""

import importlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from data.tokenizers import huggingface
from data.tokenizers.gguf import tokenizer_from_gguf
from data.tokenizers.hub import import_tokenizer
from data.tokenizers.load import load_tokenizer
from tests import hub_tokenizers as hub

pytest.importorskip("tokenizers")

TEXTS = ["the cat is in the cat.", "12 1234 5.6e7", "  two\n\n\n  x\t\ty \n",
         "🌲👩\u200d👧 日本語 naïve", "it's <|im_end|> and </s> [SEP] <s>", "", " ", "a" * 300,
         "\r\nx\u00a0y", "lone \ud800 x"]
CONFIG = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
MAKE = {"byte_level": hub.byte_level, "sentence_piece": hub.sentence_piece,
        "unigram": hub.unigram, "word_piece": hub.word_piece}


@pytest.fixture(scope="module", params=MAKE)
def tokenizer(request, tmp_path_factory):
    """One of each model of the library, from a bare `tokenizer.json`."""
    folder = tmp_path_factory.mktemp(request.param)
    return import_tokenizer(hub.write_hub(folder, MAKE[request.param]()))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    """Byte-level, as SmolLM2: its files name a first token that it never writes."""
    return import_tokenizer(hub.write_hub(
        tmp_path_factory.mktemp("chatml"), hub.byte_level(),
        tokenizer_config={**CONFIG, "chat_template": hub.CHATML}))


def test_ids_are_those_of_the_library(tokenizer):
    from tokenizers import Tokenizer
    library = Tokenizer.from_str(tokenizer.text)
    library.no_truncation()
    library.no_padding()
    for text in TEXTS[:4]:      # without special tokens, which the library finds in text
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(tokenizer.encode(text)) == library.decode(
            library.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    for text in TEXTS:
        assert tokenizer.encode_array(text).tolist() == tokenizer.encode(text)


@given(text=st.lists(st.sampled_from(
    [*hub.SPECIALS, "<s>", "</s>", "<pad>", "[CLS]", "[MASK]", "<", "/s>", " ", "a"])).map("".join))
def test_no_text_becomes_a_special_token(tokenizer, text):
    unknown = {name for name in tokenizer.specials if "unk" in name.lower()}
    forbidden = {tokenizer.special(name) for name in {*tokenizer.specials} - unknown}
    assert not forbidden & {*tokenizer.encode(text)}


@given(text=st.text())
def test_any_text_is_decoded_unchanged_by_a_byte_level_tokenizer(chatml, text):
    ids = chatml.encode(text)
    assert chatml.decode(ids) == text == b"".join(chatml.stream(ids)).decode()
    assert chatml.token_bytes()[ids].sum() == len(text.encode())


def test_streamed_bytes_are_the_text(tokenizer):
    for text in TEXTS[:3]:
        ids = tokenizer.encode(text)
        found = b"".join(tokenizer.stream(ids)).decode()
        if "[CLS]" in tokenizer.specials:       # its decoder also moves full stops to their words
            found = found.replace(" .", ".")
        assert found == tokenizer.decode(ids)


def test_special_tokens_have_no_bytes_and_their_names_as_text(tokenizer):
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (tokenizer.vocab_size,)
    ids = [tokenizer.special(name) for name in tokenizer.specials]
    assert ids == sorted(ids) and not sizes[ids].any()
    assert np.delete(sizes, ids).all()
    assert tokenizer.decode([tokenizer.end]) == tokenizer.end_name


def test_further_rows_of_a_model_stand_for_no_text(chatml):
    beyond = [chatml.vocab_size, chatml.vocab_size + 7]
    ids = chatml.encode("cat")
    assert chatml.decode([*ids, *beyond]) == "cat"
    assert b"".join(chatml.stream([*beyond, *ids])) == b"cat"


def test_the_first_token_of_a_document(tmp_path):
    """It is what the tokenizer writes, else the end of another text; see `data.tokenizers.hub`."""
    cases = [(hub.sentence_piece(), {}, "<s>", "</s>"),
             (hub.word_piece(), {"sep_token": "[SEP]"}, "[CLS]", "[SEP]"),
             (hub.unigram(), {}, "</s>", "</s>"),
             (hub.byte_level(), {}, "<|endoftext|>", "<|endoftext|>"),
             (hub.byte_level(), CONFIG, "<|endoftext|>", "<|im_end|>"),
             (hub.byte_level(), {**CONFIG, "add_bos_token": True}, "<|im_start|>", "<|im_end|>")]
    for number, (text, config, bos, end) in enumerate(cases):
        found = import_tokenizer(hub.write_hub(tmp_path / str(number), text,
                                               tokenizer_config=config))
        assert (found.bos_name, found.end_name) == (bos, end)
        assert found.bos == found.special(bos) and found.stops == (found.end,)


def test_generation_stops_at_all_tokens_that_the_files_name(tmp_path):
    found = import_tokenizer(hub.write_hub(
        tmp_path, hub.byte_level(), special_tokens_map=CONFIG,
        generation_config={"eos_token_id": [0, 2]}))
    assert found.end == 2 and found.stops == (2, 0)
    assert found.named == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    hub.write_hub(tmp_path, hub.byte_level(), generation_config={"eos_token_id": 9999})
    with pytest.raises(UserError, match=r"generation_config.json.*without a token among \[9999\]"):
        import_tokenizer(tmp_path)


def test_a_template_is_a_file_or_a_field(tmp_path):
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    hub.write_hub(tmp_path, hub.byte_level(), tokenizer_config={"chat_template": named})
    assert import_tokenizer(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("of the file\r\n", newline="")
    assert import_tokenizer(tmp_path).chat_template == "of the file\r\n"


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, chatml, tmp_path):
    for number, given_one in enumerate((tokenizer, chatml)):
        folder = tmp_path / f"model{number}" / "tokenizer"
        given_one.save(folder)
        for place in (folder, folder.parent):
            loaded = load_tokenizer(place)
            assert loaded == given_one and loaded.fingerprint == given_one.fingerprint
        assert (folder / "huggingface.json").read_text() == given_one.text, "the hub's own file"
        described = json.loads((folder / "tokenizer.json").read_text())
        assert described["vocab_size"] == given_one.vocab_size


def test_the_fingerprint_is_of_what_decides_the_ids(chatml, tmp_path):
    described = json.loads(chatml.text)
    indented = json.dumps({**described, "truncation": None}, indent=1)
    same = import_tokenizer(hub.write_hub(tmp_path / "a", indented, tokenizer_config=CONFIG))
    assert same.fingerprint == chatml.fingerprint
    described["model"]["merges"] = described["model"]["merges"][:-1]
    hub.write_hub(tmp_path / "b", json.dumps(described), tokenizer_config=CONFIG)
    hub.write_hub(tmp_path / "c", chatml.text)      # other tokens begin and end its documents
    prints = {import_tokenizer(tmp_path / name).fingerprint for name in "bc"}
    assert len(prints | {chatml.fingerprint}) == 3


def _swap_two_merges(folder):
    described = json.loads((folder / "huggingface.json").read_text())
    merges = described["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (folder / "huggingface.json").write_text(json.dumps(described))


@pytest.mark.parametrize("damage, words", [
    (_swap_two_merges, "do not belong together"),
    (lambda folder: (folder / "huggingface.json").unlink(), "is no readable tokenizer"),
    (lambda folder: (folder / "huggingface.json").write_text("{"), "is no tokenizer of the hub"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"kind": "other"}'), "names no kind"),
    (lambda folder: (folder / "tokenizer.json").write_text("[]"), "describes no tokenizer"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"kind": "huggingface"}'), "readable"),
])
def test_a_damaged_folder_is_refused(chatml, tmp_path, damage, words):
    chatml.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        load_tokenizer(tmp_path)
    assert "\n" not in str(raised.value)


def test_files_of_the_hub_that_are_wrong_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        import_tokenizer(tmp_path)
    described = json.loads(hub.byte_level())
    for change, words in [
            ({"model": {**described["model"], "vocab": {"a": 4_000_000_000, "b": 1}, "merges": []}},
             "tokens with ids up to 4000000000"),
            ({"decoder": None}, "none of the decoders"),
            ({"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
             "names no token that ends a text"),
            ({"model": {"type": "Neural"}}, "is no tokenizer of the hub")]:
        hub.write_hub(tmp_path, json.dumps({**described, **change}))
        with pytest.raises(UserError, match=words) as raised:
            import_tokenizer(tmp_path)
        assert "\n" not in str(raised.value)
    hub.write_hub(tmp_path, hub.byte_level(), tokenizer_config={"eos_token": "<|other|>"})
    with pytest.raises(UserError, match=r"lacks the token '<\|other\|>'"):
        import_tokenizer(tmp_path)


def test_a_missing_library_is_named(chatml, monkeypatch):
    def fail(name):
        raise ImportError(name)

    monkeypatch.setattr(huggingface, "import_module", fail)
    with pytest.raises(UserError, match=r"needs the package tokenizers: pip install -e '\.\[hf\]'"):
        huggingface.make_backend(chatml.text)
    assert importlib.import_module("tokenizers")


def test_a_gguf_file_describes_the_same_tokenizer(chatml):
    found = tokenizer_from_gguf(hub.gguf_metadata(chatml.text))
    assert (found.bos, found.end, found.stops) == (chatml.bos, chatml.end, chatml.stops)
    assert found.named == chatml.named and found.chat_template == chatml.chat_template
    assert found.specials == chatml.specials and found.vocab_size == chatml.vocab_size
    for text in TEXTS:
        assert found.encode(text) == chatml.encode(text)
    digits = tokenizer_from_gguf(hub.gguf_metadata(chatml.text, pre="smollm"))
    assert [digits.decode([i]) for i in digits.encode("a 12.5")] == ["a", " ", "1", "2", ".", "5"]
    stops = tokenizer_from_gguf(hub.gguf_metadata(chatml.text, eot_token_id=0)).stops
    assert stops == (2, 0)
    assert tokenizer_from_gguf(hub.gguf_metadata(chatml.text, add_bos_token=True)).bos == 1


def test_a_gguf_file_is_a_tokenizer(chatml, tmp_path):
    metadata = hub.gguf_metadata(chatml.text)
    file, expected = hub.write_gguf(tmp_path / "x.gguf", metadata), tokenizer_from_gguf(metadata)
    assert load_tokenizer(file) == expected
    file.with_name("renamed").write_bytes(file.read_bytes())
    assert load_tokenizer(tmp_path / "renamed") == expected
    load_tokenizer(file).save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved") == expected
    contents = file.read_bytes()
    for size in range(4, len(contents), 101):
        file.write_bytes(contents[:size])
        with pytest.raises(UserError, match=r"needs .* bytes, and .* left") as raised:
            load_tokenizer(file)
        assert "\n" not in str(raised.value) and str(file) in str(raised.value)
    hub.write_gguf(file, {"general.architecture": "llama"})
    with pytest.raises(UserError, match=r"x\.gguf: tokenizer\.ggml\.model: is None, which is none"):
        load_tokenizer(file)
    with pytest.raises(UserError, match=r"missing\.gguf: no such file"):
        load_tokenizer(tmp_path / "missing.gguf")


def test_a_gguf_file_of_sentencepiece_merges_by_scores(tmp_path):
    text = hub.sentence_piece()
    expected = import_tokenizer(hub.write_hub(tmp_path, text))
    tokens = sorted(json.loads(text)["model"]["vocab"], key=json.loads(text)["model"]["vocab"].get)
    merged = ["▁t", "▁th", "▁the", "▁c", "▁ca", "▁cat", "in", "▁["]
    found = tokenizer_from_gguf({
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(merged.index(t)) if t in merged else -99.0
                                  for t in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2})
    assert (found.bos, found.end) == (1, 2), "llama.cpp puts a first token before such a text"
    for text in TEXTS:
        assert found.encode(text) == expected.encode(text)
        assert found.decode(found.encode(text)) == expected.decode(expected.encode(text))


@pytest.mark.parametrize("changes, words", [
    ({"model": "rwkv"}, "ggml.model: is 'rwkv', which is none of gpt2, llama"),
    ({"pre": "unheard-of"}, "ggml.pre: is 'unheard-of', which is none of gpt-2"),
    ({"tokens": []}, "ggml.tokens: is no list of texts"),
    ({"tokens": ["a", "a"]}, "ggml.tokens: names a token twice"),
    ({"token_type": [1]}, "ggml.token_type: does not hold one value for each of the 330 tokens"),
    ({"token_type": 1}, "ggml.token_type: does not hold one value for each of the 330 tokens"),
    ({"model": ["gpt2"]}, r"ggml.model: is \['gpt2'\], which is none of"),
    ({"pre": 5}, "ggml.pre: is 5, and no text"),
    ({"eot_token_id": "0"}, "ggml.eot_token_id: is '0', and there are 330 tokens"),
    ({"merges": ["a b c"]}, "ggml.merges: holds one that is no pair"),
    ({"merges": ["a 日"]}, "do not fit together"),
    ({"eos_token_id": 330}, "ggml.eos_token_id: is 330, and there are 330 tokens"),
    ({"model": "llama", "scores": [0.0]}, "ggml.scores: does not hold one number per token"),
    ({"model": "llama", "scores": [float("nan")] * 330}, "ggml.scores: does not hold one number"),
    ({"model": "llama", "scores": ["0"] * 330}, "ggml.scores: does not hold one number per")])
def test_wrong_metadata_is_refused(chatml, changes, words):
    with pytest.raises(UserError, match=words) as raised:
        tokenizer_from_gguf(hub.gguf_metadata(chatml.text, **changes))
    assert "\n" not in str(raised.value)


@pytest.mark.full
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_ids_of_a_gguf_file_are_those_of_transformers(chatml, tmp_path, pre):
    gguf = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    metadata = hub.gguf_metadata(chatml.text, pre=pre)
    file = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for name, value in metadata.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32,
               list: writer.add_array}[type(value)]
        add(name, value)
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"llama.{name}", 8)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((330, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    ours = tokenizer_from_gguf(metadata)
    texts = [*TEXTS[:4], *TEXTS[5:9]]       # they find special tokens in a text
    if pre == "smollm":     # whose split of digits they leave out, as its vocabulary has no numbers
        texts = [text for text in texts if not any(map(str.isdigit, text))]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
