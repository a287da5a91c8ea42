"""Generation: the cache changes nothing, and sampling keeps what it says it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.families.decoder import forward
from model.generation.cache import make_cache
from model.generation.generate import Sampling, decode, generate, prefill, sample
from model.heads.language import logits

LENGTHS_B = np.array([3, 8, 5])
# Probabilities 0.5, 0.25, 0.15, 0.1 at tokens 2, 0, 3, 1.
LOGITS_BV = np.log(np.array([[0.25, 0.1, 0.5, 0.15]]))


@pytest.fixture(scope="module")
def prompts_BL(config):
    return np.random.default_rng(0).integers(0, config.V, (3, 8))


@pytest.fixture(scope="module")
def full_logits(params, config):
    """Next-token logits_BV after each row's first `lengths_B` tokens, without a cache."""
    @jax.jit
    def run(tokens_BL):
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config)
        return logits(params, x_BLD, config=config)

    return lambda tokens_BL, lengths_B: np.asarray(run(tokens_BL))[range(3), lengths_B - 1]


def test_cached_decode_equals_the_full_forward(params, config, prompts_BL, full_logits):
    tokens_BL = np.full((3, 12), 7)
    tokens_BL[:, :8] = prompts_BL  # behind a row's length lies what nobody may look at
    cache = make_cache(config, 3, 12)
    logits_BV, cache = prefill(params, prompts_BL, LENGTHS_B, cache, config=config)
    lengths_B = LENGTHS_B.copy()
    np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)
    for step in range(4):
        token_B = np.array([step, 11 + step, 50 + step], np.int32)
        tokens_BL[range(3), lengths_B] = token_B
        lengths_B += 1
        logits_BV, cache = decode(params, token_B, cache, config=config)
        np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)
    np.testing.assert_array_equal(cache.length_B, lengths_B)


def test_a_second_prefill_extends_the_cache(params, config, prompts_BL, full_logits):
    tokens_BL = np.zeros((3, 12), int)
    cache, lengths_B = make_cache(config, 3, 12), np.zeros(3, int)
    for part_B in (LENGTHS_B, np.array([6, 2, 7])):
        for row in range(3):
            tokens_BL[row, lengths_B[row]:][:part_B[row]] = prompts_BL[row, :part_B[row]]
        logits_BV, cache = prefill(params, prompts_BL, part_B, cache, config=config)
        lengths_B += part_B
    np.testing.assert_allclose(logits_BV, full_logits(tokens_BL, lengths_B), atol=1e-5)


def test_generate_is_prefill_and_decode_and_ends_at_the_stop_token(params, config, prompts_BL,
                                                                  full_logits):
    greedy = Sampling(max_new_tokens=4, temperature=0)
    key = jax.random.key(0)
    new_BL, count_B = generate(params, prompts_BL, LENGTHS_B, key, config=config, sampling=greedy,
                               stop=-1)
    tokens_BL, lengths_B = np.zeros((3, 12), int), LENGTHS_B.copy()
    tokens_BL[:, :8] = prompts_BL
    for step in range(4):
        expected_B = full_logits(tokens_BL, lengths_B).argmax(-1)
        np.testing.assert_array_equal(new_BL[:, step], expected_B)
        tokens_BL[range(3), lengths_B] = expected_B
        lengths_B += 1
    assert count_B.tolist() == [4, 4, 4]
    stop = int(new_BL[0, 1])
    stopped_BL, count_B = generate(params, prompts_BL, LENGTHS_B, key, config=config,
                                   sampling=greedy, stop=stop)
    for row in range(3):
        found = np.flatnonzero(new_BL[row] == stop)
        expected = found[0] + 1 if len(found) else 4
        assert count_B[row] == expected, "the stop token is counted, nothing after it"
        np.testing.assert_array_equal(stopped_BL[row, :expected], new_BL[row, :expected])


def test_the_seed_decides_a_sampled_answer(params, config, prompts_BL):
    drawn = [np.asarray(generate(params, prompts_BL, LENGTHS_B, jax.random.key(seed), config=config,
                                 sampling=Sampling(max_new_tokens=6), stop=-1)[0])
             for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def _drawn(num=400, **how):
    logits_BV = jnp.broadcast_to(jnp.asarray(LOGITS_BV), (num, 4))
    return np.asarray(sample(logits_BV, Sampling(**how), jax.random.key(0)))


@pytest.mark.parametrize("how, kept", [
    ({"temperature": 0}, {2}), ({"top_k": 1}, {2}), ({"top_k": 2}, {0, 2}), ({}, {0, 1, 2, 3}),
    ({"top_p": 0.4}, {2}),       # the first token reaches it alone
    ({"top_p": 0.5001}, {0, 2}), ({"top_p": 0.74}, {0, 2}), ({"top_p": 0.76}, {0, 2, 3}),
    ({"top_k": 2, "top_p": 0.6}, {2}),  # of the two that are left the first has two thirds
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
