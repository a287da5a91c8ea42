"""The stage of the reward model: what it learns, counts, measures, and that it resumes exactly."""

import json
import math
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from small_tokens import write_artifacts

from align import reward
from align.rankings import RankedRows, RankingWriter, padded_rankings
from align.sft import build as build_sft
from configs.align import get_config
from configs.common import make_lora
from configs.quickstart import get_config as quickstart_config
from core.artifacts import make_lineage, read_json, read_jsonl, write_json
from core.errors import UserError
from data.chat import Conversation, Message, ask
from data.preferences import Preference, write_preferences
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.examples import HELDOUT, TRAIN, Examples
from eval.respond.reward import load_reward
from eval.reward import score_file
from model.config import ModelConfig
from model.directory import read_description, save_model
from model.execution import Execution
from model.families.registry import init
from train.watch.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
SYLLABLES = ["ba", "co", "du", "fe", "gi", "lo"]


def rankings(count, seed=0, num_answers=3):
    """Rankings by a planted rule: the answer with more of the syllable "ba" is the better one."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        answers = []
        for marks in rng.permutation(num_answers):
            words = ["ba"] * (2 * marks) + rng.choice(SYLLABLES[1:], 9 - 2 * marks).tolist()
            answers.append((" ".join(rng.permutation(words)), int(num_answers - marks)))
        yield Preference(ask(f"question {number}?"), tuple(text for text, _ in answers),
                         tuple(rank for _, rank in answers), f"source{number % 2}",
                         scores=tuple(float(num_answers - rank) for _, rank in answers))


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Base models, a decoder and an encoder, and an artifact of rankings."""
    root = tmp_path_factory.mktemp("parents")
    write_artifacts(root)
    sizes = dict(V=read_json(root / "tokenizer" / "tokenizer.json")["vocab_size"], D=32, N=2, H=2,
                 G=1, K=16, F=64)
    for name, config in (("base", ModelConfig(**sizes)), ("encoder", ModelConfig(
            **sizes, family="encoder", masked_head=True, head_bias=True))):
        save_model(root / name, jax.jit(partial(init, config))(jax.random.key(0)), config,
                   root / "tokenizer", chat=False, context_tokens=64)
        write_lineage(root / name)
    (root / "pairs").mkdir()
    write_preferences(root / "pairs" / "rankings.jsonl", rankings(120))
    return root


def write_lineage(folder):
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))


def run(parents, folder, model="base", pairs="pairs", **changes):
    """Builds the stage in `folder`, or goes on there; its metrics."""
    folder.mkdir(exist_ok=True)
    write_lineage(folder)
    config = get_config()
    section = config.reward
    section.update(row_length=48, batch_size=8, num_epochs=3, compute_dtype="float32",
                   heldout_frac=0.2, centering_coef=0.01)
    section.optimizer.update(learning_rate=0.005, warmup_steps=1)
    section.run.update(checkpoint_every=10, keep_checkpoints=9, log_every=1, remat="none")
    section.update(changes)
    found = {"model": parents / model} | ({"pairs": parents / pairs} if pairs else {})
    return reward.build(config, found, folder)


LORA = dict(lora=make_lora(rank=4), num_epochs=2, loss="plackett_luce",
            optimizer=dict(get_config().reward.optimizer, learning_rate=0.02, warmup_steps=1))


@pytest.fixture(scope="module")
def trained(parents, tmp_path_factory):
    """The stage's folder and metrics."""
    folder = tmp_path_factory.mktemp("trained") / "reward"
    return folder, run(parents, folder)


@pytest.fixture(scope="module")
def adapted(parents, tmp_path_factory):
    """The same of an adapter and a head."""
    folder = tmp_path_factory.mktemp("adapted") / "reward"
    return folder, run(parents, folder, **LORA)


def test_a_planted_preference_is_learned(trained):
    _, metrics = trained
    assert metrics["heldout_loss"] < 0.3
    assert metrics["accuracy"] > 0.95 and metrics["accuracy_low"] > 0.85
    assert metrics["heldout_accuracy"] == pytest.approx(metrics["accuracy"], abs=0.02)
    assert metrics["over_length_low"] > 0.1
    assert set(metrics["accuracy_by_source"]) == {"source0", "source1"}
    assert 0 <= metrics["calibration_error"] < 0.3 and len(metrics["accuracy_by_margin"]) == 4
    assert metrics["train_groups"] + metrics["heldout_groups"] == 120
    assert metrics["pairs"] == 360 and metrics["max_answers"] == 3 and metrics["left_out"] == {}
    json.dumps(metrics)


def test_held_out_scores_are_written_and_no_held_out_prompt_is_trained_on(trained):
    folder, metrics = trained
    rows = read_jsonl(folder / "heldout.jsonl")
    assert len(rows) == metrics["heldout_groups"]
    right = [row["scores"][i] > row["scores"][j] for row in rows
             for i, j in ((0, 1), (0, 2), (1, 2)) for i, j in (
                 ((i, j),) if row["values"][i] > row["values"][j] else ((j, i),))]
    assert metrics["accuracy"] == pytest.approx(np.mean(right))
    prompts = {part: {tuple(example.tokens[:15].tolist())
                      for group in map(Examples(folder / "examples", part).__getitem__, range(
                          metrics[f"{part}_groups"])) for example in group}
               for part in (TRAIN, HELDOUT)}
    assert prompts[TRAIN].isdisjoint(prompts[HELDOUT])


def test_scores_have_mean_0_and_deviation_1_over_the_training_answers(trained):
    folder, metrics = trained
    examples = Examples(folder / "examples")
    model = load_reward(folder, Execution())
    texts = [model.tokenizer.decode(examples.example(n).tokens)
             for n in range(metrics["train_examples"])]
    conversations = []
    for text in texts:
        question, answer = text.removeprefix("<|bos|><|user|>").removesuffix("<|end|>").split(
            "<|end|><|assistant|>")
        conversations.append(ask(question, answer))
    scores = model.score(conversations)
    assert metrics["normalised_on"] == len(scores)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scores.std()) == pytest.approx(1, abs=1e-3)
    few = model.score(conversations[:5], batch_size=2)
    np.testing.assert_allclose(few, scores[:5], atol=1e-5)


def test_goes_on_from_a_reward_model_and_normalises_by_a_reference(trained, parents, tmp_path):
    rows = [{"question": f"question {n}?", "answer": "du fe gi " * (1 + n % 3)} for n in range(9)]
    path = tmp_path / "reference.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = run(parents, tmp_path / "reward", model=trained[0], reference=str(path),
                  num_epochs=1)
    assert metrics["untouched_heldout_accuracy"] > 0.9, "the head that it had is kept"
    assert metrics["normalised_on"] == 9
    result = score_file(tmp_path / "reward", path, tmp_path / "scores.jsonl", batch_size=4)
    assert result["answers"] == 9 and result["score"] == pytest.approx(0, abs=1e-3)
    scores = [row["score"] for row in read_jsonl(tmp_path / "scores.jsonl")]
    assert np.std(scores) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("fixture, changes", [("trained", {}), ("adapted", LORA)])
def test_a_run_that_stopped_ends_bit_for_bit_as_one_that_did_not(request, parents, tmp_path,
                                                                 fixture, changes):
    folder, first = request.getfixturevalue(fixture)
    losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    again = tmp_path / "again"
    again.mkdir()
    for name in ("checkpoints", "examples"):
        shutil.copytree(folder / name, again / name)
    for name in ("metrics.jsonl", "untouched.json"):
        shutil.copy(folder / name, again)
    for step in (again / "checkpoints").iterdir():
        if step.name.isdigit() and int(step.name) > 10:
            shutil.rmtree(step)
    second = run(parents, again, **changes)
    assert [row["loss"] for row in read_metrics(again / "metrics.jsonl")
            if "loss" in row] == losses
    assert read_json(again / "model.json") == read_json(folder / "model.json")
    for name in first.keys() - {"goodput_frac"}:
        assert second[name] == first[name], name


def test_the_head_is_trained_beside_an_adapter(adapted):
    folder, metrics = adapted
    assert metrics["accuracy"] > 0.8
    record = next((folder / "checkpoints").rglob("record/metadata"))
    names = {name.split("/")[-1] for name in read_json(record)["leaves"]}
    assert {"score_DY", "score_bias_Y", "wq_a_DI"} <= names and "wq_DHK" not in names
    assert read_description(folder).config.score_head


@pytest.mark.full
def test_an_encoder_learns_as_well_by_margins_of_scores(parents, tmp_path):
    metrics = run(parents, tmp_path / "reward", model="encoder", margin="scores", num_epochs=4,
                  heldout_frac=0.0)
    losses = [row["loss"] for row in read_metrics(tmp_path / "reward" / "metrics.jsonl")]
    assert losses[-1] < 0.5 < losses[0] - 0.5 and "accuracy" not in metrics
    config = read_description(tmp_path / "reward").config
    assert (config.family, config.score_head, config.masked_head) == ("encoder", True, False)


def test_a_reward_model_is_refused_by_stages_that_need_text(trained, tmp_path):
    folder, _ = trained
    config = quickstart_config("smoke")
    with pytest.raises(UserError, match="is a reward model, which gives scores and no text"):
        build_sft(config, {"model": folder}, tmp_path)


@pytest.mark.parametrize("changes, line", [
    (dict(loss="hinge"), "reward.loss='hinge': is none of bradley_terry, plackett_luce"),
    (dict(margin="ranks"), "reward.margin='ranks': is none of none, scores"),
    (dict(loss="plackett_luce", margin="scores"), "is part of bradley_terry alone"),
    (dict(overlong="shorten"), "reward.overlong='shorten': is none of drop, cut, fail"),
    (dict(pairs=""), "reward: inputs, pairs: give no ranking to train on"),
    (dict(row_length=8), r"give no ranking to train on \(left out: 120 too_long\)"),
    (dict(batch_size=12, run=dict(get_config().reward.run, num_microbatches=5)),
     "is not divisible by 8 data shards x 5 microbatches")])
def test_what_does_not_fit_is_refused_in_one_line(parents, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        run(parents, tmp_path / "reward", **changes)


# What is written ----------------------------------------------------------------------------------


def write(preferences, folder, **changes):
    section = get_config().reward
    section.update(dict(row_length=40, heldout_frac=0.0, overlong="drop") | changes)
    writer = RankingWriter(section, TOKENIZER, is_encoder=False)
    return writer.write(folder, preferences), folder


def texts(folder, index):
    return [TOKENIZER.decode(example.tokens) for example in Examples(folder)[index]]


def test_an_answer_ends_with_its_end_once_and_one_that_was_cut_without(tmp_path):
    preference = Preference(ask("q"), ("whole", "half"), (1, 2), finishes=("stop", "length"))
    _, folder = write([preference], tmp_path / "examples")
    assert texts(folder, 0) == ["<|bos|><|user|>q<|end|><|assistant|>whole<|end|>",
                                "<|bos|><|user|>q<|end|><|assistant|>half"]
    row = RankedRows(Examples(folder), row_length=40, num_answers=3)[0]
    assert row.is_real_BJ.tolist() == [True, True, False]
    assert row.value_BJ.tolist() == [-1, -2, 0]
    lengths = [11, 9, 0]
    assert row.segment_ids_BJL.sum(axis=1).tolist() == lengths
    weights = [example.weights.sum() for example in Examples(folder)[0]]
    assert weights == [6, 4], "tokens of the answers, for the baseline of length"


def test_what_teaches_nothing_is_counted_by_its_reason(tmp_path):
    q = ask("q")
    rows = [Preference(q, ("a", "b"), (1, 1)), Preference(q, ("a",), (1,)),
            Preference(q, ("a", " "), (1, 2)), Preference(q, ("a", "a"), (1, 2)),
            Preference(q, ("a", "b"), (1, 2), scores=(math.nan, 1.0)),
            Preference(q, ("a", "x" * 60), (1, 2)),
            Preference(Conversation((Message("tool", "t"),)), ("a", "b"), (1, 2)),
            Preference(q, ("a", "b", "", "a"), (1, 2, 3, 4))]
    described, folder = write(rows, tmp_path / "examples")
    assert described["left_out"] == {
        "tied": 1, "group_of_one": 1, "empty_answer": 2, "equal": 2,
        "score_not_finite": 1, "too_long": 1, "not_rendered": 1}
    assert described["parts"][TRAIN]["groups"] == 1 and len(texts(folder, 0)) == 2
    with pytest.raises(UserError, match="preference 1: orders no two answers"):
        write(rows, tmp_path / "fails", faulty="fail")


def test_scores_that_a_margin_needs_must_be_there_and_agree_with_the_ranks(tmp_path):
    q = ask("q")
    rows = [Preference(q, ("a", "b"), (1, 2)), Preference(q, ("a", "b"), (1, 2), scores=(1, 2)),
            Preference(q, ("a", "b"), (1, 2), scores=(2.5, 1))]
    described, folder = write(rows, tmp_path / "examples", margin="scores")
    assert described["left_out"] == {"no_scores": 1, "scores_against_ranks": 1}
    assert [example.value for example in Examples(folder)[0]] == [2.5, 1]


def test_cut_keeps_the_answers_and_the_newest_part_of_one_prompt(tmp_path):
    preference = Preference(ask("0123456789" * 4), ("short", "a longer one"), (1, 2))
    described, folder = write([preference], tmp_path / "examples", overlong="cut", row_length=30)
    # <|end|><|assistant|> and the longest answer with its end leave 15 of 30 to the prompt.
    kept = "<|bos|>" + ("0123456789" * 4)[-14:] + "<|end|><|assistant|>"
    assert texts(folder, 0) == [f"{kept}short<|end|>", f"{kept}a longer one<|end|>"]
    assert described["cut"] == 1 and described["left_out"] == {}
    with pytest.raises(UserError, match="preference 1: has 57 tokens, a row 30"):
        write([preference], tmp_path / "fails", overlong="fail", row_length=30)
    described, _ = write([preference], tmp_path / "none", overlong="cut", row_length=14)
    assert described["left_out"] == {"too_long": 1}


def test_the_last_batch_of_held_out_prompts_is_filled_with_none(tmp_path):
    _, folder = write(rankings(5), tmp_path / "examples", row_length=60)
    rows = RankedRows(Examples(folder), row_length=60, num_answers=3)
    batches = list(padded_rankings(rows, 4))
    assert [batch.is_real_BJ.sum() for batch in batches] == [12, 3]
    assert {batch.tokens_BJL.shape for batch in batches} == {(4, 3, 60)}
