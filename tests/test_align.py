"""Preferences: the loss by its formula, ln 2 at the start, independence of padding."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from align.dpo import make_pair_rows, with_reference
from align.finetune import make_batches
from align.losses.preference import PreferenceBatch, answer_logps, dpo_loss
from align.pairs import describe_pairs, make_pairs
from align.sft import make_conversations, make_rows
from core.errors import UserError
from data.batch import Batch, pack_examples, stack
from data.chat import ask, render
from data.preferences import Preference
from data.tokenizers.bpe import BytePairTokenizer
from model.execution import Execution
from model.parallel.sharding import make_mesh
from train.setup import Setup

row_logps = jax.jit(partial(answer_logps, execution=Execution()), static_argnames="config")
loss = jax.jit(partial(dpo_loss, execution=Execution(), key=jax.random.key(0)),
               static_argnames=("config", "beta", "nll_coef"))

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
PAIRS = [Preference(ask(question), (chosen, rejected), (1, 2)) for question, chosen, rejected in (
    ("a?", "yes", "no way"), ("what is b?", "it is b", "c"), ("c", "", "word"))]
SIDES = {"chosen": 0, "rejected": 1}


def preferences(params, config, row_length=32) -> PreferenceBatch:
    rows, _ = make_pair_rows(PAIRS, TOKENIZER, row_length)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return stack(with_reference(rows, params, setup=Setup(config, Execution(), mesh),
                                batch_size=2))


def moved(params):
    """The parameters, slightly perturbed."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    return jax.tree.unflatten(tree, [leaf + 0.05 * jax.random.normal(key, leaf.shape)
                                     for leaf, key in zip(leaves, keys)])


def test_first_loss_is_ln_2(params, config):
    loss_sum, metrics = loss(params, preferences(params, config), config=config, beta=0.3,
                             nll_coef=0.0)
    assert float(loss_sum) / len(PAIRS) == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics["margin"][0]) == pytest.approx(0, abs=1e-5)


def test_loss_is_the_formula_in_float64(params, config):
    """arXiv 2305.18290, equation 7, from each answer's own log-probability."""
    def logp(p, pair, side):
        question = pair.prompt.messages[0].content
        tokens, weights = render(ask(question, pair.responses[SIDES[side]]), TOKENIZER)
        row, _ = pack_examples([(tokens, weights)], 40)
        return float(row_logps(p, stack(row), config=config)[0])

    policy, beta, total = moved(params), 0.5, 0.0
    for pair in PAIRS:
        ratios = [logp(policy, pair, side) - logp(params, pair, side) for side in SIDES]
        total += math.log1p(math.exp(-beta * (ratios[0] - ratios[1])))
    loss_sum, _ = loss(policy, preferences(params, config), config=config, beta=beta, nll_coef=0.0)
    assert float(loss_sum) == pytest.approx(total, rel=1e-5)


def test_nll_coef_adds_the_chosen_answers_loss_per_token(params, config):
    pairs = preferences(params, config)
    plain, _ = loss(params, pairs, config=config, beta=0.1, nll_coef=0.0)
    both, metrics = loss(params, pairs, config=config, beta=0.1, nll_coef=2.0)
    logp_B = row_logps(params, pairs.chosen, config=config)
    lengths = [len(pair.responses[0]) + 1 for pair in PAIRS]  # a token per character, and the end
    expected = -sum(float(logp) / n for logp, n in zip(logp_B, lengths))
    assert float(both - plain) == pytest.approx(2.0 * expected, rel=1e-5)
    assert float(metrics["nll"][0]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"][0]) == pytest.approx(float(plain)), "reported separately"


def test_loss_falls_when_the_chosen_answer_gets_likelier(params, config):
    pairs = preferences(params, config)
    gradient = jax.jit(jax.grad(
        lambda p: loss(p, pairs, config=config, beta=0.1, nll_coef=0.0)[0]))(params)
    stepped = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    before = row_logps(params, pairs.chosen, config=config)
    after = row_logps(stepped, pairs.chosen, config=config)
    worse = (row_logps(stepped, pairs.rejected, config=config)
             - row_logps(params, pairs.rejected, config=config))
    assert float(jnp.sum(after - before) - jnp.sum(worse)) > 0


def test_amount_of_padding_does_not_matter(params, config):
    losses = [float(loss(moved(params), preferences(params, config, row_length), config=config,
                         beta=0.2, nll_coef=0.0)[0])
              for row_length in (24, 40)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_only_the_answer_and_its_end_are_scored():
    rows, counts = make_pair_rows(PAIRS, TOKENIZER, 32)
    assert counts == {"too_long": 0, "equal": 0, "tied": 0, "empty_chosen": 1}
    for (chosen, rejected), pair in zip(rows, PAIRS):
        for row, side in ((chosen, "chosen"), (rejected, "rejected")):
            scored = row.targets_BL[row.loss_weights_BL > 0]
            assert TOKENIZER.decode(scored) == pair.responses[SIDES[side]] + "<|end|>"


def test_a_pair_with_a_long_side_is_left_out_whole():
    rows, counts = make_pair_rows(
        [*PAIRS, Preference(ask("q"), ("short", "x" * 50), (1, 2))], TOKENIZER, 32)
    assert (len(rows), counts["too_long"]) == (len(PAIRS), 1)


def test_pairs_of_equal_answers_are_left_out_and_counted():
    equal = Preference(ask("q"), ("same", "same", "other"), (1, 2, 3))
    rows, counts = make_pair_rows([*PAIRS, equal], TOKENIZER, 32)
    assert (len(rows), counts["equal"]) == (len(PAIRS) + 2, 1)


def test_a_ranking_trains_on_all_its_pairs_and_a_tie_on_none():
    ranking = Preference(ask("q"), ("b", "a", "c"), (2, 1, 3))
    tie = Preference(ask("q"), ("x", "y"), (1, 1))
    rows, counts = make_pair_rows([ranking, tie], TOKENIZER, 32)
    assert counts["tied"] == 1
    sides = [tuple(TOKENIZER.decode(row.targets_BL[row.loss_weights_BL > 0]) for row in pair)
             for pair in rows]
    assert sides == [("a<|end|>", "b<|end|>"), ("a<|end|>", "c<|end|>"), ("b<|end|>", "c<|end|>")]


def test_the_end_of_a_cut_answer_is_not_trained_on():
    cut = Preference(ask("q"), ("half an", "whole"), (2, 1), finishes=("length", "stop"))
    (rows,), _ = make_pair_rows([cut], TOKENIZER, 32)
    assert [TOKENIZER.decode(row.targets_BL[row.loss_weights_BL > 0]) for row in rows] == [
        "whole<|end|>", "half an"]


def scored(question, *answers):
    return [{"task": "t", "family": "f", "question": question, "completion": completion,
             "score": score, "finish": "".join(finish) or "stop"}
            for completion, score, *finish in answers]


def test_a_cut_answer_is_preferred_only_where_none_is_whole():
    rows = (scored("q1", ("whole", 0.5), ("cut", 0.9, "length"), ("bad", 0.1, "length"))
            + scored("q2", ("cut", 0.9, "length"), ("none", 0.0, "refused"), ("a", 0.1, "length"))
            + scored("q3", ("whole", 0.5), ("none", 0.0, "refused"), ("other", 0.2))
            + scored("q4", *[("none", 0.0, "refused")] * 3))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert [(pair.responses, pair.finishes) for pair in pairs] == [
        (("whole", "bad"), ("stop", "length")), (("cut", "a"), ("length", "length")),
        (("whole", "other"), ("stop", "stop"))]
    assert left_out == {"equal": 1, "too_close": 0}
    described = describe_pairs(pairs, TOKENIZER)
    assert (described["cut_chosen"], described["cut_rejected"]) == (1, 2)


def test_pairs_are_best_against_worst_and_close_ones_are_left_out():
    rows = scored("q1", ("mid", 0.5), ("bad", 0.1), ("good", 0.9)) + scored(
        "q2", ("x", 0.4), ("y", 0.4), ("z", 0.45)) + scored("q3", ("a", 0), ("a", 0), ("b", 0))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert pairs == [Preference(
        ask("q1"), ("good", "bad"), (1, 2), "t", {"family": "f", "scores": [0.9, 0.1]},
        ("stop", "stop"))]
    assert left_out == {"equal": 1, "too_close": 1}
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.0)
    assert len(pairs) == 2, "a tie has no order"
    assert left_out == {"equal": 1, "too_close": 0}


def test_pairs_are_described_by_scores_lengths_and_empty_answers():
    pairs, _ = make_pairs(scored("a", ("good one", 1.0), ("bad", 0.0))
                          + scored("b", ("ok", 0.5), (" ", 0.25)), num_samples=2, min_margin=0)
    assert describe_pairs(pairs, TOKENIZER) == {
        "chosen_score": 0.75, "rejected_score": 0.125, "chosen_tokens_mean": 5.0,
        "rejected_tokens_mean": 2.0, "empty_chosen": 0, "empty_rejected": 1,
        "cut_chosen": 0, "cut_rejected": 0,
        "longer_chosen_frac": 1.0}


def make_section(**changes) -> ConfigDict:
    return ConfigDict(dict(out="sft", row_length=64, batch_size=1, num_epochs=1, seed=0,
                           tasks={}, inputs="", template="", train_on="assistant") | changes)


def test_sft_loss_is_over_assistant_tokens_only():
    conversations = [ask("what is it?", "a thing"), ask("and this?", "another")]
    rows, _ = make_rows(conversations, TOKENIZER, make_section())
    batch: Batch = stack(rows)
    scored = batch.targets_BL[batch.loss_weights_BL > 0]
    assert TOKENIZER.decode(scored) == "a thing<|end|>another<|end|>"
    assert set(np.unique(batch.loss_weights_BL)) == {0.0, 1.0}


def test_sft_trains_on_a_users_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1?", "answer": "one"}\n'
                    '{"messages": [{"role": "user", "content": "2?"}, '
                    '{"role": "assistant", "content": "two"}]}\n')
    section = make_section(tasks={"verifiable": 3, "documentation": 0}, inputs=str(path))
    conversations = make_conversations(section, corpus=None)
    assert len(conversations) == 5
    answers = {c.messages[0].content: c.messages[1].content for c in conversations}
    assert answers["1?"] == "one" and answers["2?"] == "two"
    assert conversations == make_conversations(section, corpus=None)


def test_sft_refuses_an_empty_training_set():
    with pytest.raises(UserError, match="tasks, inputs: give no conversation"):
        make_conversations(make_section(tasks={"verifiable": 0}), corpus=None)


def test_conversations_that_teach_nothing_are_left_out_and_counted(capsys):
    rows, left_out = make_rows([ask("q", "a"), ask("q", " \n"), ask("q"), ask("q", "a" * 70)],
                               TOKENIZER, make_section())
    assert len(rows) == 1 and left_out == {"too_long": 1, "empty_answers": 2}
    assert capsys.readouterr().err.splitlines() == [
        "sft: left out 1 of 4 conversations that are longer than 64 tokens",
        "sft: left out 2 of 4 conversations that are without a text to learn from"]


@pytest.mark.parametrize("num_rows, batch_size, num_epochs", [(7, 3, 1), (7, 3, 2), (6, 3, 2)])
def test_every_row_is_trained_on_in_every_epoch(num_rows, batch_size, num_epochs, capsys):
    section = make_section(batch_size=batch_size, num_epochs=num_epochs)
    given = [np.array(number) for number in range(num_rows)]
    batches = make_batches(given, section)
    seen = np.concatenate([batches[i] for i in range(len(batches))])
    missing = -num_rows * num_epochs % batch_size
    assert len(seen) == num_rows * num_epochs + missing
    counts = np.bincount(seen, minlength=num_rows)
    assert counts.min() == num_epochs and counts.max() == num_epochs + bool(missing)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([f"sft: {missing} of {num_rows} rows are repeated to fill the last batch of "
                      f"{batch_size}"] if missing else [])


def test_less_than_one_batch_is_refused():
    section = make_section(batch_size=5)
    rows, _ = make_rows([ask("q", "a")], TOKENIZER, section)
    with pytest.raises(UserError, match="do not fill one batch of 5"):
        make_batches(rows, section)
