"""Sampling: which tokens the filters keep, how often each is drawn, and rows apart from others."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.generation.sampling import GREEDY_BELOW, Sampling, adjust, sample, stack_sampling

adjust_, sample_ = jax.jit(adjust), jax.jit(sample)


def _keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def _adjusted(logits_BV, *rows, seen_BV=None):
    return np.asarray(adjust_(jnp.asarray(logits_BV, jnp.float32), stack_sampling(rows), seen_BV))


def _drawn(logits_V, row, num=400, seed=0):
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V, jnp.float32), (num, len(logits_V)))
    return np.asarray(sample_(logits_BV, stack_sampling([row] * num), _keys(num, seed)))


def _kept(p_V, **how):
    [adjusted_V] = _adjusted(np.log([p_V]), Sampling(**how))
    return set(np.flatnonzero(np.isfinite(adjusted_V)).tolist())


FALLING, EQUAL = [0.4, 0.3, 0.2, 0.1], [0.25] * 4


@pytest.mark.parametrize("p_V, how, kept", [
    (FALLING, {}, {0, 1, 2, 3}),
    (FALLING, {"top_p": 0.8}, {0, 1, 2}),       # the token that crosses it stays
    (FALLING, {"top_p": 0.7}, {0, 1}),          # an exact sum is not exceeded
    (FALLING, {"top_p": 0.4}, {0}), (FALLING, {"top_p": 0.41}, {0, 1}),
    (FALLING, {"top_p": 1e-9}, {0}), (FALLING, {"top_p": 0.9999}, {0, 1, 2, 3}),
    (FALLING[::-1], {"top_p": 0.8}, {1, 2, 3}), ([0.2, 0.4, 0.1, 0.3], {"top_k": 2}, {1, 3}),
    (FALLING, {"top_k": 1}, {0}), (FALLING, {"top_k": 2}, {0, 1}),
    (FALLING, {"top_k": 99}, {0, 1, 2, 3}),
    (EQUAL, {"top_k": 2}, {0, 1}), (EQUAL, {"top_k": 3}, {0, 1, 2}),
    (EQUAL, {"top_p": 0.5}, {0, 1}),
    ([0.1, 0.3, 0.3, 0.3], {"top_k": 2}, {1, 2}),       # equal tokens below a higher one
    ([0.4, 0.2, 0.2, 0.2], {"top_p": 0.7}, {0, 1, 2}),
    (FALLING, {"min_p": 0.51}, {0, 1}), (FALLING, {"min_p": 0.2}, {0, 1, 2, 3}),
    (EQUAL, {"min_p": 0.99}, {0, 1, 2, 3}),
    (FALLING, {"top_k": 2, "top_p": 0.55}, {0}),        # of the two that are left it has 4/7
    (FALLING, {"top_p": 0.8, "top_k": 2}, {0, 1}),
    (FALLING, {"top_k": 3, "min_p": 0.6}, {0, 1}),
    (FALLING, {"temperature": 0.2, "top_p": 0.7}, {0}),     # temperature comes before top-p
    (FALLING, {"temperature": 5.0, "min_p": 0.5}, {0, 1, 2, 3}),    # and before min-p
    ([0.7, 0.0, 0.3, 0.0], {"top_k": 3}, {0, 2}),       # impossible tokens stay impossible
    ([0.7, 0.0, 0.3, 0.0], {"top_p": 0.9999999}, {0, 2}),
], ids=str)
def test_a_filter_keeps_exactly_the_smallest_set(p_V, how, kept):
    with np.errstate(divide="ignore"):
        assert _kept(p_V, **how) == kept


def test_the_k_likeliest_are_kept_however_unlikely():
    """Their probabilities are 0 in float32, their order is not."""
    adjusted_BV = _adjusted([[0.0, -3000.0, -2000.0, -1000.0]] * 2, Sampling(top_k=3),
                            Sampling(top_k=3, min_p=1e-6))
    np.testing.assert_array_equal(adjusted_BV, [[0, -np.inf, -2000, -1000],
                                                [0, -np.inf, -np.inf, -np.inf]])


def test_the_sets_of_a_large_vocabulary_are_those_of_sorting():
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(0, 3, (6, 5000)).astype(np.float32)
    logits_BV[:, 1000:1500] = logits_BV[:, 1000:1001]       # many are equal
    logits_BV[0] = -np.abs(logits_BV[0]) - 1                # all signs of a float
    logits_BV[1] = np.abs(logits_BV[1])
    logits_BV[2, ::2] = 0.0
    logits_BV[2, 1::4] = -0.0
    for k, p in ((37, 1.0), (0, 0.83), (700, 0.6), (700, 1.0)):
        adjusted_BV = _adjusted(logits_BV, *[Sampling(top_k=k, top_p=p)] * 6)
        for logits_V, adjusted_V in zip(logits_BV, adjusted_BV):
            order_V = np.argsort(-logits_V, kind="stable")[:k or 5000]  # equal: smaller ids first
            p_V = np.exp(logits_V[order_V].astype(np.float64) - logits_V.max())
            before_V = (np.cumsum(p_V) - p_V) / p_V.sum()
            assert set(np.flatnonzero(np.isfinite(adjusted_V))) == set(order_V[before_V < p])


def test_the_penalty_comes_first_and_touches_what_was_seen_alone():
    logits_BV = np.array([[2.0, -2.0, 1.0, -1.0]] * 3)
    seen_BV = jnp.array([[True, True, False, False], [False] * 4, [True] * 4])
    row = Sampling(temperature=0.5, repetition_penalty=4.0)
    adjusted_BV = _adjusted(logits_BV, row, row, Sampling(temperature=0, repetition_penalty=2.0),
                            seen_BV=seen_BV)
    np.testing.assert_allclose(adjusted_BV, [[-1, -18, 0, -4], [0, -8, -2, -6], [1, -4, 0.5, -2]])
    assert _kept_after_penalty(2.5) == {1} and _kept_after_penalty(1.0) == {0}


def _kept_after_penalty(penalty):
    """Of logits 2 and 1, where the first was seen."""
    [adjusted_V] = _adjusted([[2.0, 1.0]], Sampling(top_k=1, repetition_penalty=penalty),
                             seen_BV=jnp.array([[True, False]]))
    return set(np.flatnonzero(np.isfinite(adjusted_V)).tolist())


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-38, 1e-20, 1e-7, GREEDY_BELOW, 1e-5])
def test_a_temperature_near_zero_takes_the_likeliest_token(temperature):
    logits_V = np.random.default_rng(1).normal(size=50)
    close = np.sort(logits_V)
    assert close[-1] - close[-2] > 1e-3
    row = Sampling(temperature=temperature, top_k=10, top_p=0.5, min_p=0.1)
    assert set(_drawn(logits_V, row, num=20)) == {int(np.argmax(logits_V))}
    assert set(_drawn([0.0, 3e38, 1e38, -3e38], Sampling(temperature=temperature), 20)) == {1}


@pytest.mark.parametrize("logits_V, drawn", [
    ([1e30, -1e30, 1e30, 0.0], {0, 2}), ([-np.inf, 0.0, -np.inf, 0.0], {1, 3}),
    ([-1e38, -1e38, -np.inf, -3e38], {0, 1})], ids=str)
def test_huge_and_infinite_logits_draw_what_they_allow(logits_V, drawn):
    for row in (Sampling(), Sampling(top_p=0.9999), Sampling(top_k=3, min_p=1e-6),
                Sampling(temperature=1e-3)):
        assert set(_drawn(logits_V, row, num=60)) == drawn, row


ROWS = [Sampling(), Sampling(temperature=0), Sampling(temperature=0.3, top_k=5),
        Sampling(top_p=0.7), Sampling(min_p=0.2, repetition_penalty=1.7),
        Sampling(temperature=2.5, top_k=40, top_p=0.95, min_p=0.01),
        Sampling(temperature=0, repetition_penalty=3.0), Sampling(temperature=1e-38, top_p=0.1)]


def test_rows_of_one_batch_draw_what_each_draws_alone():
    rng = np.random.default_rng(2)
    rows = ROWS * 4
    logits_BV = jnp.asarray(rng.normal(0, 2, (len(rows), 60)), jnp.float32)
    seen_BV, keys_B = jnp.asarray(rng.random((len(rows), 60)) < 0.3), _keys(len(rows))
    together_B = np.asarray(sample_(logits_BV, stack_sampling(rows), keys_B, seen_BV))
    for i, row in enumerate(rows):
        alone = sample_(logits_BV[i:i + 1], stack_sampling([row]), keys_B[i:i + 1],
                        seen_BV[i:i + 1])
        assert int(alone[0]) == together_B[i], (i, row)
    order = rng.permutation(len(rows))
    shuffled_B = sample_(logits_BV[order], stack_sampling([rows[i] for i in order]), keys_B[order],
                         seen_BV[order])
    np.testing.assert_array_equal(shuffled_B, together_B[order])


def _chi_square(counted_V, expected_V):
    return float(np.sum((counted_V - expected_V) ** 2 / expected_V))


@pytest.mark.parametrize("row", [Sampling(), Sampling(temperature=2.0),
                                 Sampling(temperature=0.5, top_k=5),
                                 Sampling(top_p=0.8), Sampling(min_p=0.3)], ids=str)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(row):
    logits_V, num = np.array([0.3, 1.7, -0.4, 1.1, 0.9, -2.0, 0.0, 1.65]), 20_000
    p_V = np.exp(logits_V / row.temperature)
    order_V = np.argsort(-p_V)
    is_kept_V = np.isin(np.arange(8), order_V[:row.top_k or 8])
    p_V = p_V * is_kept_V / (p_V * is_kept_V).sum()
    before_V = np.zeros(8)
    before_V[order_V] = np.cumsum(p_V[order_V]) - p_V[order_V]
    p_V = np.where((before_V < row.top_p) & (p_V >= row.min_p * p_V.max()), p_V, 0)
    counted_V = np.bincount(_drawn(logits_V, row, num), minlength=8)
    kept = p_V > 0
    assert counted_V[~kept].sum() == 0
    # 1e-5 of all seeds exceed 35.0 with 7 degrees of freedom, fewer with less.
    assert _chi_square(counted_V[kept], num * p_V[kept] / p_V.sum()) < 35.0
    if kept.sum() > 1:
        uniform_V = np.full(kept.sum(), num / kept.sum())
        assert _chi_square(counted_V[kept], uniform_V) > 35.0, "the test can tell a wrong one"


@pytest.mark.parametrize("wrong", [
    {"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"temperature": -0.1},
    {"temperature": float("nan")}, {"temperature": float("inf")}, {"temperature": 1e39},
    {"top_k": -1}, {"top_k": 2.5}, {"top_k": 2**31}, {"top_p": 0.0}, {"top_p": -0.5},
    {"top_p": 1.1}, {"top_p": float("nan")}, {"top_p": 1e-50}, {"min_p": -0.1}, {"min_p": 1.0},
    {"min_p": float("nan")}, {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0},
    {"repetition_penalty": float("nan")}, {"repetition_penalty": float("inf")},
    {"repetition_penalty": 1e-50}], ids=str)
def test_impossible_sampling_is_refused_in_one_line(wrong):
    [(name, value)] = wrong.items()
    line = re.escape(f"{name}={value}: must ") + f"[^\\n]*: choose another {name}$"
    with pytest.raises(UserError, match=line):
        Sampling(**wrong)


@pytest.mark.full
@pytest.mark.filterwarnings("default")      # of the other library
def test_adjusted_logits_are_those_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng = np.random.default_rng(3)
    logits_BV = rng.normal(0, 4, (4, 3000)).astype(np.float32)
    ids_BL = rng.integers(0, 3000, (4, 200))
    seen_BV = np.zeros(logits_BV.shape, bool)
    np.put_along_axis(seen_BV, ids_BL, True, axis=1)
    for penalty, temperature, k, p, least in itertools.product(
            (1.0, 1.8, 0.6), (1.0, 0.4, 3.0), (0, 1, 50), (1.0, 0.9, 0.3), (0.0, 0.05, 0.5)):
        row = Sampling(temperature=temperature, top_k=k, top_p=p, min_p=least,
                       repetition_penalty=penalty)
        ours_BV = _adjusted(logits_BV, *[row] * 4, seen_BV=jnp.asarray(seen_BV))
        steps = [transformers.RepetitionPenaltyLogitsProcessor(penalty),
                 transformers.TemperatureLogitsWarper(temperature)]
        steps += [transformers.TopKLogitsWarper(k)] if k else []
        steps += [transformers.TopPLogitsWarper(p)] if p < 1 else []
        steps += [transformers.MinPLogitsWarper(least)] if least else []
        theirs_BV = transformers.LogitsProcessorList(steps)(
            torch.tensor(ids_BL), torch.tensor(logits_BV)).numpy()
        np.testing.assert_allclose(ours_BV, theirs_BV - theirs_BV.max(-1, keepdims=True),
                                   atol=1e-4, err_msg=str(row))     # relative to logits near 50
