"""Reward models in evaluation: rendering, scores that do not depend on the batch, measures."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from hub_tokenizers import word_piece, write_hub

from core.artifacts import make_lineage, write_json
from core.errors import UserError
from data.answers import Answer, cut_prompt, render_answer
from data.chat import Conversation, Message, ask
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.hub import import_tokenizer
from eval.measures.ranked import (
    RankedPrompt,
    accuracy_by_margin,
    calibration_error,
    measure_rankings,
)
from eval.respond import reward as respond
from eval.respond.reward import RewardModel, load_reward
from eval.reward import score_file
from model.directory import save_model
from model.execution import Execution
from model.families.registry import init

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})


@pytest.fixture(scope="module")
def model(config):
    config = dataclasses.replace(config, score_head=True)
    return RewardModel(jax.jit(partial(init, config))(jax.random.key(0)), config, Execution(),
                       TOKENIZER, context_tokens=100)


def conversations(count, seed=0):
    rng = np.random.default_rng(seed)
    return [ask("q" * int(rng.integers(1, 50)), "ab " * int(rng.integers(1, 12)))
            for _ in range(count)]


def test_scores_depend_neither_on_the_batch_nor_on_the_others(model):
    asked = conversations(7)
    together = model.score(asked, batch_size=4)
    assert together.dtype == np.float32 and len(set(together.tolist())) > 4
    np.testing.assert_allclose(model.score(asked[::-1], batch_size=3)[::-1], together, atol=1e-5)
    np.testing.assert_allclose(model.score(asked[2:3], batch_size=1), together[2:3], atol=1e-5)
    assert model.score([]).shape == (0,)


def test_lengths_share_a_few_programs(model):
    before = respond._fetched_scores._cache_size()
    for length in (1, 5, 20, 30, 40, 60, 70):
        model.score([ask("q", "a" * length)], batch_size=5)
    assert respond._fetched_scores._cache_size() - before <= 2, "rows of 64 tokens and of 100"


def test_what_is_longer_than_the_context_loses_its_oldest_part(model, capsys):
    answer, newest = "the answer", "z" * 86     # 100 tokens with the answer and three marks
    scores = [model.score([ask(old + newest, answer)], batch_size=1)[0]
              for old in ("a" * 90, "b" * 300)]
    assert scores[0] == scores[1]
    assert "1 of 1 conversations are scored without their oldest part" in capsys.readouterr().err
    with pytest.raises(UserError, match="answer 2: is longer than the 100 tokens"):
        model.score([ask("q", "a"), ask("q", "a" * 99)])


def test_a_conversation_without_an_answer_is_refused(model):
    for conversation in (ask("q"), ask("q", "")):
        with pytest.raises(UserError, match="the last message: is no answer of the assistant"):
            model.score([conversation])


def test_several_turns_are_rendered_as_they_are_taught():
    conversation = Conversation((
        Message("system", "s"), Message("user", "q"), Message("assistant", "a"),
        Message("user", "r"), Message("assistant", "last")))
    answer = render_answer(conversation, TOKENIZER)
    assert TOKENIZER.decode(answer.tokens) == (
        "<|bos|><|system|>s<|end|><|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|>"
        "<|assistant|>last<|end|>")
    assert TOKENIZER.decode(answer.tokens[answer.start:]) == "last<|end|>"


def test_an_encoder_reads_prompt_and_answer_between_its_own_tokens(tmp_path):
    tokenizer = import_tokenizer(write_hub(tmp_path / "hub", word_piece(), tokenizer_config={
        "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]",
        "mask_token": "[MASK]", "tokenizer_class": "BertTokenizer"}))
    answer = render_answer(ask("the cat", "a cat"), tokenizer, is_encoder=True)
    assert tokenizer.decode(answer.tokens) == "[CLS] the cat [SEP] a cat [SEP]"
    assert tokenizer.decode(answer.tokens[answer.start:]) == "a cat [SEP]"
    cut = render_answer(ask("the cat", "a cat"), tokenizer, is_encoder=True, is_cut=True)
    assert cut.tokens == answer.tokens[:-1]
    with pytest.raises(UserError, match="has no chat template"):
        render_answer(ask("the cat", "a cat"), tokenizer)


def test_cut_answers_share_their_prompt():
    answers = [Answer([0, 1, 2, 3, 4, 5, 50], 6), Answer([0, 1, 2, 3, 4, 5, 60, 61, 62], 6)]
    assert cut_prompt(answers, 9) == answers
    assert cut_prompt(answers, 6) == [Answer([0, 4, 5, 50], 3), Answer([0, 4, 5, 60, 61, 62], 3)]
    assert cut_prompt(answers, 4) is None


def test_a_file_is_scored_and_what_is_no_answer_is_counted(model, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    TOKENIZER.save(tmp_path)
    write_json(folder / "lineage.json", make_lineage(stage="reward", config={}, inputs={}, code=""))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    TOKENIZER.save(tokenizer)
    save_model(folder, model.params, model.config, tokenizer, chat=True, context_tokens=100)
    path = tmp_path / "answers.jsonl"
    rows = [{"question": "q", "answer": text} for text in ("one", "two", "")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_file(folder, path, tmp_path / "out.jsonl", batch_size=2)
    scores = model.score([ask("q", "one"), ask("q", "two")], batch_size=2)
    assert result["score"] == pytest.approx(float(scores.mean()), abs=1e-6)
    assert (result["answers"], result["left_out"]) == (2, {"empty_answer": 1})
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["source"] for row in written] == ["answers"] * 2
    np.testing.assert_allclose([row["score"] for row in written], scores, atol=1e-6)


def test_a_model_without_a_scalar_head_is_no_reward_model(params, config, tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    TOKENIZER.save(tokenizer)
    folder = tmp_path / "base"
    folder.mkdir()
    write_json(folder / "lineage.json", make_lineage(stage="sft", config={}, inputs={}, code=""))
    save_model(folder, params, config, tokenizer, chat=True, context_tokens=64)
    with pytest.raises(UserError, match="base: is no reward model"):
        load_reward(folder, Execution())


# Measures -----------------------------------------------------------------------------------------

PROMPTS = [RankedPrompt("a", [2.0, 1.0], [-1, -2], [5, 9]),
           RankedPrompt("a", [0.0, 0.0], [-1, -2], [7, 7]),
           RankedPrompt("b", [3.0, 1.0, 2.0], [-1, -2, -2], [4, 2, 6])]


def test_accuracies_are_means_over_prompts_and_ties_are_wrong():
    found = measure_rankings(PROMPTS, prefers_longer=False)
    assert found["accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["longer_accuracy"] == pytest.approx((0 + 0 + 0.5) / 3)
    assert found["shorter_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["over_length"] == pytest.approx((0 + 0 + 0.5) / 3)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]
    assert (found["heldout_prompts"], found["heldout_pairs"]) == (3, 4)
    assert found["accuracy_by_source"] == {"a": {"accuracy": 0.5, "prompts": 2},
                                           "b": {"accuracy": 1.0, "prompts": 1}}
    scores, lengths = (np.concatenate([getattr(p, n) for p in PROMPTS])
                       for n in ("scores", "lengths"))
    assert found["length_correlation"] == pytest.approx(np.corrcoef(scores, lengths)[0, 1])


def test_margins_are_quartiles_of_the_differences_sizes():
    gaps = np.array([0.1, -0.2, 0.3, -0.4, 5.0, 6.0, -7.0, 8.0])
    assert accuracy_by_margin(gaps) == [0.5, 0.5, 1.0, 0.5]
    assert accuracy_by_margin(gaps[:1]) == [1.0, None, None, None]


def test_calibration_is_0_for_probabilities_that_hold_and_large_for_others():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=200_000) * 2
    log_odds = np.abs(log_odds) * np.where(
        rng.random(log_odds.size) < 1 / (1 + np.exp(-np.abs(log_odds))), 1, -1)
    assert calibration_error(log_odds) < 0.005
    assert calibration_error(10 * log_odds) > 0.1
    assert calibration_error(np.array([1000.0, -1000.0])) == pytest.approx(0.5)
