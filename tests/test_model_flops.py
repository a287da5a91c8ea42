"""FLOP counts against parameters that were made, a compiler's count, and published runs."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.adapters.lora import Lora, abstract_lora, apply_lora
from model.attention.kind import kind_of
from model.attention.reference import document_mask
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import FAMILIES, abstract_params, forward
from model.flops import forward_flops_per_token, matmul_params, mfu, peak_flops
from model.flops import train_flops_per_token as train_flops
from model.heads.language import logits

LLAMA2_7B = ModelConfig(V=32000, D=4096, N=32, H=32, G=32, K=128, F=11008, qk_norm=False)
# Widths of GPT-2 with SwiGLU at 8/3 of the width: the parameters of a GELU MLP of four widths.
GPT2 = ModelConfig(V=50304, D=768, N=12, H=12, G=12, K=64, F=2048, tied=True)


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"G": 4, "embed_previous": True}], ids=str)
def test_all_matrices_but_the_look_ups_are_counted(config, changes):
    config = dataclasses.replace(config, **changes)
    shapes = abstract_params(config)
    multiplied = [leaf.size for name, leaf in shapes["blocks"].items() if "norm" not in name]
    assert matmul_params(config) == sum(multiplied) + config.D * config.V


def test_llama2_7b_has_its_published_parameters():
    norms, embedding = (2 * 32 + 1) * 4096, 32000 * 4096
    assert matmul_params(LLAMA2_7B) + norms + embedding == 6_738_415_616


def test_only_the_experts_of_a_token_are_counted(config):
    config = dataclasses.replace(config, E=8, experts_per_token=2)
    shapes = abstract_params(config)["blocks"]
    experts = {name for name in shapes if name.endswith(("_EDF", "_EFD"))}
    assert len(experts) == 3
    met = sum(leaf.size // 4 if name in experts else leaf.size
              for name, leaf in shapes.items() if "norm" not in name)
    assert matmul_params(config) == met + config.D * config.V


def test_the_compiler_counts_the_same_for_an_unrolled_forward_pass(config):
    """XLA multiplies full rows and counts every elementwise operation too, so it finds more."""
    config = dataclasses.replace(config, N=1, D=128, H=8, G=8, K=16, F=512)
    execution = Execution(attention="xla")
    row_length = 64

    def run(params, tokens_BL):
        positions_BL = jnp.broadcast_to(jnp.arange(row_length), tokens_BL.shape)
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config,
                        execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)

    shapes = abstract_params(config)
    tokens = jax.ShapeDtypeStruct((1, row_length), jnp.int32)
    counted = jax.jit(run).lower(shapes, tokens).cost_analysis()["flops"]
    ours = row_length * forward_flops_per_token(config, row_length, "full")
    assert ours <= counted <= 1.05 * ours


def flops_of(jaxpr) -> float:
    """FLOPs of all matrix products of a trace; those of a scan's body once for each iteration."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "ragged_dot_general"):
            left, right = (variable.aval.shape for variable in equation.invars[:2])
            if equation.primitive.name == "dot_general":
                (summed, _), _ = equation.params["dimension_numbers"]
                total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(
                    left[axis] for axis in summed)
            else:       # a row meets the matrix of one group
                total += 2 * left[0] * math.prod(right[1:])
        inner = sum(flops_of(getattr(leaf, "jaxpr", leaf))
                    for leaf in jax.tree.leaves(equation.params, is_leaf=is_jaxpr)
                    if is_jaxpr(leaf))
        total += equation.params.get("length", 1) * inner
    return total


def is_jaxpr(leaf) -> bool:
    return hasattr(getattr(leaf, "jaxpr", leaf), "eqns")


KINDS = {
    "decoder": {}, "plain mlp": dict(mlp="gelu"), "geglu, tied": dict(mlp="geglu", tied=True),
    "window": dict(window=8, global_every=2), "parallel": dict(residual="parallel", norm="layer"),
    "experts": dict(E=4, experts_per_token=2, shared_experts=1),
    "encoder": dict(family="encoder", masked_head=True, mlp="gelu", residual="post"),
    "encoder-decoder": dict(family="encoder_decoder", encoder_layers=3, positions="relative"),
    "lstm": dict(family="lstm")}


@pytest.mark.parametrize("name", KINDS)
def test_a_trace_of_the_forward_pass_has_as_many(config, name):
    """Reference attention multiplies all pairs of a row, those outside a window too."""
    config = dataclasses.replace(config, embed_previous=False, N=2, **KINDS[name])
    execution, source_length, target_length = Execution(attention="xla"), 40, 24
    source = SimpleNamespace(**{f"{field}_BM": jnp.ones((2, source_length), jnp.int32)
                                for field in ("tokens", "positions", "segment_ids")})
    sources = (source,) * (config.family == "encoder_decoder")

    def run(params, tokens_BL):
        x_BLD, _ = FAMILIES[config.family].forward_with_stats(
            params, tokens_BL, tokens_BL, tokens_BL, *sources, config=config, execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)

    tokens_BL = jax.ShapeDtypeStruct((2, target_length), jnp.int32)
    traced = flops_of(jax.make_jaxpr(run)(abstract_params(config), tokens_BL).jaxpr)
    counted = dataclasses.replace(config, window=0, global_every=0)
    row_length = source_length if sources else target_length
    assert traced == 2 * row_length * forward_flops_per_token(
        counted, row_length, "full", target_length=target_length if sources else None)


def test_a_trace_of_an_adapters_gradient_has_those_of_frozen_weights(config):
    """Beside them are those of the adapter itself, which are not counted."""
    config = dataclasses.replace(config, embed_previous=False)
    lora, execution = Lora(rank=1), Execution(attention="xla")
    adapter, num_tokens = abstract_lora(config, lora), 24

    def loss(adapter, params, tokens_BL):
        x_BLD = forward(apply_lora(params, adapter, lora), tokens_BL, tokens_BL, tokens_BL,
                        config=config, execution=execution)
        return jnp.sum(logits(params, x_BLD, config=config, execution=execution) ** 2)

    tokens_BL = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)
    traced = flops_of(jax.make_jaxpr(jax.grad(loss))(
        adapter, abstract_params(config), tokens_BL).jaxpr)
    own = 6 * sum(leaf.size for leaf in jax.tree.leaves(adapter))
    assert traced == num_tokens * (own + train_flops(config, num_tokens, "full", is_frozen=True))


@pytest.mark.parametrize("family", ["decoder", "encoder"])
@pytest.mark.parametrize("window, row_length", [(64, 1024), (1024, 1024), (4096, 1024)])
def test_the_pairs_of_a_window_are_those_of_its_mask(config, family, window, row_length):
    layers = dict(N=3, global_every=3, family=family, embed_previous=False)
    windowed = dataclasses.replace(config, window=window, **layers)
    pairs = sum(np.sum(document_mask(jnp.ones((1, row_length), jnp.int32),
                                     kind_of(windowed, is_causal=family == "decoder"), is_global))
                for is_global in (False, False, True))
    flops = forward_flops_per_token(windowed, row_length) - 2 * matmul_params(windowed)
    mask = 4 * config.H * config.K * float(pairs) / row_length
    assert flops == pytest.approx(mask, rel=0.01)      # half a key a query less
    if family == "decoder":
        full = forward_flops_per_token(windowed, row_length, "full") - 2 * matmul_params(windowed)
        assert full == 4 * config.H * config.K * (row_length + 2 * min(window, row_length))


def test_training_counts_of_named_sizes():
    # 6 * (12 layers * 12 * 768^2 + 768 * 50304) + 6 * 12 * 768 * 1024, by hand
    assert train_flops(GPT2, 1024) == 6 * (84_934_656 + 38_633_472) + 56_623_104
    assert train_flops(GPT2, 1024) == pytest.approx(0.80e9, rel=0.005)
    assert train_flops(GPT2, 1024, "full") - train_flops(GPT2, 1024) == 56_623_104
    wide = dataclasses.replace(GPT2, D=2048, N=24, H=16, G=16, K=128, F=5461)
    assert train_flops(wide, 2048) == pytest.approx(8.47e9, rel=0.001)
    assert train_flops(GPT2, 1024) == 3 * forward_flops_per_token(GPT2, 1024)


def test_the_attention_term_is_that_of_palm():
    """Appendix B: 45.7 % without and 46.2 % with attention, at 238.3k tokens/s on 6144 TPU v4."""
    palm = ModelConfig(V=1, D=1, N=118, H=48, G=1, K=256, F=1)
    attention = train_flops(palm, 2048, "full") - 6 * matmul_params(palm)
    peak = 6144 * peak_flops("TPU v4")
    assert 238.3e3 * 6 * 540e9 / peak == pytest.approx(0.457, abs=5e-4)
    assert 238.3e3 * (6 * 540e9 + attention) / peak == pytest.approx(0.462, abs=5e-4)


def test_mfu_of_published_runs():
    """NVIDIA's MaxText (11,362 tokens/s a device) and llm.c (45 minutes for 10B tokens)."""
    on_h100 = dict(compute_dtype="bfloat16", device_kind="NVIDIA H100 80GB HBM3", num_devices=8)
    llama = mfu(8 * 11_362, LLAMA2_7B, 4096, **on_h100)
    assert llama["mfu_causal"] == pytest.approx(0.492, abs=5e-4)
    assert llama["mfu_full"] > llama["mfu_causal"]
    gpt2 = mfu(10e9 / 2700, GPT2, 1024, **on_h100)
    assert gpt2["mfu_causal"] == pytest.approx(0.373, abs=1e-3)


@pytest.mark.parametrize("compute_dtype, device_kind", [
    ("bfloat16", "cpu"), ("float32", "NVIDIA H200")])
def test_there_is_no_mfu_without_a_known_peak(compute_dtype, device_kind):
    assert mfu(1e5, GPT2, 1024, compute_dtype=compute_dtype, device_kind=device_kind,
               num_devices=1) == {}


@pytest.mark.parametrize("kind, expected", [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA L4", 121e12),
    ("NVIDIA L40S", 362e12), ("NVIDIA GeForce RTX 4090", 165e12), ("NVIDIA B200", 2250e12),
    ("TPU v4", 275e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12), ("cpu", None), ("NVIDIA L40", None), ("TPU v4 lite", None),
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA RTX A100", None)])
def test_peaks_of_devices(kind, expected):
    assert peak_flops(kind) == expected


def test_fp8_peaks():
    assert peak_flops("NVIDIA H200", "fp8") == 1979e12
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp8") is None
