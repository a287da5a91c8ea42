"""Llama and what is laid out like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from model.config import ModelConfig
from model.hf.tables import Entry


def entries(config: ModelConfig) -> list[Entry]:
    """The entries of a dense decoder."""
    table = [
        Entry("embed_VD", "model.embed_tokens.weight", "VD"),
        Entry("blocks/attn_norm_D", "model.layers.{n}.input_layernorm.weight", "D"),
        Entry("blocks/wq_DHK", "model.layers.{n}.self_attn.q_proj.weight", "(HK)D"),
        Entry("blocks/wk_DGK", "model.layers.{n}.self_attn.k_proj.weight", "(GK)D"),
        Entry("blocks/wv_DGK", "model.layers.{n}.self_attn.v_proj.weight", "(GK)D"),
        Entry("blocks/wo_HKD", "model.layers.{n}.self_attn.o_proj.weight", "D(HK)"),
        Entry("blocks/mlp_norm_D", "model.layers.{n}.post_attention_layernorm.weight", "D"),
        Entry("blocks/w_gate_DF", "model.layers.{n}.mlp.gate_proj.weight", "FD"),
        Entry("blocks/w_up_DF", "model.layers.{n}.mlp.up_proj.weight", "FD"),
        Entry("blocks/w_down_FD", "model.layers.{n}.mlp.down_proj.weight", "DF"),
        Entry("final_norm_D", "model.norm.weight", "D"),
    ]
    if config.qk_norm:
        table += [Entry("blocks/q_norm_K", "model.layers.{n}.self_attn.q_norm.weight", "K"),
                  Entry("blocks/k_norm_K", "model.layers.{n}.self_attn.k_norm.weight", "K")]
    if not config.tied:
        table.append(Entry("head_DV", "lm_head.weight", "VD"))
    return table


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture that `config.json` describes."""
    heads = hf["num_attention_heads"]
    return ModelConfig(
        V=hf["vocab_size"], D=hf["hidden_size"], N=hf["num_hidden_layers"], H=heads,
        G=hf.get("num_key_value_heads") or heads,
        K=hf.get("head_dim") or hf["hidden_size"] // heads, F=hf["intermediate_size"],
        norm_eps=hf["rms_norm_eps"], qk_norm=hf["model_type"] == "qwen3",
        tied=hf.get("tie_word_embeddings", False), **read_rope(hf))


def read_rope(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of RoPE, from `rope_parameters` of transformers 5 or `rope_scaling` before it.

    Raises:
        UserError: a kind of scaling that we do not have.
    """
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    fields = {"rope_theta": rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0}
    if kind == "default":
        return fields
    fields |= {"rope_scaling": kind, "rope_factor": rope["factor"]}
    if kind == "linear":
        return fields
    if kind not in ("llama3", "yarn"):
        raise UserError(f"rope_type={kind!r}", "is none of default, linear, llama3, yarn",
                        "give a model of one of these")
    low, high = {"llama3": ("low_freq_factor", "high_freq_factor"),
                 "yarn": ("beta_slow", "beta_fast")}[kind]
    start = {"llama3": (1.0, 4.0), "yarn": (1.0, 32.0)}[kind]
    return fields | {"rope_context": rope["original_max_position_embeddings"],
                     "rope_low": rope.get(low, start[0]), "rope_high": rope.get(high, start[1])}
