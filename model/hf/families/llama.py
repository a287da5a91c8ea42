"""Llama and what is laid out like it: Mistral, Qwen3, Mixtral and Qwen3 with experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from model.config import ModelConfig
from model.hf.families.parts import linear, read_sizes, write_sizes
from model.hf.fields import Fields
from model.hf.rope_fields import read_rope, write_rope
from model.hf.tables import Entry, Layout

MIXTRAL_EXPERTS = {"router": "block_sparse_moe.gate", "gate": "block_sparse_moe.experts.{e}.w1",
                   "up": "block_sparse_moe.experts.{e}.w3",
                   "down": "block_sparse_moe.experts.{e}.w2"}
QWEN3_EXPERTS = {"router": "mlp.gate", "gate": "mlp.experts.{e}.gate_proj",
                 "up": "mlp.experts.{e}.up_proj", "down": "mlp.experts.{e}.down_proj"}


def entries(config: ModelConfig, *, experts: dict[str, str] | None = None) -> list[Entry]:
    """The entries of a decoder.

    Args:
        experts: names of the modules of a mixture of experts.
    """
    c, layer = config, "model.layers.{n}"
    q_bias, kv_bias = ("(HK)", "(GK)") if c.attention_bias else ("", "")
    table = [
        Entry("embed_VD", "model.embed_tokens.weight", "VD"),
        Entry("blocks/attn_norm_D", f"{layer}.input_layernorm.weight", "D"),
        *linear("blocks/wq_DHK", f"{layer}.self_attn.q_proj", "(HK)D", bias=q_bias),
        *linear("blocks/wk_DGK", f"{layer}.self_attn.k_proj", "(GK)D", bias=kv_bias),
        *linear("blocks/wv_DGK", f"{layer}.self_attn.v_proj", "(GK)D", bias=kv_bias),
        *linear("blocks/wo_HKD", f"{layer}.self_attn.o_proj", "D(HK)",
                bias="D" if c.attention_out_bias else ""),
        Entry("blocks/mlp_norm_D", f"{layer}.post_attention_layernorm.weight", "D"),
        *(_experts(layer, experts) if experts else dense_mlp(layer, c.mlp_bias)),
        Entry("final_norm_D", "model.norm.weight", "D"),
    ]
    if c.qk_norm:
        table += [Entry("blocks/q_norm_K", f"{layer}.self_attn.q_norm.weight", "K"),
                  Entry("blocks/k_norm_K", f"{layer}.self_attn.k_norm.weight", "K")]
    if not c.tied:
        table.append(Entry("head_DV", "lm_head.weight", "VD"))
    return table


def dense_mlp(layer: str, has_bias: bool) -> list[Entry]:
    """The entries of a gated MLP."""
    hidden, out = ("F", "D") if has_bias else ("", "")
    return [*linear("blocks/w_gate_DF", f"{layer}.mlp.gate_proj", "FD", bias=hidden),
            *linear("blocks/w_up_DF", f"{layer}.mlp.up_proj", "FD", bias=hidden),
            *linear("blocks/w_down_FD", f"{layer}.mlp.down_proj", "DF", bias=out)]


def _experts(layer: str, names: dict[str, str]) -> list[Entry]:
    return [Entry("blocks/router_DE", f"{layer}.{names['router']}.weight", "ED"),
            Entry("blocks/w_gate_EDF", f"{layer}.{names['gate']}.weight", "FD"),
            Entry("blocks/w_up_EDF", f"{layer}.{names['up']}.weight", "FD"),
            Entry("blocks/w_down_EFD", f"{layer}.{names['down']}.weight", "DF")]


def _read_common(hf: Fields) -> dict[str, Any]:
    hf.only("hidden_act", "silu")
    hf.only("rope_interleaved", False)
    return read_sizes(hf) | read_rope(hf) | {
        "norm_eps": hf.number("rms_norm_eps"), "tied": hf.flag("tie_word_embeddings", False)}


def _write_common(c: ModelConfig) -> dict[str, Any]:
    return write_sizes(c) | write_rope(c) | {
        "hidden_act": "silu", "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied}


def _read_biases(hf: Fields) -> dict[str, bool]:
    has_bias = hf.flag("attention_bias", False)
    return {"attention_bias": has_bias, "attention_out_bias": has_bias}


def read_llama(hf: Fields) -> ModelConfig:
    """Llama, arXiv 2407.21783; SmolLM2 is one."""
    return ModelConfig(qk_norm=False, mlp_bias=hf.flag("mlp_bias", False), **_read_biases(hf),
                       **_read_common(hf))


def write_llama(c: ModelConfig) -> dict[str, Any] | None:
    """The fields of a Llama; None where heads do not divide the width, which it asks for."""
    if c.D % c.H:
        return None
    return _write_common(c) | {"attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias}


def read_mistral(hf: Fields) -> ModelConfig:
    """Mistral, arXiv 2310.06825: Llama, every layer of which may have a window."""
    return ModelConfig(qk_norm=False, window=_read_window(hf), **_read_common(hf))


def write_mistral(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Mistral."""
    return _write_common(c) | {"sliding_window": c.window or None}


def _read_window(hf: Fields) -> int:
    if "sliding_window" not in hf:
        return 0
    kinds = hf.get("layer_types", [])
    if any(kind != "sliding_attention" for kind in kinds):
        hf.refuse("layer_types", "has a layer without a window, which this family has not")
    return hf.count("sliding_window")


def read_qwen3(hf: Fields) -> ModelConfig:
    """Qwen3, arXiv 2505.09388: queries and keys are normed."""
    window = 0
    if hf.flag("use_sliding_window", False):
        hf.only("max_window_layers", 0)     # the first layers that have none
        window = _read_window(hf)
    elif any(kind != "full_attention" for kind in hf.get("layer_types", [])):
        hf.refuse("layer_types", "has a window, and use_sliding_window is false")
    hf.pass_over("sliding_window", "max_window_layers")
    return ModelConfig(qk_norm=True, window=window, **_read_biases(hf), **_read_common(hf))


def write_qwen3(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Qwen3."""
    fields = _write_common(c) | {"attention_bias": c.attention_bias,
                                 "use_sliding_window": c.window > 0}
    if c.window:
        fields |= {"sliding_window": c.window, "max_window_layers": 0,
                   "layer_types": ["sliding_attention"] * c.N}
    return fields


def read_mixtral(hf: Fields) -> ModelConfig:
    """Mixtral, arXiv 2401.04088: Mistral with experts."""
    return ModelConfig(qk_norm=False, window=_read_window(hf), E=hf.count("num_local_experts"),
                       experts_per_token=hf.count("num_experts_per_tok"), **_read_common(hf))


def write_mixtral(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Mixtral."""
    return write_mistral(c) | {"num_local_experts": c.E,
                               "num_experts_per_tok": c.experts_per_token}


def read_qwen3_moe(hf: Fields) -> ModelConfig:
    """Qwen3 with experts in every layer."""
    hf.only("decoder_sparse_step", 1)
    hf.only("mlp_only_layers", [])
    hf.only("use_sliding_window", False)
    hf.pass_over("sliding_window", "max_window_layers")
    fields = _read_common(hf) | {"F": hf.count("moe_intermediate_size")}
    experts = "num_experts" if "num_experts" in hf else "num_local_experts"     # 4, and 5
    return ModelConfig(qk_norm=True, E=hf.count(experts),
                       experts_per_token=hf.count("num_experts_per_tok"),
                       renormalise_gates=hf.flag("norm_topk_prob"), **_read_biases(hf), **fields)


def write_qwen3_moe(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Qwen3 with experts."""
    return _write_common(c) | {
        "attention_bias": c.attention_bias, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "use_sliding_window": False, "moe_intermediate_size": c.F, "num_experts": c.E,
        "num_local_experts": c.E, "num_experts_per_tok": c.experts_per_token,
        "norm_topk_prob": c.renormalise_gates}


_IGNORED = {"ignored": (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
            "copies": {"lm_head.weight": "model.embed_tokens.weight"}}
LLAMA = Layout("llama", "LlamaForCausalLM", entries, read_llama, write_llama, **_IGNORED)
MISTRAL = Layout("mistral", "MistralForCausalLM", entries, read_mistral, write_mistral, **_IGNORED)
QWEN3 = Layout("qwen3", "Qwen3ForCausalLM", entries, read_qwen3, write_qwen3, **_IGNORED)
MIXTRAL = Layout("mixtral", "MixtralForCausalLM", partial(entries, experts=MIXTRAL_EXPERTS),
                 read_mixtral, write_mixtral, **_IGNORED)
QWEN3_MOE = Layout("qwen3_moe", "Qwen3MoeForCausalLM", partial(entries, experts=QWEN3_EXPERTS),
                   read_qwen3_moe, write_qwen3_moe, **_IGNORED)
