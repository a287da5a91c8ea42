"""Kinds of attention: what a query sees, and how scores become weights."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from data.batch import Source
from model.attention.backends import Machine, choose_backend
from model.attention.kind import Extras, Kind, kind_of
from model.attention.reference import attend, document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import layer_inputs
from model.families.registry import forward, init

RNG = np.random.default_rng(0)
B, L, H, G, K = 2, 7, 4, 2, 4
EXECUTION = Execution()
TINY = ModelConfig(V=32, D=8, N=1, H=2, G=1, K=4, F=8)
# Three documents, of 6, 3 and 3 tokens; all tokens differ, so that an embedding is a place's own.
SEGMENTS_BL = np.repeat([1, 2, 3], [6, 3, 3])[None]
POSITIONS_BL = np.concatenate([np.arange(6), np.arange(3), np.arange(3)])[None]
TOKENS_BL = np.arange(12)[None]
DISTANCE_LM = np.arange(12)[:, None] - np.arange(12)[None]
SAME_LM = SEGMENTS_BL.T == SEGMENTS_BL


class Inputs(NamedTuple):
    q_BLHK: np.ndarray
    k_BLGK: np.ndarray
    v_BLGK: np.ndarray


@pytest.fixture(scope="module")
def inputs():
    return Inputs(*(RNG.normal(size=(B, L, heads, K)).astype("float32") for heads in (H, G, G)))


def _attend(inputs, kind, extras, mask_BLM):
    """One head of one row at a time; a score of no key counts as a key whose value is zero."""
    out_BLHK = np.zeros(inputs.q_BLHK.shape)
    for b, h in np.ndindex(B, H):
        g = h // (H // G)
        scores_LM = inputs.q_BLHK[b, :, h] @ inputs.k_BLGK[b, :, g].T * (kind.scale or K**-0.5)
        if kind.softcap:
            scores_LM = kind.softcap * np.tanh(scores_LM / kind.softcap)
        if kind.has_bias:
            scores_LM = scores_LM + extras.bias_BHLM[0, h]
        weights_LM = np.exp(scores_LM) * mask_BLM[b]
        nothing = np.exp(extras.sinks_H[h]) if kind.has_sinks else 0
        out_BLHK[b, :, h] = weights_LM / (weights_LM.sum(1, keepdims=True) + nothing) @ (
            inputs.v_BLGK[b, :, g])
    return out_BLHK


@pytest.mark.parametrize("fields", [
    {"scale": 1.3}, {"softcap": 0.5}, {"has_bias": True}, {"has_sinks": True},
    {"scale": 2.0, "softcap": 1.5, "has_bias": True, "has_sinks": True}], ids=str)
def test_scores_become_weights_by_the_formula(inputs, fields):
    kind = Kind(K, **fields)
    extras = Extras(bias_BHLM=RNG.normal(size=(1, H, L, L)).astype("float32"),
                    sinks_H=RNG.normal(size=H).astype("float32"))
    mask_BLM = np.tril(np.ones((B, L, L), bool))
    run = jax.jit(attend, static_argnums=4)
    found_BLHK = run(*inputs, mask_BLM, kind, extras)
    np.testing.assert_allclose(found_BLHK, _attend(inputs, kind, extras, mask_BLM), atol=1e-5)
    ones_BLGK = np.ones_like(inputs.v_BLGK)
    total_BLHK = np.asarray(run(inputs.q_BLHK, inputs.k_BLGK, ones_BLGK, mask_BLM, kind, extras))
    assert (total_BLHK < 1).all() if kind.has_sinks else np.allclose(total_BLHK, 1)


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_window_is_of_the_last_keys_and_a_global_layer_has_none(is_causal):
    kind = Kind(is_causal=is_causal, window=3)
    visible_LM = SAME_LM & (DISTANCE_LM >= 0 if is_causal else True)
    near_LM = visible_LM & (abs(DISTANCE_LM) < 3)
    mask = jax.jit(document_mask, static_argnums=1)
    for is_global, expected_LM in ((None, near_LM), (np.bool_(False), near_LM),
                                   (np.bool_(True), visible_LM)):
        np.testing.assert_array_equal(mask(SEGMENTS_BL, kind, is_global)[0], expected_LM)


def _influence(config, *source):
    """Whether a place's states depend on a token, [L, V]."""
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    direction_D = RNG.normal(size=config.D).astype("float32")

    @jax.jit
    @jax.jacrev
    def states(embed_VD):
        x_BLD = forward(params | {"embed_VD": embed_VD}, TOKENS_BL, POSITIONS_BL, SEGMENTS_BL,
                        *source, config=config, execution=EXECUTION)
        return x_BLD[0] @ direction_D

    return np.abs(np.asarray(states(params["embed_VD"]))).sum(-1) > 0


@pytest.mark.parametrize("fields, reach", [
    ({"window": 3}, 2), pytest.param({"window": 3, "N": 2}, 4, marks=pytest.mark.full),
    ({"window": 3, "N": 2, "global_every": 3}, 4),
    ({"window": 3, "N": 2, "global_every": 2}, 12)], ids=str)
def test_influence_reaches_as_far_as_the_windows_of_the_layers(fields, reach):
    influence_LM = _influence(dataclasses.replace(TINY, **fields))[:, :12]
    np.testing.assert_array_equal(
        influence_LM, SAME_LM & np.isin(DISTANCE_LM, np.arange(reach + 1)))


def test_every_so_many_layers_one_is_global():
    config = dataclasses.replace(TINY, N=7, window=2, global_every=3)
    own = jax.eval_shape(lambda: layer_inputs({"blocks": {}}, config))
    assert own["is_global_N"].shape == (7,)
    np.testing.assert_array_equal(layer_inputs({"blocks": {}}, config)["is_global_N"],
                                  [False, False, True] * 2 + [False])
    assert "is_global_N" not in layer_inputs({"blocks": {}}, TINY)


@pytest.mark.parametrize("positions", ["rope", "relative"])
def test_an_encoder_sees_all_of_a_document(positions):
    config = dataclasses.replace(TINY, family="encoder", positions=positions)
    np.testing.assert_array_equal(_influence(config)[:, :12], SAME_LM)


def test_a_decoder_sees_all_of_the_source_of_its_own_segment():
    config = dataclasses.replace(TINY, family="encoder_decoder", encoder_layers=1)
    source = Source(np.arange(20, 28)[None], np.repeat([1, 3, 2, 0], 2)[None],
                    np.tile([0, 1], 4)[None])
    influence_LV = _influence(config, source)
    np.testing.assert_array_equal(influence_LV[:, :12], SAME_LM & (DISTANCE_LM >= 0))
    np.testing.assert_array_equal(influence_LV[:, 20:28],
                                  np.equal(SEGMENTS_BL.T, source.segment_ids_BM))


def test_a_kernel_without_a_part_is_not_chosen():
    kinds = [kind_of(dataclasses.replace(TINY, **fields)) for fields in (
        {"window": 2}, {"attention_softcap": 1.0}, {"positions": "relative"}, {"sinks": True})]
    kinds.append(kind_of(TINY, is_causal=False))
    gpu = Machine("gpu", "H100", (9, 0))
    execution = Execution(compute_dtype="bfloat16")
    assert choose_backend(Kind(64), execution, machine=gpu) != "xla"
    assert {choose_backend(kind._replace(head_size=64), execution, machine=gpu)
            for kind in kinds} == {"xla"}
