"""Perplexity of texts and token domains: golden values, exactness, what is refused."""

import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from core.file_sums import write_sums as write_file_sums
from core.json_text import format_json
from data.layouts.faults import Faults
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.checked import write_sums
from eval.measures import packed, perplexity
from eval.measures.likelihood import bits_per_byte
from eval.measures.packed import Piece, row_lengths, score_pieces
from eval.measures.perplexity import (
    Encoded,
    TextSums,
    add_sums,
    count_words,
    describe_sums,
    format_table,
    measure_domains,
    measure_texts,
    score_encoded,
)
from eval.measures.texts import Text, detokenise, read_texts, split_pages
from eval.measures.windows import WindowRule
from eval.perplexity import read_inputs
from eval.respond.loaded import LoadedModel
from model.directory import save_model
from model.families.registry import forward
from model.heads.language import token_logps

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
needs_datasets = pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})
# 91 characters and two pairs, with the 5 special tokens the 98 of the tiny model.
TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 123))}
                              | {b"th": 91, b"er": 92})
RULES = [WindowRule(16), WindowRule(16, "half"), WindowRule(16, "strided", 5),
         WindowRule(16, bos=False), WindowRule(16, "strided", 5, bos=False)]
TEXTS = [Text(name, text) for name, text in (
    ("a", "other mother, farther than the weather"), ("b", "x"), ("a", "the " * 30),
    ("b", "There they are. " * 9), ("a", "er th"), ("c", "one more"))]


@pytest.fixture(scope="module")
def model(params, config, execution) -> LoadedModel:
    return LoadedModel(params, config, execution, TOKENIZER, chat=False, context_tokens=64,
                       name="tiny@1")


@partial(jax.jit, static_argnames=("config", "execution"))
def logps_BL(params, tokens_BL, targets_BL, *, config, execution):
    """Log-probabilities of one row that holds one document."""
    how = {"config": config, "execution": execution}
    x_BLD = forward(params, tokens_BL, jnp.arange(tokens_BL.shape[1])[None],
                    jnp.ones_like(tokens_BL), **how)
    return token_logps(params, x_BLD, targets_BL, **how)


def score_alone(model, pieces):
    found = []
    for tokens, num_scored in pieces:
        row = np.pad(tokens, (0, 17 - len(tokens)))[None]   # what follows is not seen
        logp_BL = logps_BL(model.params, row[:, :-1], row[:, 1:], config=model.config,
                           execution=model.execution)
        found.append(np.asarray(logp_BL)[0, len(tokens) - 1 - num_scored:len(tokens) - 1])
    return found


def encode(texts):
    return [Encoded(t.name, TOKENIZER.encode_array(t.text), t.counted) for t in texts]


def table_scorer(logp_VV):
    """A model whose next token depends on the last one alone."""
    return lambda pieces: [logp_VV[tokens[:-1], tokens[1:]][-num_scored:]
                           for tokens, num_scored in pieces]


def add_one(counts):
    return np.log((counts + 1) / (counts + 1).sum(axis=-1, keepdims=True))


def count_pairs(ids, V):
    counts_VV = np.zeros((V, V))
    np.add.at(counts_VV, (ids[:-1], ids[1:]), 1)
    return counts_VV


def wikitext(split):
    return gzip.open(f"{DATASETS}/wikitext2/wiki.{split}.raw.txt.gz").read()


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(model):
    uniform = dataclasses.replace(model, params=jax.tree.map(np.zeros_like, model.params))
    text = "the other weather"      # two letters of a pair are one token
    num_tokens = len(TOKENIZER.encode(text))
    assert num_tokens < len(text)
    got = measure_texts(uniform, [Text("a", text)], rule=WindowRule(8))
    assert got["token_perplexity"] == pytest.approx(98, rel=1e-6)
    assert got["bpb"] == pytest.approx(num_tokens * math.log2(98) / len(text), rel=1e-6)
    assert got["word_perplexity"] == pytest.approx(98 ** (num_tokens / 3), rel=1e-5)
    assert (got["tokens"], got["bytes"], got["chars"], got["words"]) == (
        num_tokens, len(text), len(text), 3)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_packed_windows_score_as_each_alone(model, rule):
    """Documents do not see each other, and a text longer than the window is cut by the rule."""
    want = list(score_encoded(encode(TEXTS), TOKENIZER, rule, partial(score_alone, model)))
    got = measure_texts(model, TEXTS, rule=rule, batch_size=2)
    assert got["tokens"] + got["unscored_tokens"] == sum(len(e.ids) for e in encode(TEXTS))
    assert got["unscored_tokens"] == (0 if rule.bos else len(TEXTS))
    for name in "abc":
        sums = add_sums([part for other, part in want if other == name])
        found = {key: got["inputs"][name][key] for key in dataclasses.asdict(sums)}
        assert found == pytest.approx(dataclasses.asdict(sums), rel=1e-5)
    assert got["nats"] == pytest.approx(add_sums([part for _, part in want]).nats, rel=1e-5)


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_scores_depend_neither_on_the_batch_nor_on_the_order(model, rule):
    rng = np.random.default_rng(0)
    texts = [Text(str(i), "".join(chr(c) for c in rng.integers(32, 123, size)))
             for i, size in enumerate(rng.integers(1, 120, 40))]
    got = [measure_texts(model, texts, rule=rule, batch_size=size)["inputs"] for size in (1, 7, 32)]
    got.append(measure_texts(model, texts[::-1], rule=rule, batch_size=7)["inputs"])
    for name in got[0]:
        nats = [inputs[name]["nats"] for inputs in got]
        np.testing.assert_allclose(nats, nats[0], rtol=1e-5)


def test_lengths_share_a_few_programs(model):
    assert row_lengths(8192) == [128, 512, 2048, 8192] and row_lengths(100) == [100]
    before = packed._logps._cache_size()
    for sizes in ((3, 5, 50), (7, 9), (200, 100), (128, 400), (20,) * 40, (120,) * 2,
                  (120,) * 3):
        score_pieces(model, [Piece(np.arange(size) % 90, size - 1) for size in sizes],
                     longest=512, batch_size=1)
    assert packed._logps._cache_size() - before <= 4, "rows of 128 (1, 2 and 4) and of 512"


def test_a_measurement_can_be_left_before_each_batch(model):
    calls = []
    counted = dataclasses.replace(model, between_batches=lambda: calls.append(1))
    measure_texts(counted, TEXTS[:1], rule=WindowRule(3), batch_size=1)
    assert len(calls) == len(list(WindowRule(3).cut(1 + len(TOKENIZER.encode(TEXTS[0].text)))))


def test_sums_come_before_the_division():
    parts = [TextSums(nats=1.0, tokens=2, bytes=4, chars=3, words=1),
             TextSums(nats=5.0, tokens=1, bytes=2, chars=2, words=3)]
    got = describe_sums(add_sums(parts))
    assert got["bpb"] == pytest.approx(6 / 6 / math.log(2))
    assert got["bits_per_char"] == pytest.approx(6 / 5 / math.log(2))
    assert got["word_perplexity"] == pytest.approx(math.exp(6 / 4))
    assert got["token_perplexity"] == pytest.approx(math.exp(6 / 3))
    official = describe_sums(add_sums(parts), official_words=12)
    assert (official["words"], official["words_by"]) == (12, "official")
    assert official["word_perplexity"] == pytest.approx(math.exp(6 / 12))
    assert math.isnan(describe_sums(TextSums())["bpb"])


def test_words_are_counted_with_empty_ends():
    assert [count_words(text) for text in ("a b", " a  b\n", "", "é\u2009x")] == [2, 4, 1, 2]


def test_units_of_a_text_beyond_ascii():
    score = table_scorer(np.full((261, 261), -1.0))
    text = "Ω é\n"
    sums, = (sums for _, sums in score_encoded([Encoded("a", BYTES.encode_array(text), text)],
                                               BYTES, WindowRule(3), score))
    assert (sums.nats, sums.tokens, sums.bytes, sums.chars, sums.words) == (6, 6, 6, 4, 3)
    sums, = (sums for _, sums in score_encoded([Encoded("a", BYTES.encode_array(text), text)],
                                               BYTES, WindowRule(3, bos=False), score))
    # The first byte has no score; what is left of its character is none.
    assert (sums.nats, sums.tokens, sums.bytes, sums.chars, sums.unscored_tokens) == (5, 5, 5, 3, 1)


@needs_datasets
@pytest.mark.parametrize("rule", [WindowRule(1024), WindowRule(500, "half"),
                                  WindowRule(256, "strided", 100)], ids=str)
def test_wikitext_golden_values(rule):
    """Tables of bytes, whose values on WikiText-2 are known to six digits."""
    test, valid = (np.frombuffer(wikitext(split), np.uint8) for split in ("test", "valid"))
    document = Encoded("wiki", test, wikitext("test").decode())
    counts = {"self": np.bincount(test, minlength=256) - 1.0,
              "valid": np.bincount(valid, minlength=256)}
    got = {}
    with np.errstate(divide="ignore"):
        for name, counts_V in counts.items():
            got[name] = np.tile(add_one(counts_V), (BYTES.bos + 1, 1))
    pairs_VV = np.tile(add_one(counts["valid"]), (BYTES.bos + 1, 1))   # of bos: the unigram
    pairs_VV[:256] = add_one(count_pairs(valid, 256))
    measured = {name: describe_sums(add_sums([sums for _, sums in score_encoded(
        [document], BYTES, rule, table_scorer(table_VV))]), official_words=245_569)
        for name, table_VV in {**got, "pairs": pairs_VV}.items()}
    assert measured["self"]["bpb"] == pytest.approx(4.571117, abs=5e-7)
    assert measured["valid"]["bpb"] == pytest.approx(4.573334, abs=5e-7)
    assert measured["pairs"]["bpb"] == pytest.approx(3.582466, abs=5e-7)
    assert measured["pairs"]["byte_perplexity"] == pytest.approx(11.97925, abs=5e-6)
    assert measured["pairs"]["word_perplexity"] == pytest.approx(465_261, abs=0.5)
    assert (measured["pairs"]["bytes"], measured["pairs"]["tokens"]) == (1_290_590, 1_290_590)


@needs_datasets
def test_tinyshakespeare_golden_value():
    """Pairs of characters of the first 90 %, on the rest, without BOS."""
    text = Path(f"{DATASETS}/tinyshakespeare/input.txt").read_text()
    ids = np.frombuffer(text.encode(), np.uint8)    # ASCII: a character is a byte
    symbols, ids = np.unique(ids, return_inverse=True)
    cut = int(len(ids) * 0.9)
    logp_VV = add_one(count_pairs(ids[:cut], len(symbols)))
    # Tokens are the symbols' bytes again, so that BYTES can name them.
    wide_VV = np.zeros((256, 256))
    wide_VV[np.ix_(symbols, symbols)] = logp_VV
    document = Encoded("play", symbols[ids[cut:]], text[cut:])
    (_, sums), = score_encoded([document], BYTES, WindowRule(512, bos=False), table_scorer(wide_VV))
    measured = describe_sums(sums)
    assert len(symbols) == 65
    assert measured["bits_per_char"] * math.log(2) == pytest.approx(2.481889, abs=1e-6)
    assert measured["bits_per_char"] == measured["bpb"], "of what is scored"


@needs_datasets
def test_wikitext_pages_are_those_of_lm_evaluation_harness():
    text = wikitext("test").decode()
    pages = [page for page, _ in split_pages(text)]
    assert len(pages) == 62
    assert all(page.startswith(" = ") for page in pages)
    assert sum(len(page.encode()) for page in pages) == 1_290_527
    assert sum(map(count_words, pages)) == 241_335


@needs_datasets
def test_wikitext_is_detokenised_as_lm_evaluation_harness_does():
    """The digest is of its own function's pages."""
    pages = [detokenise(page) for page, _ in split_pages(wikitext("test").decode())]
    assert xxhash.xxh3_64_hexdigest("\0".join(pages).encode()) == "63743ba15f964302"


def test_detokenising_by_hand():
    assert detokenise(' = A = \n \n The " first " 1 @,@ 000 N ( or 2 @.@ 5 ) , it \'s ; \n') == (
        ' = A =\n\nThe "first" 1,000 1 (or 2.5), it\'s;\n')


@pytest.mark.full
def test_windows_and_pages_are_those_of_lm_evaluation_harness():
    theirs = pytest.importorskip("lm_eval.utils")
    for num_tokens in range(1, 60):
        for size in (1, 2, 3, 7, 16, 59):
            tokens = list(range(1, num_tokens + 1))
            want = [theirs.make_disjoint_window(pair) for pair in theirs.get_rolling_token_windows(
                tokens, prefix_token=0, max_seq_len=size, context_len=1)]
            sequence = [0, *tokens]
            got = [(sequence[w.start:w.first], sequence[w.first:w.stop])
                   for w in WindowRule(size).cut(len(sequence))]
            assert got == want


@pytest.fixture
def tokens(tmp_path):
    """A token folder of three domains, one of which repeats another's document."""
    folder, described = tmp_path / "tokens", {}
    folder.mkdir()
    for name, texts in {"heldout": ("the other", "x", "weather " * 9), "code": ("er", "th" * 30),
                        "best": ("er",)}.items():
        ids = [[TOKENIZER.bos, *TOKENIZER.encode(text), TOKENIZER.end] for text in texts]
        np.concatenate(ids).astype("<u2").tofile(folder / f"{name}.tokens")
        np.cumsum([len(part) for part in ids]).astype("<i8").tofile(folder / f"{name}.ends")
        for suffix in ("tokens", "ends"):
            write_sums(folder / f"{name}.{suffix}")
        described[name] = {"tokens": sum(map(len, ids))}
    TOKENIZER.save(folder / "tokenizer")
    write_json(folder / "tokens.json", {"dtype": "uint16", "vocab_size": 98,
                                        "domains": described})
    return folder


def test_a_domain_measures_as_its_texts(model, tokens):
    got = measure_domains(model, tokens, rule=WindowRule(16))
    assert set(got["inputs"]) == {"heldout", "code"}, "the other repeats their documents"
    texts = [Text("heldout", "the other"), Text("heldout", "x"), Text("heldout", "weather " * 9),
             Text("code", "er"), Text("code", "th" * 30)]
    assert got == measure_texts(model, texts, rule=WindowRule(16))
    assert got["documents"] == 5
    first = measure_domains(model, tokens, rule=WindowRule(16), domains=["heldout"], num=2)
    assert first == measure_texts(model, texts[:2], rule=WindowRule(16))
    assert list(measure_domains(model, tokens, rule=WindowRule(16), domains=["best"])["inputs"]) \
        == ["best"]


def test_tokens_of_another_tokenizer_are_refused(model, tokens):
    other = dataclasses.replace(model, tokenizer=BYTES)
    with pytest.raises(UserError, match=f"^inputs=.*was made by tokenizer {TOKENIZER.fingerprint}"):
        measure_domains(other, tokens, rule=WindowRule(16))
    for domains, message in ((["pages"], "has no 'pages' but best, code, heldout"),
                             (["best", "code"], "'best' repeats documents of the others")):
        with pytest.raises(UserError, match=message):
            measure_domains(model, tokens, rule=WindowRule(16), domains=domains)


def test_what_is_refused(model):
    long = dataclasses.replace(model, context_tokens=15)
    with pytest.raises(UserError, match=r"^window_tokens=16: exceeds the context of tiny@1, 15"):
        measure_texts(long, TEXTS, rule=WindowRule(16))
    with pytest.raises(UserError, match=r"^inputs: hold no token to be scored"):
        measure_texts(model, [Text("a", "x")], rule=WindowRule(16, bos=False))


def test_what_is_not_finite_is_counted_and_no_number(model, capsys):
    broken = dataclasses.replace(model, params=jax.tree.map(
        lambda leaf: np.full_like(leaf, np.nan), model.params))
    got = measure_texts(broken, TEXTS[:2], rule=WindowRule(16))
    assert got["not_finite"] == 2 and json.loads(format_json(got))["bpb"] is None
    assert "warning: a: the log-probability of document 1 is nan" in capsys.readouterr().err


def test_texts_of_files(tmp_path, capsys):
    (tmp_path / "plain.txt").write_bytes("\ufeff One.\r\n  Twö. \n".encode())
    (tmp_path / "rows.jsonl").write_text('{"text": "a b"}\n{"text": " "}\nbroken\n{"n": 1}\n'
                                         '{"content": "c"}\n')
    (tmp_path / "page.html").write_text("<html><body><p>Some text.</p></body></html>")
    (tmp_path / "empty.txt").write_text("")
    faults = Faults("inputs")
    plain = list(read_texts(str(tmp_path / "plain.txt"), faults))
    assert [text.text for text in plain] == [" One.\r\n  Twö. \n"], "as it is, without the mark"
    found = list(read_texts(str(tmp_path), faults))
    assert sorted(text.text for text in found) == sorted(["a b", "c", " One.\r\n  Twö. \n"])
    assert {text.name for text in found} == {str(tmp_path)}
    assert faults.counts == {"no_text": 2, "damaged": 2, "html": 1}
    for name in ("empty.txt", "page.html"):
        with pytest.raises(UserError, match=f"^inputs=.*{name}': holds no text") as error:
            list(read_texts(str(tmp_path / name), faults))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="matches no input file"):
        list(read_texts(str(tmp_path / "absent.txt"), faults))
    assert len(list(read_texts(str(tmp_path / "rows.jsonl"), faults, num=1))) == 1


def test_pages_begin_at_headings_of_level_one():
    text = " \n = One = \n text = x = \n = = Part = = \n more \n = Two = \n end \n"
    assert list(split_pages(text)) == [
        (" = One = \n text = x = \n = = Part = = \n more ", ""), (" = Two = \n end \n", "")]


def test_wrong_inputs_are_refused_before_any_is_scored(tokens, tmp_path):
    for name in ("a.txt", "b,c.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty.txt").write_text("\n")
    read = partial(read_inputs, TOKENIZER, faults=Faults("inputs"))
    with pytest.raises(UserError, match=r"^domains=heldout: no input of .*a.txt' is a folder"):
        read(str(tmp_path / "a.txt"), domains=["heldout"])
    for second, message in (("*.txt", "two of them have files in common"),
                            ("no.txt", "matches no input file"), ("empty.txt", "holds no text")):
        with pytest.raises(UserError, match=message):
            read(f"{tmp_path}/a.txt,{tmp_path}/{second}")
    with pytest.raises(UserError, match="was made by tokenizer"):
        read_inputs(BYTES, f"{tmp_path}/a.txt,{tokens}", Faults("inputs"))
    found = list(read(f"{tmp_path}/a.txt,{tmp_path}/b\\,*.txt,{tokens}", num=1))
    assert [document.name for document in found] == [
        f"{tmp_path}/a.txt", f"{tmp_path}/b,*.txt", f"{tokens}:heldout", f"{tokens}:code"]


def test_another_encoding_is_announced(tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes("Müller war früh da.".encode("latin-1"))
    text, = read_texts(str(tmp_path / "latin.txt"), Faults("inputs"))
    assert text.text == "Müller war früh da."
    assert "latin.txt: is not UTF-8" in capsys.readouterr().err


def test_long_inputs_are_scored_in_chunks(model, monkeypatch):
    whole = measure_texts(model, TEXTS, rule=WindowRule(16))
    monkeypatch.setattr(perplexity, "CHUNK_TOKENS", 20)
    chunked = measure_texts(model, TEXTS, rule=WindowRule(16))
    assert chunked["nats"] == pytest.approx(whole["nats"], rel=1e-6)
    assert chunked["documents"] == whole["documents"] == len(TEXTS)


def test_whole_documents_measure_as_the_rows_of_a_token_folder(model, tokens):
    """With windows as long as the documents it is the figure of `eval.measures.likelihood`."""
    rows = bits_per_byte(dataclasses.replace(model, context_tokens=200), tokens, row_length=200,
                         batch_size=2)
    assert measure_domains(model, tokens, rule=WindowRule(64), domains=["heldout"])["bpb"] \
        == pytest.approx(rows, rel=1e-5)


def test_the_command_prints_a_table_and_all_figures(model, tokens, tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    save_model(tmp_path / "model", model.params, model.config, tmp_path / "tokenizer", chat=False,
               context_tokens=64)
    write_json(tmp_path / "model" / "lineage.json",
               make_lineage(stage="pretrain", config={}, inputs={}, code=""))
    write_file_sums(tmp_path / "model", [tmp_path / "model" / "lineage.json"])
    (tmp_path / "a.txt").write_text("the other weather")
    done = subprocess.run(
        [sys.executable, "-m", "eval.perplexity", f"--model={tmp_path}/model",
         f"--inputs={tmp_path}/a.txt,{tokens}", "--rule=half", "--window_tokens=16"],
        capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    got = json.loads(last)
    assert [line.split()[0] for line in table] == [
        "input", f"{tmp_path}/a.txt", f"{tokens}:heldout", f"{tokens}:code", "total"]
    assert (got["rule"], got["window_tokens"], got["stride"], got["bos"]) == ("half", 16, 0, True)
    own = measure_texts(model, [Text("a", "the other weather")], rule=WindowRule(16, "half"))
    assert got["inputs"][f"{tmp_path}/a.txt"]["bpb"] == pytest.approx(own["bpb"], rel=1e-5)
    assert format_table(got).splitlines() == table
