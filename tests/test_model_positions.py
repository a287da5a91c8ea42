"""Positions: frequencies, tables and buckets against formulas written here and transformers'."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import forward, init, make_cache
from model.layers.embed import embed, init_embeddings
from model.layers.positions import (
    relative_bias,
    rope_frequencies,
    rope_scale,
    rotate,
    sinusoids,
)

RNG = np.random.default_rng(0)
CONFIG = ModelConfig(V=11, D=64, N=2, H=2, G=1, K=32, F=16)
# Our fields, and those of transformers.
SCALINGS = {
    "none": ({"rope_frac": 0.25, "rope_theta": 500.0}, {}),
    "linear": ({"rope_factor": 4.0, "rope_frac": 0.5}, {}),
    "llama3": ({"rope_factor": 8.0, "rope_context": 512, "rope_theta": 5e4},
               {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    "yarn": ({"rope_factor": 16.0, "rope_context": 256, "rope_high": 32.0, "rope_frac": 0.5},
             {"beta_fast": 32.0, "beta_slow": 1.0})}


def _config(kind):
    return dataclasses.replace(CONFIG, rope_scaling=kind, **SCALINGS[kind][0])


def _frequency(c, i):
    """Frequency of pair i of n, one by one."""
    n = round(c.K * c.rope_frac) // 2
    plain = c.rope_theta ** (-i / n)
    if c.rope_scaling == "none":
        return plain
    scaled = plain / c.rope_factor
    if c.rope_scaling == "linear":
        return scaled
    if c.rope_scaling == "llama3":
        length = 2 * math.pi / plain
        if length > c.rope_context / c.rope_low:
            return scaled
        if length < c.rope_context / c.rope_high:
            return plain
        share = (c.rope_context / length - c.rope_low) / (c.rope_high - c.rope_low)
        return share * plain + (1 - share) * scaled

    def pair_with(turns):       # solves turns = context theta^(-i/n) / 2 pi for i
        return n * math.log(c.rope_context / (2 * math.pi * turns), c.rope_theta)

    first, last = math.floor(pair_with(c.rope_high)), math.ceil(pair_with(c.rope_low))
    share = min(max((i - max(first, 0)) / (last - max(first, 0)), 0), 1)
    return (1 - share) * plain + share * scaled


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_follow_the_formulas(kind):
    config = _config(kind)
    found_K = rope_frequencies(config)
    np.testing.assert_allclose(found_K, [_frequency(config, i) for i in range(len(found_K))],
                               rtol=1e-5)
    assert len(found_K) == config.K * config.rope_frac / 2
    if kind in ("llama3", "yarn"):      # some are kept, some scaled in full, some between
        shares = np.round(found_K / rope_frequencies(dataclasses.replace(
            config, rope_scaling="none")) * config.rope_factor, 3)
        assert {1, config.rope_factor} < {*shares}
    assert rope_scale(config) == (0.1 * math.log(16) + 1 if kind == "yarn" else 1)


@pytest.mark.full
@pytest.mark.filterwarnings("default")      # of the other library
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_equal_those_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = _config(kind)
    theirs = {"rope_type": kind, "rope_theta": config.rope_theta, "factor": config.rope_factor,
              "partial_rotary_factor": config.rope_frac, **SCALINGS[kind][1]}
    if config.rope_context:
        theirs["original_max_position_embeddings"] = config.rope_context
    frequency_K, scale = ROPE_INIT_FUNCTIONS[kind](transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters=theirs), "cpu")
    np.testing.assert_allclose(rope_frequencies(config), frequency_K.numpy(), rtol=1e-5)
    assert rope_scale(config) == pytest.approx(scale)


def test_windowed_layers_beside_global_ones_have_their_own_base_and_no_scaling():
    config = dataclasses.replace(_config("linear"), window=4, global_every=2, rope_local_theta=9.0,
                                 rope_frac=1.0)
    np.testing.assert_allclose(rope_frequencies(config, is_local=True), 9 ** (-np.arange(16) / 16),
                               rtol=1e-6)


def test_what_follows_the_rotated_part_of_a_head_is_kept_and_the_scale_is_of_the_rotated_part():
    x_BLHK = RNG.normal(size=(2, 5, 3, 12)).astype(np.float32)
    positions_BL, frequency_K = RNG.integers(0, 9, (2, 5)), np.float32([1.0, 0.3])
    turn = jax.jit(rotate, static_argnums=3)
    found_BLHK = np.asarray(turn(x_BLHK, positions_BL, frequency_K, 1.5))
    np.testing.assert_array_equal(found_BLHK[..., 4:], x_BLHK[..., 4:])
    np.testing.assert_allclose(found_BLHK[..., :4],
                               1.5 * np.asarray(turn(x_BLHK[..., :4], positions_BL, frequency_K)),
                               rtol=1e-6)


def test_sinusoids_follow_the_formula():
    positions_BL = RNG.integers(0, 5000, (2, 3))
    found_BLD = np.asarray(jax.jit(sinusoids, static_argnums=1)(positions_BL, 6))
    for d in range(6):
        angle_BL = positions_BL / 10_000 ** (d // 2 * 2 / 6)
        np.testing.assert_allclose(found_BLD[:, :, d],
                                   np.cos(angle_BL) if d % 2 else np.sin(angle_BL), atol=1e-3)


def _bucket(distance, num_buckets, max_distance, is_causal):
    """Bucket of one distance of a query to a key."""
    start = 0
    if not is_causal:
        num_buckets //= 2
        start, distance = num_buckets * (distance < 0), abs(distance)
    distance, exact = max(distance, 0), num_buckets // 2
    if distance < exact:
        return start + distance
    ratio = np.float32(math.log(distance / exact)) / np.float32(math.log(max_distance / exact))
    return start + min(exact + int(ratio * np.float32(num_buckets - exact)), num_buckets - 1)


@pytest.mark.parametrize("is_causal", [True, False])
def test_relative_buckets_follow_a_loop(is_causal):
    distance = np.arange(-150, 151)
    table_WH = np.arange(32 * 3).reshape(32, 3)
    found_BHLM = np.asarray(jax.jit(partial(relative_bias, is_causal=is_causal, max_distance=100))(
        table_WH, distance[None, None]))
    assert found_BHLM.shape == (1, 3, 1, 301)
    buckets = [_bucket(int(d), 32, 100, is_causal) for d in distance]
    np.testing.assert_array_equal(found_BHLM[0, :, 0].T, table_WH[buckets])
    assert len({*buckets}) == (32 if is_causal else 31), "distance 0 is no key after the query"


@pytest.mark.full
@pytest.mark.filterwarnings("default")      # of the other library
@pytest.mark.parametrize("is_causal", [True, False])
def test_relative_buckets_equal_those_of_transformers(is_causal):
    pytest.importorskip("transformers")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(torch.tensor(-distance), not is_causal, 32, 128)
    ours = relative_bias(jnp.arange(32)[:, None], jnp.asarray(distance[None, None]),
                         is_causal=is_causal, max_distance=128)
    np.testing.assert_array_equal(ours[0, 0, 0], theirs)


@pytest.mark.parametrize("fields", [
    {"positions": "learned", "max_positions": 7, "position_offset": 2},
    {"positions": "sinusoidal", "embed_scale": 3.0},
    {"positions": "none", "token_types": 2, "embed_norm": True, "norm": "layer"}], ids=str)
def test_an_embedding_is_the_sum_of_its_tables(fields):
    config = dataclasses.replace(CONFIG, D=6, norm_eps=0.1, **fields)
    key = jax.random.key(0)
    tables = {name: RNG.normal(size=leaf.shape).astype(np.float32) for name, leaf in
              jax.eval_shape(partial(init_embeddings, config), key, key).items()}
    tokens_BL, positions_BL = RNG.integers(0, 11, (2, 4)), RNG.integers(0, 7, (2, 4))
    found_BLD = jax.jit(partial(embed, config=config, execution=Execution()))(
        tables, tokens_BL, tokens_BL, positions_BL)
    expected_BLD = config.embed_scale * tables["embed_VD"][tokens_BL]
    if config.positions == "learned":
        expected_BLD = expected_BLD + tables["embed_position_LD"][positions_BL + 2]
    if config.positions == "sinusoidal":
        expected_BLD = expected_BLD + np.asarray(sinusoids(positions_BL, 6))
    if config.embed_norm:
        expected_BLD = expected_BLD + tables["embed_type_AD"][0]
        centred_BLD = expected_BLD - expected_BLD.mean(-1, keepdims=True)
        expected_BLD = (centred_BLD / np.sqrt((centred_BLD**2).mean(-1, keepdims=True) + 0.1)
                        * tables["embed_norm_D"][None, None]
                        + tables["embed_norm_bias_D"][None, None])
    np.testing.assert_allclose(found_BLD, expected_BLD, atol=1e-5)


def test_rows_beyond_a_table_of_positions_are_refused():
    config = dataclasses.replace(CONFIG, positions="learned", max_positions=4, position_offset=2)
    rows = [np.zeros((1, 5), int)] * 3
    with pytest.raises(UserError, match=r"rows of 5 tokens: exceed model\.max_positions=4"):
        jax.eval_shape(lambda: forward(init(config, jax.random.key(0)), *rows, config=config,
                                       execution=Execution()))
    with pytest.raises(UserError, match=r"exceed model\.max_positions=4"):
        make_cache(config, Execution(), 1, 5)
    assert make_cache(config, Execution(), 1, 4).layers[0].k_BGMK.shape[2] == 4
