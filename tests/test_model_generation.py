"""Generation: independence of the cache and of other rows, and sampling filters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.families.registry import forward, make_cache
from model.generation.generate import decode, generate, prefill
from model.generation.sampling import Sampling, sample
from model.heads.language import logits

LENGTHS_B = np.array([3, 8, 5])
# Probabilities 0.5, 0.25, 0.15, 0.1 at tokens 2, 0, 3, 1.
LOGITS_BV = np.log(np.array([[0.25, 0.1, 0.5, 0.15]]))


@pytest.fixture(scope="module")
def prompts_BL(config):
    return np.random.default_rng(0).integers(0, config.V, (3, 8))


@pytest.fixture(scope="module")
def full_logits(params, config, execution):
    """Next-token logits_BV after each row's first `lengths_B` tokens, without a cache."""
    @jax.jit
    def run(tokens_BL):
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config,
                        execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)

    return lambda tokens_BL, lengths_B: np.asarray(run(tokens_BL))[range(3), lengths_B - 1]


def test_cached_decode_equals_the_full_forward(params, config, execution, prompts_BL, full_logits):
    tokens_BL = np.full((3, 12), 7)
    tokens_BL[:, :8] = prompts_BL  # tokens after a row's length must be ignored
    cache = make_cache(config, execution, 3, 12)
    logits_BV, cache = prefill(params, prompts_BL, LENGTHS_B, cache, config=config,
                               execution=execution)
    lengths_B = LENGTHS_B.copy()
    np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)
    for step in range(4):
        token_B = np.array([step, 11 + step, 50 + step], np.int32)
        tokens_BL[range(3), lengths_B] = token_B
        lengths_B += 1
        logits_BV, cache = decode(params, token_B, cache, config=config, execution=execution)
        np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)
    np.testing.assert_array_equal(cache.length_B, lengths_B)


def test_a_second_prefill_extends_the_cache(params, config, execution, prompts_BL, full_logits):
    tokens_BL = np.zeros((3, 12), int)
    cache, lengths_B = make_cache(config, execution, 3, 12), np.zeros(3, int)
    for part_B in (LENGTHS_B, np.array([6, 2, 7])):
        for row in range(3):
            tokens_BL[row, lengths_B[row]:][:part_B[row]] = prompts_BL[row, :part_B[row]]
        logits_BV, cache = prefill(params, prompts_BL, part_B, cache, config=config,
                                   execution=execution)
        lengths_B += part_B
    np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)


def _keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def test_generate_is_prefill_and_decode_and_ends_at_the_stop_token(params, config, execution,
                                                                  prompts_BL, full_logits):
    answer = partial(generate, params, prompts_BL, LENGTHS_B, _keys(3), config=config,
                     execution=execution, sampling=Sampling(max_new_tokens=4, temperature=0))
    new_BL, count_B = answer(stops=(-1,))
    tokens_BL, lengths_B = np.zeros((3, 12), int), LENGTHS_B.copy()
    tokens_BL[:, :8] = prompts_BL
    for step in range(4):
        expected_B = full_logits(tokens_BL, lengths_B).argmax(-1)
        np.testing.assert_array_equal(new_BL[:, step], expected_B)
        tokens_BL[range(3), lengths_B] = expected_B
        lengths_B += 1
    assert count_B.tolist() == [4, 4, 4]
    stop = int(new_BL[0, 1])
    stopped_BL, count_B = answer(stops=(-1, stop))      # any of them ends an answer
    for row in range(3):
        places = np.flatnonzero(new_BL[row] == stop)
        expected = places[0] + 1 if len(places) else 4
        assert count_B[row] == expected, "the stop token is counted, nothing after it"
        np.testing.assert_array_equal(stopped_BL[row, :expected], new_BL[row, :expected])


@pytest.fixture(scope="module")
def draw(params, config, execution):
    """Sampled answers of up to six tokens: new_BL and count_B."""
    run = partial(generate, params, config=config, execution=execution,
                  sampling=Sampling(max_new_tokens=6, top_p=0.95))
    return lambda *rows, stop=-1: jax.device_get(run(*rows, stops=(stop,)))


def test_a_sampled_answer_depends_on_the_keys(draw, prompts_BL):
    drawn = [draw(prompts_BL, LENGTHS_B, _keys(3, seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any(axis=1).all(), "every row has its own key"


@pytest.mark.parametrize("rows", [[1], [2, 0], [1, 1, 2, 0, 1]], ids=str)
def test_an_answer_does_not_depend_on_other_rows(draw, prompts_BL, rows):
    keys_B, rows = _keys(3), np.array(rows)
    stop = int(draw(prompts_BL, LENGTHS_B, keys_B)[0][0, 2])  # so that row 0 ends before others
    expected_BL, count_B = draw(prompts_BL, LENGTHS_B, keys_B, stop=stop)
    assert count_B[0] <= 3 < count_B[1:].min()
    found_BL, found_count_B = draw(prompts_BL[rows], LENGTHS_B[rows], keys_B[rows], stop=stop)
    np.testing.assert_array_equal(found_count_B, count_B[rows])
    for found_L, row in zip(found_BL, rows):
        np.testing.assert_array_equal(found_L[:count_B[row]], expected_BL[row, :count_B[row]])


def test_a_sample_depends_only_on_the_logits_and_the_key_of_its_row():
    keys_B = _keys(50)
    logits_BV = jnp.asarray(np.random.default_rng(0).normal(size=(50, 20)), jnp.float32)
    sampling = Sampling(top_k=10, top_p=0.9)
    drawn_B = np.asarray(sample(logits_BV, sampling, keys_B))
    for rows in (np.arange(50)[::-1], np.arange(7), np.array([33])):
        np.testing.assert_array_equal(sample(logits_BV[rows], sampling, keys_B[rows]),
                                      drawn_B[rows])


def _drawn(num=400, **how):
    logits_BV = jnp.broadcast_to(jnp.asarray(LOGITS_BV), (num, 4))
    return np.asarray(sample(logits_BV, Sampling(**how), _keys(num)))


@pytest.mark.parametrize("how, kept", [
    ({"temperature": 0}, {2}), ({"top_k": 1}, {2}), ({"top_k": 2}, {0, 2}), ({}, {0, 1, 2, 3}),
    ({"top_p": 0.4}, {2}),       # the first token reaches it alone
    ({"top_p": 0.5001}, {0, 2}), ({"top_p": 0.74}, {0, 2}), ({"top_p": 0.76}, {0, 2, 3}),
    ({"top_k": 2, "top_p": 0.6}, {2}),  # of the two that are kept the first has two thirds
    ({"temperature": 0.2, "top_p": 0.9}, {2}),  # temperature comes before top_p
], ids=str)
def test_sampling_keeps_the_smallest_set(how, kept):
    assert set(_drawn(**how).tolist()) == kept


def test_temperature_divides_the_logits():
    tempered_V = np.exp(LOGITS_BV[0] / 2)
    expected_V = tempered_V / tempered_V.sum()
    counted_V = np.bincount(_drawn(20_000, temperature=2.0), minlength=4) / 20_000
    np.testing.assert_allclose(counted_V, expected_V, atol=0.015)  # four standard errors


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_k": -1},
                                   {"top_p": 0.0}, {"top_p": 1.1}], ids=str)
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)
