"""Rows as training sees them: weights, documents, padding, and the command that shows them."""

import json
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from small_tokens import write_artifacts

from core.artifacts import ROOT, make_lineage, read_json, write_json
from data.batch import Batch, Source
from data.chat import Conversation, Message, ask, render
from data.inspection.batch import print_views, render_views, view_row
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.load import load_tokenizer
from data.tokens.examples import Example, lay_out_examples
from data.tokens.rows import TokenRows, lay_out
from model.config import ModelConfig
from model.directory import save_model
from model.families.registry import init

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})


def _row(*talks, row_length=64):
    return lay_out_examples([Example(*render(talk, BYTES)) for talk in talks], row_length)


def _text(view):
    return ["".join(piece.text for piece in strip.pieces) for strip in view.strips]


def test_a_row_is_its_documents_with_their_weights():
    row = _row(ask("2+2?", "4 🌲"), ask("<|end|>", "b"))
    view = view_row("row 1", row, BYTES)
    assert _text(view) == ["<|bos|><|user|>2+2?<|end|><|assistant|>4 🌲<|end|>",
                           "<|bos|><|user|><|end|><|end|><|assistant|>b<|end|>"]
    scored = ["".join(piece.text for piece in strip.pieces if piece.weight)
              for strip in view.strips]
    assert scored == ["4 🌲<|end|>", "b<|end|>"]
    names = [piece.text for piece in view.strips[1].pieces if piece.is_special]
    assert names == ["<|bos|>", "<|user|>", "<|end|>", "<|assistant|>", "<|end|>"]
    counts = view.counts
    assert counts == {"documents": 2, "scored": 7 + 2, "unscored": 7 + 10, "padding": 64 - 26}
    assert counts["scored"] == np.sum(row.loss_weights_BL > 0)
    assert counts["padding"] == np.sum(row.segment_ids_BL == 0)
    assert sum(counts[name] for name in ("scored", "unscored", "padding")) == 64


def test_marks_tell_weights_specials_and_line_breaks_apart():
    row = _row(ask("a\x1b[31m", "b\nc"), row_length=32)
    row.loss_weights_BL[np.flatnonzero(row.loss_weights_BL)[-1]] = 0.5
    legend, _, title, *lines = "\n".join(print_views([view_row("row 1", row, BYTES)],
                                                     False)).split("\n")
    assert "\u27e6of weight 1\u27e7" in legend
    assert title == "== row 1: 1 document, 4 tokens scored, 9 not, 19 of padding"
    assert lines == ["-- document 1, inputs 0-12",
                     "«<|bos|>»«<|user|>»a␛[31m«<|end|>»«<|assistant|>»⟦b↵", "c⟧⟦0.5:«<|end|>»⟧",
                     "-- padding: 19"]


def test_colours_follow_the_weights():
    row = _row(ask("a", "bcd"), row_length=16)
    row.loss_weights_BL[np.flatnonzero(row.loss_weights_BL)] = [1, 0.5, 2, 1]
    line = list(print_views([view_row("row 1", row, BYTES)], True))[3]
    found = re.findall(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m", line)
    assert [text for _, text in found] == [
        "<|bos|>", "<|user|>", "a", "<|end|>", "<|assistant|>", "b", "c", "d", "<|end|>"]
    assert [code.replace("1;", "").replace(";7", "")[:2] for code, _ in found] == [
        "38", "38", "38", "38", "38", "32", "33", "35", "32"]
    assert [code.endswith(";7") for code, _ in found] == [
        True, True, False, True, True, False, False, False, True]
    assert len({code for code, _ in found[:3]} - {found[0][0]}) == 2, "neighbours differ"


def test_documents_that_follow_each_other_end_where_they_end(tmp_path):
    write_artifacts(tmp_path)
    rows = TokenRows(tmp_path / "tokens", "pages", 1024)
    whole = rows.tokens[:1025]
    ours = load_tokenizer(tmp_path / "tokenizer")
    view = view_row("row 1", rows[0], ours)
    found = [piece.token for strip in view.strips for piece in strip.pieces]
    assert len(view.strips) > 1 and found == whole.tolist()[:len(found)]
    for strip in view.strips[1:]:
        assert strip.pieces[0].token == ours.bos and not strip.pieces[0].weight
    assert all(piece.weight for strip in view.strips for piece in strip.pieces[1:])


def test_hidden_tokens_and_sources_have_strips_of_their_own():
    text, hidden = np.array(BYTES.encode("abcd")), np.array(BYTES.encode("a_c_"))
    row = lay_out(hidden, text, [0], 6)
    row.loss_weights_BL[:4] = [0, 1, 0, 1]
    view = view_row("row 1", row, BYTES)
    assert _text(view) == ["a_c_", "abcd"]
    assert [piece.weight for piece in view.strips[1].pieces] == [0, 1, 0, 1]
    segments = np.array([1, 1, 1, 2, 2, 0])
    source = Source(np.array([*BYTES.encode("xyzuv"), 0]), segments, np.zeros(6, int))
    view = view_row("row 1", Batch(row.targets_BL, *(getattr(row, f"{name}_BL") for name in (
        "targets", "loss_weights", "segment_ids", "positions")), source), BYTES)
    assert view.strips[0].title == "source of document 1" and _text(view)[0] == "xyz"


def test_a_page_shows_the_same_and_runs_nothing():
    talk = Conversation((Message("system", "<script>alert(1)</script>"), *ask("a", "b").messages))
    page = render_views([view_row("row 1", _row(talk), BYTES)], "sft: mine")
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    spans = re.findall(r'<span class="token ([\w ]+)" title="(\d+), weight ([\d.]+)">([^<]*)', page)
    assert [text for style, _, _, text in spans if style.startswith("scored")] == [
        "b", "&lt;|end|&gt;"]
    assert [kind for kind, token, _, _ in spans if int(token) == BYTES.end] == [
        "unscored special"] * 2 + ["scored special"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Tokens and a base model, and a file of conversations."""
    root = tmp_path_factory.mktemp("run")
    write_artifacts(root)
    config = ModelConfig(V=read_json(root / "tokenizer" / "tokenizer.json")["vocab_size"], D=32,
                         N=2, H=2, G=1, K=16, F=64)
    save_model(root / "base", jax.jit(partial(init, config))(jax.random.key(0)), config,
               root / "tokenizer", chat=False, context_tokens=64)
    write_json(root / "base" / "lineage.json",
               make_lineage(stage="base", config={}, inputs={}, code=""))
    (root / "mine.jsonl").write_text("".join(
        f'{{"question": "what follows {i}?", "answer": "{i} and one"}}\n' for i in range(8)))
    return root


def run(workdir, *words):
    return subprocess.run(
        [sys.executable, "-m", "data.inspect", "batch", "--config=configs/quickstart.py:smoke",
         f"--workdir={workdir}", "--config.sft.corpus=", "--config.sft.tasks.documentation=0",
         "--config.sft.tasks.verifiable=0", f"--config.sft.inputs={workdir}/mine.jsonl",
         "--config.sft.row_length=64", "--config.sft.batch_size=2", *words],
        cwd=ROOT, capture_output=True, text=True)


def test_the_command_shows_what_sft_will_learn(workdir):
    done = run(workdir, "--num=2", "--config.sft.template=plain", "--config.sft.tasks.turns=0",
               f"--html={workdir}/rows.html")
    assert done.returncode == 0, done.stderr
    assert not (workdir / "sft").exists(), "nothing is trained"
    *shown, last = done.stdout.splitlines()
    found = json.loads(last)
    assert (found["stage"], found["rows"]) == ("sft", 2)
    assert sum(found[f"{kind}_tokens"] for kind in ("scored", "unscored", "padding")) == 2 * 64
    answers = re.findall(r"⟦(.*)⟧", "\n".join(shown[1:]))
    assert len(answers) == found["documents"] > 2
    assert all(re.fullmatch(r"\d and one«<\|end\|>»", answer) for answer in answers)
    assert (workdir / "rows.html").read_text().count("<section>") == 2


def test_the_command_shows_what_pretraining_will_read(workdir):
    done = run(workdir, "--stage=pretrain", "--num=3", "--config.pretrain.corpus=",
               "--config.pretrain.mixture.code=0", "--config.pretrain.mixture.pages=1",
               "--config.pretrain.anneal_frac=0", "--config.pretrain.max_epochs=0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] == 3 and found["scored_tokens"] > found["unscored_tokens"]
    assert done.stdout.count("\n== row ") == 3 and "⟦" in done.stdout


@pytest.mark.parametrize("words, line", [
    (["--stage=ppo"], "--stage=ppo: is none of pretrain, sft, dpo, reward: choose one"),
    (["--config.sft.model=nowhere"], "sft.model='nowhere': no finished artifact at"),
    (["--config.sft.template=vicuna"], "template='vicuna': is none of turns, chatml")])
def test_bad_input_is_one_line(workdir, words, line):
    done = run(workdir, *words)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1
