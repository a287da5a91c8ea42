"""The scalar head: which token it reads, and that a model with one is no model of text."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import abstract_params, check_generates, init
from model.flops import matmul_params
from model.heads.embedding import pool_first
from model.heads.scalar import NAMES, init_scalar_head, normalise_head, score_last
from model.hf.export_model import choose_layout
from model.summary import count_parameters, describe

SCORED = ModelConfig(V=98, D=32, N=2, H=4, G=2, K=8, F=64, score_head=True)
ENCODER = dataclasses.replace(SCORED, family="encoder")


def states(seed=0, rows=3, length=7):
    return np.random.default_rng(seed).normal(size=(rows, length, 32)).astype(np.float32)


score_ = jax.jit(score_last, static_argnames="config")
SEGMENTS_BL = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
HEAD = jax.device_get(jax.jit(init_scalar_head, static_argnums=0)(SCORED, jax.random.key(1))) | {
    "score_bias_Y": np.float32([0.25])}


@pytest.mark.parametrize("config, places", [(SCORED, (2, 6, 6)), (ENCODER, (0, 2, 0))])
def test_the_score_is_read_from_the_last_real_token_or_an_encoders_first(config, places):
    x_BLD = states()
    scores = score_(HEAD, x_BLD, SEGMENTS_BL, config=config)
    expected = [np.dot(np.float64(x_BLD[row, place]), np.float64(HEAD["score_DY"][:, 0])) + 0.25
                for row, place in enumerate(places)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == jnp.float32


def test_what_stands_at_padding_does_not_matter_even_if_it_is_not_finite():
    x_BLD = states()
    broken = np.where(SEGMENTS_BL[:, :, None] > 0, x_BLD, np.float32(np.nan))
    score = partial(score_, segment_ids_BL=SEGMENTS_BL, config=SCORED)
    np.testing.assert_array_equal(score(HEAD, x_BLD), score(HEAD, broken))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(score(HEAD, x))))(broken)
    assert np.isfinite(gradient).all()


def test_a_row_of_padding_has_the_bias_as_its_score():
    scores = score_(HEAD, states(), np.zeros((3, 7), np.int32), config=SCORED)
    np.testing.assert_array_equal(scores, np.full(3, 0.25, np.float32))


def test_a_pooler_stands_between_an_encoders_state_and_its_score():
    config = dataclasses.replace(ENCODER, pooler=True)
    params = jax.jit(partial(init, config))(jax.random.key(0))
    x_BLD, ones_BL = states(), np.ones((3, 7), np.int32)
    expected = jax.jit(lambda params: pool_first(params, x_BLD) @ params["score_DY"][:, 0]
                       + params["score_bias_Y"])(params)
    np.testing.assert_allclose(score_(params, x_BLD, ones_BL, config=config), expected, rtol=1e-5)


def test_the_first_weights_have_the_variance_of_their_source():
    wide = dataclasses.replace(SCORED, D=4096)
    head = jax.device_get(jax.jit(init_scalar_head, static_argnums=0)(wide, jax.random.key(0)))
    assert float(head["score_DY"].std()) == pytest.approx(4097**-0.5, rel=0.05)
    assert float(head["score_bias_Y"][0]) == 0


def test_normalising_shifts_and_scales_every_score():
    score = partial(score_, x_BLD=states(), segment_ids_BL=SEGMENTS_BL, config=SCORED)
    np.testing.assert_allclose(score(normalise_head(HEAD, 0.7, 2.5)),
                               (np.asarray(score(HEAD)) - 0.7) / 2.5, rtol=1e-5)


@pytest.mark.parametrize("family", ["decoder", "encoder", "lstm"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_scalar_head_replaces_that_of_the_vocabulary(family, tied):
    config = dataclasses.replace(SCORED, family=family, tied=tied)
    params = abstract_params(config)
    assert not any(name.startswith(("head_", "transform_")) for name in params)
    assert {name: params[name].shape for name in NAMES} == {
        "score_DY": (32, 1), "score_bias_Y": (1,)}
    assert count_parameters(config)["by_part"]["head"] == 33
    assert describe(config)["head"] == "one score"
    plain = dataclasses.replace(config, score_head=False)
    assert matmul_params(plain) - matmul_params(config) == config.D * config.V


@pytest.mark.parametrize("changes, line", [
    (dict(family="encoder_decoder", encoder_layers=2), "has no place in family='encoder_decoder'"),
    (dict(family="encoder", masked_head=True), "stands in the place of masked_head and head_bias"),
    (dict(head_bias=True), "stands in the place of masked_head and head_bias")])
def test_heads_that_exclude_each_other_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        dataclasses.replace(SCORED, **changes)


def test_a_reward_model_neither_generates_nor_is_exported():
    with pytest.raises(UserError, match="mine: is a reward model, which gives scores and no text"):
        check_generates(SCORED, "mine")
    plain = dataclasses.replace(SCORED, qk_norm=False)
    with pytest.raises(UserError, match="score_head=True: has no counterpart"):
        choose_layout(plain)
    choose_layout(dataclasses.replace(plain, score_head=False))
