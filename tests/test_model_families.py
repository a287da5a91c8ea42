"""Families and parts together: eight devices equal one, and decode equals the full forward."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import some_in_full

from data.batch import Batch, Source
from model.config import ModelConfig
from model.execution import Execution
from model.families import encoder_decoder
from model.families.registry import extend, forward, init, make_cache
from model.heads.embedding import mean_embedding
from model.heads.language import logits
from model.parallel.sharding import check_mesh, make_mesh, param_shardings
from train.loss import Coefficients, next_token_loss

BASE = ModelConfig(V=31, D=16, N=4, H=4, G=2, K=4, F=16)
NORMED = {"norm": "layer", "attention_bias": True, "attention_out_bias": True, "mlp_bias": True,
          "qk_norm": False}
CONFIGS = {name: dataclasses.replace(BASE, **fields) for name, fields in {
    "local and global": {
        "norm": "rms_plus_one", "residual": "sandwich", "mlp": "geglu", "window": 5,
        "global_every": 2, "rope_local_theta": 50.0, "rope_scaling": "linear", "rope_factor": 2.0,
        "attention_softcap": 5.0, "attention_scale": 0.7, "logit_softcap": 3.0, "sinks": True,
        "tied": True, "embed_scale": 4.0},
    "parallel": NORMED | {"residual": "parallel", "mlp": "gelu", "rope_frac": 0.5,
                          "rope_scaling": "yarn", "rope_factor": 4.0, "rope_context": 16,
                          "attention_scale": 0.3},
    "learned": NORMED | {"mlp": "relu", "positions": "learned", "max_positions": 24,
                         "position_offset": 2, "head_bias": True},
    "relative": {"residual": "post", "positions": "relative", "relative_buckets": 8,
                 "relative_distance": 12, "mlp": "relu", "residual_scale": 0.5},
    "experts": {"E": 4, "shared_experts": 2, "renormalise_gates": False, "expert_capacity": 1.2},
    "masked": NORMED | {"family": "encoder", "residual": "post", "positions": "learned",
                        "max_positions": 24, "mlp": "gelu", "embed_norm": True, "token_types": 2,
                        "masked_head": True, "pooler": True, "head_bias": True, "tied": True},
    "span": {"family": "encoder_decoder", "encoder_layers": 2, "positions": "relative",
             "attention_scale": 1.0, "mlp": "geglu", "qk_norm": False}}.items()}
EXECUTION = Execution()
NUM_ROWS, LENGTH = 8, 24


@pytest.fixture(scope="module")
def batch():
    """Rows of three documents and padding, and as many sources."""
    rng = np.random.default_rng(0)
    tokens_BL, targets_BL, source_BM = rng.integers(0, BASE.V, (3, NUM_ROWS, LENGTH), np.int32)
    segment_ids_BL = np.stack([np.repeat([1, 2, 3, 0], rng.permutation([4, 9, 6, 5]))
                               for _ in tokens_BL]).astype(np.int32)
    positions_BL = np.stack([_positions(ids) for ids in segment_ids_BL])
    weights_BL = (segment_ids_BL > 0).astype(np.float32)
    source = Source(source_BM, segment_ids_BL[:, ::-1], np.stack(
        [_positions(ids) for ids in segment_ids_BL[:, ::-1]]))
    return Batch(tokens_BL, targets_BL, weights_BL, segment_ids_BL, positions_BL), source


def _positions(segment_ids_L):
    starts_L = np.flatnonzero(np.diff(segment_ids_L, prepend=-1))
    return (np.arange(LENGTH) - np.repeat(starts_L, np.diff(starts_L, append=LENGTH))).astype(
        np.int32)


def _random_params(config):
    """No weight is zero, so that each takes part."""
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32),
                        shapes)


def _loss_and_gradient(config, params, batch):
    batch, source = batch
    if config.family == "encoder_decoder":
        batch = batch.replace(source=source)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch):
        total, metrics = next_token_loss(params, batch, config=config, execution=EXECUTION,
                                         key=None, coefs=Coefficients(0.1, 0.1))
        return total / jnp.sum(batch.loss_weights_BL), metrics

    return loss(params, batch)


@pytest.mark.parametrize("name, axes", [
    ("local and global", {"fsdp": 2, "tensor": 2, "data": 2}),
    ("relative", {"stage": 2, "fsdp": 2, "tensor": 2}),
    ("experts", {"expert": 2, "fsdp": 2, "tensor": 2}),
    *(pytest.param(*case, marks=pytest.mark.full) for case in (
        ("local and global", {"stage": 2, "tensor": 2, "fsdp": 2}),
        ("parallel", {"context": 2, "tensor": 2, "fsdp": 2}),
        ("learned", {"fsdp": 2, "tensor": 2, "stage": 2}),
        ("masked", {"fsdp": 2, "tensor": 2, "data": 2}),
        ("span", {"fsdp": 2, "tensor": 2, "data": 2})))], ids=str)
def test_eight_devices_equal_one(name, axes, batch):
    config, mesh = CONFIGS[name], make_mesh(axes)
    check_mesh(config, EXECUTION, mesh, batch_size=NUM_ROWS, row_length=LENGTH)
    params = _random_params(config)
    expected = _loss_and_gradient(config, params, batch)
    with jax.set_mesh(mesh):
        placed = jax.device_put(jax.device_get(params), param_shardings(params, mesh))
        found = _loss_and_gradient(config, placed, batch)
    if config.sinks:
        assert placed["blocks"]["sinks_H"].sharding.spec[-1] == "tensor"
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), found, expected)


@pytest.mark.parametrize("name", some_in_full(
    ("local and global", "parallel", "learned", "relative"), "local and global"))
def test_cached_decode_equals_the_full_forward(name):
    """Right-padded prompts of different length, then one token at a time."""
    config = CONFIGS[name]
    params, rows = _random_params(config), np.arange(3)
    tokens_BL = np.random.default_rng(0).integers(0, config.V, (3, 16))
    prompt = np.array([3, 8, 6])

    @jax.jit
    def read_(x_BLD):
        return logits(params, x_BLD, config=config, execution=EXECUTION)

    def read(x_BLD):
        return np.asarray(read_(x_BLD))

    full_BLV = read(jax.jit(partial(forward, config=config, execution=EXECUTION))(
        params, tokens_BL, np.tile(np.arange(16), (3, 1)), np.ones((3, 16), int)))
    @jax.jit
    def step(params, tokens_BL, count_B, cache):
        x_BLD, cache = extend(params, tokens_BL, count_B, cache, config=config,
                              execution=EXECUTION)
        return x_BLD, cache.advance(tokens_BL, count_B)

    cache = make_cache(config, EXECUTION, 3, 16)
    padded_BL = np.where(np.arange(8) < prompt[:, None], tokens_BL[:, :8], 1)
    x_BLD, cache = step(params, padded_BL, prompt, cache)
    for row, n in enumerate(prompt):
        np.testing.assert_allclose(read(x_BLD)[row, :n], full_BLV[row, :n], atol=1e-4)
    for n in range(8):
        token_BL = tokens_BL[rows, prompt + n][:, None]
        x_BLD, cache = step(params, token_BL, np.ones(3, int), cache)
        np.testing.assert_allclose(read(x_BLD)[:, 0], full_BLV[rows, prompt + n], atol=1e-4)


def test_an_encoder_decoder_continues_as_its_full_forward_does(batch):
    config, source = CONFIGS["span"], batch[1]
    params, tokens_BL = _random_params(config), batch[0].tokens_BL[:, :10]
    source = source.replace(segment_ids_BM=(source.segment_ids_BM > 0).astype(int),
                            positions_BM=np.tile(np.arange(LENGTH), (NUM_ROWS, 1)))
    full_BLD = jax.jit(partial(forward, config=config, execution=EXECUTION))(
        params, tokens_BL, np.tile(np.arange(10), (NUM_ROWS, 1)), np.ones((NUM_ROWS, 10), int),
        source)
    options = {"config": config, "execution": EXECUTION}
    cache = jax.jit(partial(encoder_decoder.make_cache, capacity=10, **options))(params, source)
    step, parts_BLD = jax.jit(partial(encoder_decoder.extend, **options)), []
    for first, last in ((0, 5), (5, 10)):
        part_BL = tokens_BL[:, first:last]
        x_BLD, cache = step(params, part_BL, np.full(NUM_ROWS, 5), cache)
        cache = cache.advance(part_BL, np.full(NUM_ROWS, 5))
        parts_BLD.append(x_BLD)
    np.testing.assert_allclose(np.concatenate(parts_BLD, 1), full_BLD, atol=1e-4)


def test_a_mean_embedding_leaves_padding_out_and_has_length_one():
    x_BLD = np.float32([[[3, 0], [3, 8], [9, 9]], [[1, 1], [1, 1], [1, 1]]])
    embedding_BD = mean_embedding(x_BLD, np.array([[1, 1, 0], [0, 0, 0]]))
    np.testing.assert_allclose(embedding_BD, [[0.6, 0.8], [0, 0]], rtol=1e-6)   # 6, 8 over 10
