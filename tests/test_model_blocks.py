"""Layers: norms, wirings, attention, MLPs and experts against their formulas in numpy.

Where a row is a single token, attention is its value, projected back.
"""

import dataclasses
import math

import jax
import numpy as np
import pytest

from model.attention.kind import Extras, kind_of
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import Block
from model.families.registry import num_params
from model.layers.positions import rope_frequencies, rope_scale

D, F, EPS, SCALE = 6, 5, 0.1, 0.7
CONFIG = ModelConfig(V=11, D=D, N=2, H=4, G=2, K=3, F=F, norm_eps=EPS, residual_scale=SCALE,
                     positions="none", qk_norm=False)
ACTIVATIONS = {
    "swiglu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0)}
ACTIVATIONS["geglu"] = ACTIVATIONS["gelu_tanh"]


class Layer:
    """One layer of random weights, of a single token."""

    def __init__(self, config):
        block, x_BLD = Block(config, Execution(), kind_of(config)), np.ones((1, 1, D), "float32")
        places_BL, rng = np.zeros((1, 1), int), np.random.default_rng(0)
        shapes = jax.eval_shape(block.init, jax.random.key(0), x_BLD, places_BL, places_BL)
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32"), shapes)
        self.config, self.w = config, params["params"]
        self.x_D = rng.normal(size=D).astype("float32")
        self.found_D = jax.jit(block.apply)(params, self.x_D[None, None], places_BL,
                                            places_BL + 1)[0][0, 0]

    def norm(self, name, x_D):
        scale_D = self.w[f"{name}_D"]
        if self.config.norm == "layer":
            x_D = x_D - x_D.mean()
        x_D = x_D / np.sqrt((x_D**2).mean() + EPS)
        if self.config.norm == "layer":
            return x_D * scale_D + self.w[f"{name}_bias_D"]
        return x_D * (scale_D + (self.config.norm == "rms_plus_one"))

    def attention(self, h_D):
        v_GK = np.einsum("D,DGK->GK", h_D, self.w["wv_DGK"]) + self.w.get("wv_bias_GK", 0)
        v_HK = np.repeat(v_GK, 2, axis=0)
        return np.einsum("HK,HKD->D", v_HK, self.w["wo_HKD"]) + self.w.get("wo_bias_D", 0)

    def mlp(self, h_D):
        act, w = ACTIVATIONS[self.config.mlp], self.w
        up_F = h_D @ w["w_up_DF"] + w.get("w_up_bias_F", 0)
        if self.config.mlp.endswith("glu"):
            up_F = act(h_D @ w["w_gate_DF"] + w.get("w_gate_bias_F", 0)) * up_F
        else:
            up_F = act(up_F)
        return up_F @ w["w_down_FD"] + w.get("w_down_bias_D", 0)


def _wired(layer, kind):
    """The stream after a layer, for each place that norms may have."""
    x, norm, attention, mlp = layer.x_D, layer.norm, layer.attention, layer.mlp
    if kind == "pre":
        x = x + SCALE * attention(norm("attn_norm", x))
        return x + SCALE * mlp(norm("mlp_norm", x))
    if kind == "post":
        x = norm("attn_norm", x + SCALE * attention(x))
        return norm("mlp_norm", x + SCALE * mlp(x))
    if kind == "sandwich":
        x = x + SCALE * norm("attn_out_norm", attention(norm("attn_norm", x)))
        return x + SCALE * norm("mlp_out_norm", mlp(norm("mlp_norm", x)))
    return x + SCALE * (attention(norm("attn_norm", x)) + mlp(norm("mlp_norm", x)))


@pytest.mark.parametrize("residual, norm, mlp, has_bias", [
    ("pre", "rms", "swiglu", True), ("post", "layer", "gelu", True),
    ("sandwich", "rms_plus_one", "geglu", False), ("parallel", "layer", "gelu_tanh", True),
    ("pre", "layer", "relu", False)])
def test_a_layer_follows_its_formula(residual, norm, mlp, has_bias):
    layer = Layer(dataclasses.replace(
        CONFIG, residual=residual, norm=norm, mlp=mlp, mlp_bias=has_bias, attention_bias=has_bias,
        attention_out_bias=has_bias))
    np.testing.assert_allclose(layer.found_D, _wired(layer, residual), rtol=1e-5, atol=1e-5)
    assert ("wq_bias_HK" in layer.w) == ("w_down_bias_D" in layer.w) == has_bias


def _turn(x_LHK, frequency_K, scale):
    """The pairs of a head as complex numbers, turned by their angles."""
    n = len(frequency_K)
    turned_LHK = scale * (x_LHK[..., :n] + 1j * x_LHK[..., n:2 * n]) * np.exp(
        1j * np.arange(len(x_LHK))[:, None] * frequency_K)[:, None]
    return np.concatenate([turned_LHK.real, turned_LHK.imag, x_LHK[..., 2 * n:]], -1)


@pytest.mark.parametrize("fields, is_global", [
    ({"rope_frac": 0.5, "rope_scaling": "yarn", "rope_factor": 8.0, "rope_context": 64}, None),
    ({"window": 2, "global_every": 2, "rope_local_theta": 10.0, "rope_theta": 1000.0}, True),
    ({"window": 2, "global_every": 2, "rope_local_theta": 10.0, "rope_theta": 1000.0}, False)],
    ids=str)
def test_attention_of_rotated_queries_and_keys_follows_its_formula(fields, is_global):
    """The MLP adds nothing."""
    config = dataclasses.replace(CONFIG, K=8, positions="rope", qk_norm=True, mlp="relu", **fields)
    block, rng, length = Block(config, Execution(), kind_of(config)), np.random.default_rng(0), 5
    x_LD = rng.normal(size=(length, D)).astype("float32")
    rows = x_LD[None], np.arange(length)[None], np.ones((1, length), int)
    shapes = jax.eval_shape(block.init, jax.random.key(0), *rows)
    w = {name: rng.normal(size=leaf.shape).astype("float32") * (name != "w_down_FD")
         for name, leaf in shapes["params"].items()}
    extras = Extras(None if is_global is None else np.bool_(is_global))
    found_LD = jax.jit(block.apply)({"params": w}, *rows, extras=extras)[0][0]

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale

    frequency_K, scale = rope_frequencies(config, is_local=is_global is False), rope_scale(config)
    h_LD = norm(x_LD, w["attn_norm_D"])
    q_LHK, k_LGK = (_turn(norm(np.einsum("LD,DHK->LHK", h_LD, w[weight]), w[of]), frequency_K,
                          scale)
                    for weight, of in (("wq_DHK", "q_norm_K"), ("wk_DGK", "k_norm_K")))
    v_LGK = np.einsum("LD,DGK->LGK", h_LD, w["wv_DGK"])
    distance_LM = np.arange(length)[:, None] - np.arange(length)[None]
    sees_LM = np.isin(distance_LM, np.arange(2 if is_global is False else length))
    out_LD = 0
    for h in range(4):
        weights_LM = sees_LM * np.exp(q_LHK[:, h] @ k_LGK[:, h // 2].T / 8**0.5)
        weights_LM /= weights_LM.sum(1, keepdims=True)
        out_LD = out_LD + weights_LM @ v_LGK[:, h // 2] @ w["wo_HKD"][h]
    np.testing.assert_allclose(found_LD, x_LD + SCALE * out_LD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("renormalises", [True, False])
def test_shared_experts_are_added_to_the_chosen_ones(renormalises):
    layer = Layer(dataclasses.replace(CONFIG, E=4, experts_per_token=2, shared_experts=3,
                                      renormalise_gates=renormalises))
    x_D, w = layer.x_D + SCALE * layer.attention(layer.norm("attn_norm", layer.x_D)), layer.w
    h_D = layer.norm("mlp_norm", x_D)
    score_E = np.exp(h_D @ w["router_DE"])
    gate_E = score_E / score_E.sum()
    chosen = np.argsort(-gate_E)[:2]
    if renormalises:
        gate_E = gate_E / gate_E[chosen].sum()

    def expert(prefix, letter, e):
        gate_F, up_F = (h_D @ w[f"{prefix}w_{name}_{letter}DF"][e] for name in ("gate", "up"))
        return ACTIVATIONS["swiglu"](gate_F) * up_F @ w[f"{prefix}w_down_{letter}FD"][e]

    added_D = sum(gate_E[e] * expert("", "E", e) for e in chosen)
    added_D = added_D + sum(expert("shared_", "Z", z) for z in range(3))
    np.testing.assert_allclose(layer.found_D, x_D + SCALE * added_D, rtol=1e-5, atol=1e-5)


def test_parts_have_the_parameters_of_their_formulas():
    plain = num_params(CONFIG)
    for fields, more in [
            ({"norm": "layer"}, 2 * 2 * D + D), ({"residual": "post"}, -D),
            ({"residual": "sandwich"}, 2 * 2 * D), ({"mlp": "gelu"}, -2 * D * F),
            ({"mlp_bias": True}, 2 * (2 * F + D)), ({"attention_bias": True}, 2 * (4 + 2 + 2) * 3),
            ({"attention_out_bias": True}, 2 * D), ({"qk_norm": True}, 2 * 2 * 3),
            ({"sinks": True}, 2 * 4), ({"tied": True}, -D * 11), ({"head_bias": True}, 11),
            ({"positions": "relative", "relative_buckets": 8}, 8 * 4),
            ({"positions": "learned", "max_positions": 7, "position_offset": 2}, 9 * D),
            ({"embed_norm": True}, D), ({"token_types": 2}, 2 * D),
            ({"E": 3}, 2 * (3 * D + 2 * 3 * D * F)),
            ({"E": 3, "shared_experts": 2}, 2 * (3 * D + 4 * 3 * D * F)),
            ({"family": "encoder", "masked_head": True}, D * D + D + D),
            ({"family": "encoder", "pooler": True}, D * D + D)]:
        assert num_params(dataclasses.replace(CONFIG, **fields)) - plain == more, fields
