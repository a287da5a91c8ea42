"""Rows for added tokens: old ones are copied bit for bit, new ones are means of their parts."""

import dataclasses
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
import pytest
from hub_tokenizers import byte_level, sentence_piece, write_hub
from marks import some_in_full
from small_tokens import write_artifacts

from configs.quickstart import get_config
from core.artifacts import ROOT, finish, make_lineage, open_partial, read_json, read_lineage
from core.errors import UserError
from data import pack
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.extended import extend
from data.tokenizers.load import load_tokenizer
from model import extend as extending
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.execution import Execution
from model.extend import extend_model, extend_params, keep_rows, match_rows
from model.families.registry import abstract_params, forward
from model.heads.language import logits
from model.section import read_section
from train import pretrain
from train.watch.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

BYTES = {bytes([i]): i for i in range(256)}
OLD = BytePairTokenizer(BYTES | {b"th": 256}, chat_template="{{ messages[0].content }}")
GAPS = BytePairTokenizer(OLD.ranks, ids=(257, 258, 259, 260, 270))      # 261 to 269 are free
TOKENS = [" the", "weather"]        # the first is cut into three tokens, the second into six
CUTS = [[32, 256, 101], [119, 101, 97, 256, 101, 114]]
NUM_ROWS = 263                      # one more than `OLD` has ids
MODEL = ModelConfig(V=NUM_ROWS, D=16, N=1, H=2, G=1, K=8, F=24, embed_previous=True)


def make_params(config):
    """Random numbers, some of them a zero below zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jax.device_put(np.where(
        rng.random(leaf.shape) < 0.1, -0.0, rng.normal(0, 0.4, leaf.shape)).astype(leaf.dtype)),
        abstract_params(config))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished model directory."""
    folder = tmp_path_factory.mktemp("source")
    OLD.save(folder / "tokenizer")
    open_partial(folder / "base.partial", make_lineage(stage="pretrain", config={}, inputs={},
                                                       code=""))
    save_model(folder / "base.partial", make_params(MODEL), MODEL, folder / "tokenizer", chat=True,
               context_tokens=48)
    finish(folder / "base.partial", folder / "base", {"steps": 1})
    return folder / "base"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    file.write_text("\n".join(TOKENS) + "\n\n")
    return file


@pytest.fixture(scope="module")
def more(source, tokens):
    """The model with two more tokens."""
    out = source.with_name("more")
    result = extend_model(source, out, tokens=tokens)
    assert result == {"model": str(out), "skipped": False, "tokens": 264, "rows": 264,
                      "copied": 262, "averaged": 2, "without_source": 0}
    return out


# Rows ---------------------------------------------------------------------------------------------

FAMILIES = {
    "untied": {}, "tied": {"tied": True, "logit_scale": 0.5, "embed_scale": 4.0},
    "previous": {"embed_previous": True}, "biased": {"head_bias": True, "norm": "layer"},
    "experts": {"E": 4}, "score": {"score_head": True},
    "encoder": {"family": "encoder", "masked_head": True, "pooler": True, "head_bias": True,
                "positions": "learned", "max_positions": 24, "token_types": 2, "tied": True},
    "encoder_decoder": {"family": "encoder_decoder", "encoder_layers": 1},
    "lstm": {"family": "lstm"}}


@pytest.mark.parametrize("name", some_in_full(FAMILIES, "untied", "encoder"))
def test_every_axis_of_the_vocabulary_gets_the_rows_and_all_else_stays(name):
    config = dataclasses.replace(MODEL, **{"V": 7, "embed_previous": False} | FAMILIES[name])
    old = make_params(config)
    sources = [[0], [1], [3], [6], [1, 1, 4], [5, 2], [], [2]]
    new = extend_params(old, sources)
    shapes = abstract_params(dataclasses.replace(config, V=8))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes)
    changed = 0
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(old),
                                     jax.tree.leaves(new)):
        letters = path[-1].key.rpartition("_")[2]
        if "V" not in letters:
            assert after is before
            continue
        changed += 1
        before, after = (np.moveaxis(np.asarray(each), letters.index("V"), 0)
                         for each in (before, after))
        for row, own in zip(after, sources):
            if len(own) == 1:
                assert row.tobytes() == before[own[0]].tobytes()
            else:
                np.testing.assert_allclose(row, before[own or range(7)].mean(0), rtol=1e-6,
                                           atol=1e-7)
    assert changed == sum("V" in str(path[-1].key).rpartition("_")[2] for path, _ in
                          jax.tree_util.tree_leaves_with_path(shapes)) > 0


def test_rows_of_added_tokens_come_from_their_parts_and_padding_stays():
    new = extend(OLD, TOKENS)
    assert [OLD.encode(token) for token in TOKENS] == CUTS
    assert keep_rows(OLD, new, TOKENS, 262) == [*([i] for i in range(262)), *CUTS]
    padded = keep_rows(OLD, new, TOKENS, 266)
    assert padded == [*([i] for i in range(262)), *CUTS, [264], [265]]
    assert keep_rows(GAPS, extend(GAPS, TOKENS), TOKENS, 271) == [
        *([i] for i in range(261)), *CUTS, *([i] for i in range(263, 271))]


def test_rows_of_another_tokenizer_go_by_bytes_parts_and_roles():
    assert match_rows(OLD, OLD) == [[i] for i in range(262)]
    assert match_rows(GAPS, GAPS) == [[i] for i in range(271)], "ids without a token too"
    new = BytePairTokenizer(
        {bytes([255 - i]): i for i in range(256)} | {b"the": 256, b"th": 257, b"\xe6\x97": 258},
        specials=("<|end|>", "<|a|>", "<|b|>", "<|start|>"), ids=(259, 260, 261, 262),
        bos_name="<|start|>")
    assert match_rows(OLD, new) == [
        *([255 - i] for i in range(256)), [256, 101], [256], [0xE6, 0x97],
        [OLD.end], [], [], [OLD.bos]]


def test_rows_go_between_tokenizers_of_ours_and_of_the_hub(tmp_path):
    pytest.importorskip("tokenizers")
    theirs = load_tokenizer(write_hub(tmp_path / "a", byte_level(), tokenizer_config={
        "eos_token": "<|im_end|>"}))
    sources = match_rows(OLD, theirs)
    assert sources[theirs.end] == [OLD.end] and sources[theirs.bos] == [OLD.bos]
    assert sources[theirs.special("<|im_start|>")] == []
    [cat] = theirs.encode(" cat")
    assert sources[cat] == [*b" cat"] and sources[theirs.encode("z")[0]] == [ord("z")]
    pieces = load_tokenizer(write_hub(tmp_path / "b", sentence_piece(), tokenizer_config={
        "eos_token": "</s>"}))
    back = match_rows(pieces, OLD)
    assert back[ord("a")] == pieces.encode_rendered("a", "", begins=False), "not the byte <0x61>"
    assert back[200] == [200 + 3] and back[OLD.bos] == [pieces.bos]


def test_texts_without_new_tokens_lose_no_more_than_the_share_of_the_new_ones(source, more):
    """The states before the head are the same bit for bit; a matmul may round by its size."""
    text = "Another text, with others."
    assert load_tokenizer(more).encode(text) == OLD.encode(text)
    tokens_BL = np.array([[OLD.bos, *OLD.encode(text)]], np.int32)
    positions_BL, segment_ids_BL = np.arange(tokens_BL.size)[None], np.ones_like(tokens_BL)
    states, scores = [], []
    for folder in (source, more):
        config = read_description(folder).config
        params = load_params(folder, config)
        states.append(jax.jit(partial(forward, config=config, execution=Execution()))(
            params, tokens_BL, positions_BL, segment_ids_BL))
        scores.append(np.asarray(logits(params, states[-1], config=config,
                                        execution=Execution())[0]))
    assert np.asarray(states[0]).tobytes() == np.asarray(states[1]).tobytes()
    before_LV, after_LV = scores
    before_LV = before_LV[:, :OLD.vocab_size]
    np.testing.assert_allclose(after_LV[:, :OLD.vocab_size], before_LV, rtol=1e-5, atol=1e-6)
    for i, own in enumerate(CUTS, OLD.vocab_size):      # untied: the head is linear
        np.testing.assert_allclose(after_LV[:, i], before_LV[:, own].mean(1), atol=1e-5)
    shares_L1 = np.asarray(jax.nn.softmax(after_LV))[:, OLD.vocab_size:].sum(1, keepdims=True)
    np.testing.assert_allclose(
        np.asarray(jax.nn.log_softmax(after_LV))[:, :OLD.vocab_size],
        np.asarray(jax.nn.log_softmax(before_LV)) + np.log1p(-shares_L1), atol=1e-5)
    assert shares_L1.min() > 0.001 and shares_L1.max() < 0.1


# Model directories --------------------------------------------------------------------------------

def test_the_directory_keeps_what_the_model_was(source, more):
    before, after = read_description(source), read_description(more)
    assert after == dataclasses.replace(before, config=dataclasses.replace(MODEL, V=264),
                                        tokenizer=extend(OLD, TOKENS).fingerprint)
    assert after.chat and after.context_tokens == 48
    assert load_tokenizer(more) == extend(OLD, TOKENS)
    assert load_tokenizer(more).chat_template == OLD.chat_template
    expected = extend_params(make_params(MODEL), keep_rows(OLD, load_tokenizer(more), TOKENS,
                                                           NUM_ROWS))
    jax.tree.map(np.testing.assert_array_equal, load_params(more, after.config), expected)
    assert read_lineage(more)["inputs"]["model"] == read_lineage(source)["build"]


@pytest.mark.full
def test_more_rows_than_tokens_are_not_made_fewer(source, tmp_path):
    (tmp_path / "one.txt").write_text("weather\r\n")
    result = extend_model(source, tmp_path / "out", tokens=tmp_path / "one.txt")
    assert (result["tokens"], result["rows"]) == (263, NUM_ROWS)
    assert read_description(tmp_path / "out").config == MODEL


@pytest.mark.parametrize("template", [
    "", pytest.param("{{ messages }}", marks=pytest.mark.full)])
def test_another_tokenizer_replaces_the_models(source, tmp_path, template, capsys):
    other = BytePairTokenizer(BYTES, specials=("<|end|>",), ids=(263,), bos_name="<|end|>",
                              chat_template=template)
    other.save(tmp_path / "tokenizer")
    result = extend_model(source, tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    assert (result["rows"], result["copied"], result["without_source"]) == (264, 257, 7)
    described = read_description(tmp_path / "out")
    assert described.chat == bool(template), "without a template there is no chat"
    assert ("this is a chat model no more" in capsys.readouterr().err) == (not template)
    before, after = (np.asarray(each["embed_VD"]) for each in (
        make_params(MODEL), load_params(tmp_path / "out", described.config)))
    np.testing.assert_array_equal(after[[*range(256), 263]], before[[*range(256), OLD.end]])
    np.testing.assert_allclose(after[256:263], np.tile(before.mean(0), (7, 1)), atol=1e-6)


def test_the_same_command_again_finds_it_finished(source, more, tokens, capsys):
    files = {path: path.stat().st_mtime_ns for path in more.rglob("*")}
    again = extend_model(source, more, tokens=tokens)
    assert again["skipped"] and again["averaged"] == 2
    assert "is up to date" in capsys.readouterr().err
    assert files == {path: path.stat().st_mtime_ns for path in more.rglob("*")}


def test_a_command_that_was_killed_is_done_again(source, more, tokens, tmp_path, monkeypatch):
    out, saved = tmp_path / "out", []

    def kill(folder, *arguments, **options):
        save_model(folder, *arguments, **options)
        saved.append(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extending, "save_model", kill)
        extend_model(source, out, tokens=tokens)
    assert not out.exists() and saved == [tmp_path / "out.partial"]
    (saved[0] / "model.json").write_text("{")
    assert not extend_model(source, out, tokens=tokens)["skipped"] and not saved[0].exists()
    assert read_json(out / "model.json") == read_json(more / "model.json")


def test_what_stands_in_the_way_is_refused_and_stays(source, tokens, tmp_path):
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError, match=r"--out=\S+: is the model that is extended: name a new"):
        extend_model(source, source.parent / "." / "base", tokens=tokens)
    assert sorted(source.parent.iterdir()) == before
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="exists and is not an artifact"):
        extend_model(source, tmp_path / "out", tokens=tokens)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def _spoil(folder, tokens):
    largest = max((folder / "params").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])


DAMAGES = {
    "arrays": (_spoil, r"is damaged: params/\S+ has changed"),
    "description": (lambda folder, tokens: (folder / "model.json").unlink(), "is no model dir"),
    "tokenizer": (lambda folder, tokens: (folder / "tokenizer" / "ranks.tiktoken").unlink(),
                  r"is damaged: tokenizer/ranks\.tiktoken is missing"),
    "bytes": (lambda folder, tokens: tokens.write_bytes(b"\xff\xfe"),
              r"--tokens=\S+: is no text in UTF-8"),
    "empty": (lambda folder, tokens: tokens.write_text("\n"), "the new tokens: are none"),
    "known": (lambda folder, tokens: tokens.write_text("a\n"), "token 'a': is a token already"),
    "missing": (lambda folder, tokens: tokens.unlink(), r"--tokens=\S+: no such file"),
    "folder": (lambda folder, tokens: (tokens.unlink(), tokens.mkdir()),
               "--tokens=.* is no text in UTF-8")}


@pytest.mark.parametrize("name", some_in_full(DAMAGES, "arrays", "bytes", "known"))
def test_damaged_inputs_are_refused_and_leave_nothing(source, tokens, tmp_path, name):
    damage, line = DAMAGES[name]
    shutil.copytree(source, tmp_path / "base")
    shutil.copy(tokens, tmp_path / "tokens.txt")
    damage(tmp_path / "base", tmp_path / "tokens.txt")
    with pytest.raises(UserError, match=line):
        extend_model(tmp_path / "base", tmp_path / "out", tokens=tmp_path / "tokens.txt")
    left = {path.name for path in tmp_path.iterdir()} - {".out.lock"}
    assert left <= {"base", "tokens.txt"}


# The command --------------------------------------------------------------------------------------

def _command(*flags):
    return subprocess.run([sys.executable, "-m", "model.extend", *flags], capture_output=True,
                          text=True, cwd=ROOT)


REFUSED = {
    "both": (["--model=base", "--out=new", "--tokens=t", "--tokenizer=t"],
             "--tokens and --tokenizer: exclude each other"),
    "neither": (["--model=base", "--out=new"], "--tokens and --tokenizer: exclude each other"),
    "no model": (["--out=new", "--tokens=t"], "--model: is missing: name a path: --model=PATH"),
    "no out": (["--model=base", "--tokens=t"], "--out: is missing: name a path: --out=PATH"),
    "no such model": (["--model=no/such", "--out=new", "--tokens=t"], "no/such: is no model")}


@pytest.mark.parametrize("name", some_in_full(REFUSED, "both"))
def test_the_command_refuses_in_one_line(name):
    words, line = REFUSED[name]
    done = _command(*words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1


@pytest.mark.full
@pytest.mark.parametrize("flag", ["tokens", "tokenizer"])
def test_the_command_writes_a_model_directory(source, tokens, tmp_path, flag):
    BytePairTokenizer(BYTES | {b"wea": 256}).save(tmp_path / "tokenizer")
    given, rows, averaged = {"tokens": (tokens, 264, 2),
                             "tokenizer": (tmp_path / "tokenizer", 262, 1)}[flag]
    done = _command(f"--model={source}", f"--out={tmp_path / 'new'}", f"--{flag}={given}")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert (got["rows"], got["averaged"], got["skipped"]) == (rows, averaged, False)
    assert rows == read_description(tmp_path / "new").config.V


@pytest.mark.full
def test_pretraining_goes_on_from_an_extended_model(tmp_path):
    """Its tokenizer packs the corpus in fewer tokens; those of the old tokenizer are refused."""
    write_artifacts(tmp_path)
    config = get_config("smoke")
    section = config.pretrain
    section.update(row_length=32, batch_size=8, num_steps=2, anneal_frac=0.0, init_from="more",
                   mixture=dict(pages=0.75, code=0.25))
    section.optimizer.update(warmup_steps=0, decay_frac=0.5)
    section.run.update(tasks=dict(documentation=0), log_every=1, evaluate_every=100)

    @contextmanager
    def built(name):
        open_partial(tmp_path / f"{name}.partial", make_lineage(stage=name, config={}, inputs={},
                                                                code=""))
        yield tmp_path / f"{name}.partial"
        finish(tmp_path / f"{name}.partial", tmp_path / name, {})

    base = read_section(config.model, 300)
    with built("base") as folder:
        save_model(folder, make_params(base), base, tmp_path / "tokenizer", chat=False,
                   context_tokens=32)
    (tmp_path / "tokens.txt").write_text(" bolking\n gurt\n")
    extend_model(tmp_path / "base", tmp_path / "more", tokens=tmp_path / "tokens.txt")
    with built("packed") as folder:
        pack.build(config, {"corpus": tmp_path / "corpus", "tokenizer": tmp_path / "more"}, folder)
    before, after = (read_json(tmp_path / name / "tokens.json") for name in ("tokens", "packed"))
    assert (before["vocab_size"], after["vocab_size"]) == (300, 302)
    assert after["domains"]["pages"]["tokens"] < before["domains"]["pages"]["tokens"]
    parents = {"tokens": tmp_path / "packed", "init_from": tmp_path / "more"}
    with pytest.raises(UserError, match="init_from='more'"):
        pretrain.build(config, parents | {"tokens": tmp_path / "tokens"}, tmp_path / "wrong")
    with built("next") as folder:
        pretrain.build(config, parents, folder)
    assert read_description(tmp_path / "next").config == dataclasses.replace(base, V=302)
    losses = [row["loss"] for row in read_metrics(tmp_path / "next" / "metrics.jsonl")
              if "loss" in row]
    assert len(losses) == 2 and losses[1] < losses[0]
