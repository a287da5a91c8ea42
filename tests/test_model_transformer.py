"""The decoder: causality within documents, and independence of the execution."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.execution import Execution
from model.families.registry import forward, init, num_params
from model.heads.language import logits, token_logps
from model.layers.embed import embed
from train.loss import next_token_loss

SEGMENTS_BL = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]])
POSITIONS_BL = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]])
TOKENS_BL = np.arange(20, 32)[None]  # all different, so that an embedding belongs to a position


def test_a_position_depends_on_itself_and_earlier_ones_of_its_document(params, config, execution):
    direction_D = jnp.asarray(np.random.default_rng(0).normal(size=config.D), jnp.float32)

    def outputs(embed_VD):
        x_BLD = forward(params | {"embed_VD": embed_VD}, TOKENS_BL, POSITIONS_BL, SEGMENTS_BL,
                        config=config, execution=execution)
        return x_BLD[0] @ direction_D

    gradient_LVD = jax.jit(jax.jacrev(outputs))(params["embed_VD"])
    influence_LM = np.abs(gradient_LVD).sum(-1)[:, TOKENS_BL[0]]
    same_LM = SEGMENTS_BL.T == SEGMENTS_BL
    np.testing.assert_array_equal(influence_LM > 0, np.tril(same_LM))
    others = np.setdiff1d(np.arange(config.V), TOKENS_BL)
    assert not np.asarray(gradient_LVD)[:, others].any()


def test_packed_documents_equal_separate_documents(params, config, execution):
    run = jax.jit(partial(forward, config=config, execution=execution))
    packed_LD = np.asarray(run(params, TOKENS_BL, POSITIONS_BL, SEGMENTS_BL)[0])
    alone_BL, alone_segments_BL = np.zeros((3, 12), int), np.zeros((3, 12), int)
    bounds = [(0, 5), (5, 8), (8, 12)]
    for row, (first, last) in enumerate(bounds):
        alone_BL[row, :last - first] = TOKENS_BL[0, first:last]
        alone_segments_BL[row, :last - first] = 1
    positions_BL = np.tile(np.arange(12), (3, 1))
    alone_BLD = np.asarray(run(params, alone_BL, positions_BL, alone_segments_BL))
    for row, (first, last) in enumerate(bounds):
        np.testing.assert_allclose(alone_BLD[row, :last - first], packed_LD[first:last], atol=1e-5)


def _loss_and_gradient(params, batch, config, execution):
    def loss(p):
        return next_token_loss(p, batch, config=config, execution=execution,
                               key=jax.random.key(0))[0]

    return jax.jit(jax.value_and_grad(loss)).trace(params)


@pytest.fixture(scope="module")
def plain(params, batch, config, execution):
    traced = _loss_and_gradient(params, batch, config, execution)
    return str(traced.jaxpr), traced.lower().compile()(params)


@pytest.mark.parametrize("change", [
    {"scan_unroll": 2}, {"remat": "dots"}, {"remat": "full"}, {"loss_chunks": 4},
    {"loss_chunks": 5}], ids=str)  # 192 positions: 4 divides them, 5 does not
def test_execution_changes_neither_loss_nor_gradient(plain, params, batch, config,
                                                                change):
    traced = _loss_and_gradient(params, batch, config, Execution(**change))
    assert str(traced.jaxpr) != plain[0], f"{change} has no effect"
    loss, gradient = traced.lower().compile()(params)
    np.testing.assert_allclose(loss, plain[1][0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, plain[1][1])


def test_head_weight_is_the_embedding_when_tied(batch, config, execution):
    tied = dataclasses.replace(config, tied=True, embed_scale=config.D**0.5)
    params = jax.jit(partial(init, tied))(jax.random.key(0))
    assert "head_DV" not in params
    assert num_params(tied) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert num_params(config) - num_params(tied) == config.D * config.V
    x_BLD = np.random.default_rng(0).normal(size=(1, 3, config.D)).astype(np.float32)
    found_BLV = jax.jit(partial(logits, config=tied, execution=execution))(params, x_BLD)
    np.testing.assert_allclose(found_BLV, x_BLD @ np.asarray(params["embed_VD"]).T, atol=1e-5)

    def loss(p):
        return next_token_loss(p, batch, config=tied, execution=execution, key=None)[0]

    gradient = jax.device_get(jax.jit(jax.grad(loss))(params))
    unseen = np.setdiff1d(np.arange(config.V), batch.tokens_BL)
    assert len(unseen) and np.abs(gradient["embed_VD"][unseen]).sum(-1).all(), \
        "tokens that are no input learn through the head"


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_stream_starts_at_unit_scale(config, execution, is_tied):
    config = dataclasses.replace(config, tied=is_tied,
                                 embed_scale=config.D**0.5 if is_tied else 1.0)
    params = jax.jit(partial(init, config))(jax.random.key(0))
    tokens_BL = np.arange(config.V)[None]
    previous_BL = np.full_like(tokens_BL, -1)
    x_BLD = np.asarray(jax.jit(partial(embed, config=config, execution=execution))(
        params, tokens_BL, previous_BL, tokens_BL))
    np.testing.assert_allclose(np.std(x_BLD), 1, rtol=0.05)  # three standard errors
    head_DV = np.asarray(params["embed_VD"].T if is_tied else params["head_DV"])
    assert np.std(head_DV) < 1.1 * config.D**-0.5, "no token is likely before it is learned"


def test_token_logps_are_log_softmax_of_logits(params, config, execution):
    rng = np.random.default_rng(1)
    x_BLD = rng.normal(size=(2, 3, config.D)).astype(np.float32)
    targets_BL = rng.integers(0, config.V, (2, 3))
    read_logits, read_logps = (jax.jit(partial(read, config=config, execution=execution))
                               for read in (logits, token_logps))
    logits_BLV = np.asarray(read_logits(params, x_BLD), np.float64)
    logps_BLV = logits_BLV - np.log(np.exp(logits_BLV).sum(-1, keepdims=True))
    expected_BL = np.take_along_axis(logps_BLV, targets_BL[..., None], -1)[..., 0]
    np.testing.assert_allclose(read_logps(params, x_BLD, targets_BL), expected_BL, atol=1e-5)
