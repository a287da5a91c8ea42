"""Preferences: the loss by its formula, ln 2 at the start, pairs without padding's influence."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.dpo import make_pair_rows, with_reference
from align.losses.preference import PreferenceBatch, answer_logps, dpo_loss
from align.pairs import make_pairs
from align.sft import make_rows
from core.errors import UserError
from data.batch import Batch, pack_examples, stack
from data.chat import ask, render
from data.tokenizer import Tokenizer
from model.parallel.sharding import make_mesh

row_logps = jax.jit(answer_logps, static_argnames="config")
loss = jax.jit(partial(dpo_loss, key=jax.random.key(0)),
               static_argnames=("config", "beta", "nll_coef"))

TOKENIZER = Tokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
PAIRS = [{"question": "a?", "chosen": "yes", "rejected": "no way"},
         {"question": "what is b?", "chosen": "it is b", "rejected": "c"},
         {"question": "c", "chosen": "", "rejected": "word"}]


def preferences(params, config, row_length=32) -> PreferenceBatch:
    rows, _ = make_pair_rows(PAIRS, TOKENIZER, row_length)
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return stack(with_reference(rows, params, config=config, mesh=mesh, batch_size=2))


def moved(params):
    """The parameters, a little elsewhere."""
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
    def logp(p, question, answer):
        tokens, weights = render(ask(question, answer), TOKENIZER)
        row, _ = pack_examples([(tokens, weights)], 40)
        return float(row_logps(p, stack(row), config=config)[0])

    policy, beta, total = moved(params), 0.5, 0.0
    for pair in PAIRS:
        ratios = [logp(policy, pair["question"], pair[side]) -
                  logp(params, pair["question"], pair[side]) for side in ("chosen", "rejected")]
        total += math.log1p(math.exp(-beta * (ratios[0] - ratios[1])))
    loss_sum, _ = loss(policy, preferences(params, config), config=config, beta=beta, nll_coef=0.0)
    assert float(loss_sum) == pytest.approx(total, rel=1e-5)


def test_nll_coef_adds_the_chosen_answers_loss_per_token(params, config):
    pairs = preferences(params, config)
    plain, _ = loss(params, pairs, config=config, beta=0.1, nll_coef=0.0)
    both, metrics = loss(params, pairs, config=config, beta=0.1, nll_coef=2.0)
    logp_B = row_logps(params, pairs.chosen, config=config)
    lengths = [len(pair["chosen"]) + 1 for pair in PAIRS]  # a token per character, and the end
    expected = -sum(float(logp) / n for logp, n in zip(logp_B, lengths))
    assert float(both - plain) == pytest.approx(2.0 * expected, rel=1e-5)
    assert float(metrics["nll"][0]) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["loss"][0]) == pytest.approx(float(plain)), "reported apart"


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
    rows, num_too_long = make_pair_rows(PAIRS, TOKENIZER, 32)
    assert num_too_long == 0
    for (chosen, rejected), pair in zip(rows, PAIRS):
        for row, side in ((chosen, "chosen"), (rejected, "rejected")):
            scored = row.targets_BL[row.loss_weights_BL > 0]
            assert TOKENIZER.decode(scored) == pair[side] + "<|end|>"


def test_a_pair_with_a_long_side_is_left_out_whole():
    rows, num_too_long = make_pair_rows(
        [*PAIRS, {"question": "q", "chosen": "short", "rejected": "x" * 50}], TOKENIZER, 32)
    assert (len(rows), num_too_long) == (len(PAIRS), 1)


def test_pairs_are_best_against_worst_and_ties_are_counted():
    def row(question, completion, score):
        return {"task": "t", "family": "f", "question": question, "completion": completion,
                "score": score}
    rows = [row("q1", "mid", 0.5), row("q1", "bad", 0.1), row("q1", "good", 0.9),
            row("q2", "x", 0.4), row("q2", "y", 0.4), row("q2", "z", 0.45)]
    pairs, outcomes = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert [(p["question"], p["chosen"], p["rejected"]) for p in pairs] == [("q1", "good", "bad")]
    assert dict(outcomes) == {"paired": 1, "too_close": 1}


def test_sft_loss_sees_the_assistant_alone():
    class Section:
        out, row_length, batch_size = "sft", 64, 1
    conversations = [ask("what is it?", "a thing"), ask("and this?", "another")]
    rows = make_rows(conversations, TOKENIZER, Section)
    batch: Batch = stack(rows)
    scored = batch.targets_BL[batch.loss_weights_BL > 0]
    assert TOKENIZER.decode(scored) == "a thing<|end|>another<|end|>"
    assert set(np.unique(batch.loss_weights_BL)) == {0.0, 1.0}


def test_sft_refuses_less_than_one_batch():
    class Section:
        out, row_length, batch_size = "sft", 64, 5
    with pytest.raises(UserError, match="do not fill one batch of 5"):
        make_rows([ask("q", "a")], TOKENIZER, Section)
