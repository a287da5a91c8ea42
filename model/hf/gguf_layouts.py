"""The architectures of GGUF files that we have, by the names of llama.cpp.

What a file says of its architecture are its metadata, ``llama.block_count`` for one; here they lack
the name of the architecture. Of its tensors two facts are added, see `open_gguf_model`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import quote
from model.config import ModelConfig
from model.hf.fields import Fields
from model.hf.gguf_files import open_gguf
from model.hf.tables import Entry, Layout, Tensors
from model.hf.tensor_files import refuse


def open_gguf_model(path: Path) -> tuple[Layout, Fields, Tensors, dict[str, Any]]:
    """Opens a file: its layout, the fields of its architecture, its tensors, all its metadata.

    Raises:
        UserError: the file is damaged, or its architecture is none of ours.
    """
    metadata, tensors = open_gguf(path)
    name = metadata.get("general.architecture")
    layout = next((layout for layout in GGUF_LAYOUTS if layout.model_type == name), None)
    if layout is None:
        known = ", ".join(layout.model_type for layout in GGUF_LAYOUTS)
        refuse(path, f"metadata 'general.architecture' is {quote(name)}, which is none of {known}",
               remedy="import the model's folder of the hub")
    if "token_embd.weight" not in tensors:
        refuse(path, "is missing", tensor="token_embd.weight")
    own = {key.removeprefix(f"{name}."): _shortest(value) for key, value in metadata.items()
           if key.startswith(f"{name}.")}
    facts = {"vocab_size": tensors["token_embd.weight"].shape[0],
             "tie_word_embeddings": "output.weight" not in tensors}
    if own.get("vocab_size", facts["vocab_size"]) != facts["vocab_size"]:
        refuse(path, f"has {facts['vocab_size']:,} rows, and the metadata "
               f"{quote(own['vocab_size'])} tokens", tensor="token_embd.weight")
    return layout, Fields(own | facts, str(path)), tensors, metadata


def _shortest(value: Any) -> Any:
    """A number of 32 bits as it was written before: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def entries(config: ModelConfig, *, permuted: bool) -> list[Entry]:
    """The entries of a decoder.

    Args:
        permuted: whether the pairs that RoPE rotates are neighbours, as in the weights that Meta
            published, and not the halves of a head.
    """
    head = "kp" if permuted else "K"
    table = [
        Entry("embed_VD", "token_embd.weight", "VD"),
        Entry("blocks/attn_norm_D", "blk.{n}.attn_norm.weight", "D"),
        Entry("blocks/wq_DHK", "blk.{n}.attn_q.weight", f"(H{head})D"),
        Entry("blocks/wk_DGK", "blk.{n}.attn_k.weight", f"(G{head})D"),
        Entry("blocks/wv_DGK", "blk.{n}.attn_v.weight", "(GK)D"),
        Entry("blocks/wo_HKD", "blk.{n}.attn_output.weight", "D(HK)"),
        Entry("blocks/mlp_norm_D", "blk.{n}.ffn_norm.weight", "D"),
        Entry("final_norm_D", "output_norm.weight", "D"),
    ]
    if config.E:
        table += [Entry("blocks/router_DE", "blk.{n}.ffn_gate_inp.weight", "ED"),
                  Entry("blocks/w_gate_EDF", "blk.{n}.ffn_gate_exps.weight", "EFD"),
                  Entry("blocks/w_up_EDF", "blk.{n}.ffn_up_exps.weight", "EFD"),
                  Entry("blocks/w_down_EFD", "blk.{n}.ffn_down_exps.weight", "EDF")]
    else:
        table += [Entry("blocks/w_gate_DF", "blk.{n}.ffn_gate.weight", "FD"),
                  Entry("blocks/w_up_DF", "blk.{n}.ffn_up.weight", "FD"),
                  Entry("blocks/w_down_FD", "blk.{n}.ffn_down.weight", "DF")]
    if config.qk_norm:
        table += [Entry("blocks/q_norm_K", "blk.{n}.attn_q_norm.weight", "K"),
                  Entry("blocks/k_norm_K", "blk.{n}.attn_k_norm.weight", "K")]
    if not config.tied:
        table.append(Entry("head_DV", "output.weight", "VD"))
    return table


def read_config(hf: Fields, *, qk_norm: bool, has_experts: bool) -> ModelConfig:
    """The architecture that the metadata describe.

    Raises:
        UserError: a field is missing, or asks for what we do not have.
    """
    width, heads = hf.count("embedding_length"), hf.count("attention.head_count")
    head_size = hf.count("attention.key_length", max(width // heads, 1))
    hf.only("attention.value_length", head_size)
    hf.only("rope.dimension_count", head_size)
    hf.only("rope.scaling.type", "none")
    hf.only("attention.sliding_window", 0)
    hf.pass_over("context_length", "rope.scaling.finetuned", "feed_forward_length")
    experts: dict[str, Any] = {}
    if has_experts:
        experts = {"E": hf.count("expert_count"),
                   "experts_per_token": hf.count("expert_used_count")}
        hf.only("expert_shared_count", 0)
    else:
        hf.only("expert_count", 0)
        hf.pass_over("expert_used_count")
    return ModelConfig(
        V=hf.count("vocab_size"), D=width, N=hf.count("block_count"), H=heads,
        G=hf.count("attention.head_count_kv", heads), K=head_size,
        F=hf.count("expert_feed_forward_length" if has_experts else "feed_forward_length"),
        norm_eps=hf.number("attention.layer_norm_rms_epsilon"),
        rope_theta=float(hf.number("rope.freq_base")), qk_norm=qk_norm,
        tied=hf.flag("tie_word_embeddings"), **experts)


def write_config(c: ModelConfig) -> dict[str, Any]:
    """The reverse of `read_config`."""
    fields = {"vocab_size": c.V, "embedding_length": c.D, "block_count": c.N,
              "attention.head_count": c.H, "attention.head_count_kv": c.G,
              "attention.key_length": c.K, "attention.value_length": c.K,
              "rope.dimension_count": c.K, "feed_forward_length": c.F,
              "attention.layer_norm_rms_epsilon": float(c.norm_eps),
              "rope.freq_base": float(c.rope_theta), "tie_word_embeddings": c.tied}
    if c.E:
        fields |= {"expert_count": c.E, "expert_used_count": c.experts_per_token,
                   "expert_feed_forward_length": c.F}
    return fields


def gguf_metadata(layout: Layout, fields: dict[str, Any], context_tokens: int) -> dict[str, Any]:
    """The metadata of an architecture as they stand in a file."""
    own = {name: value for name, value in fields.items() if name != "tie_word_embeddings"}
    own["context_length"] = context_tokens
    return {"general.architecture": layout.model_type} | {
        f"{layout.model_type}.{name}": value for name, value in own.items()}


def _layout(name: str, *, permuted: bool, qk_norm: bool, has_experts: bool) -> Layout:
    return Layout(name, f"GGUF architecture {name}", partial(entries, permuted=permuted),
                  partial(read_config, qk_norm=qk_norm, has_experts=has_experts), write_config)


GGUF_LAYOUTS = (
    _layout("llama", permuted=True, qk_norm=False, has_experts=False),
    _layout("qwen3", permuted=False, qk_norm=True, has_experts=False),
    _layout("qwen3moe", permuted=False, qk_norm=True, has_experts=True))
