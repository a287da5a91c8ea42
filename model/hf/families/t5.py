"""T5 and its version 1.1 (also Flan-T5 and mT5's layout): `T5ForConditionalGeneration`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from model.config import ModelConfig
from model.hf.tables import Entry, Layout

# (`feed_forward_proj`, `dense_act_fn`) of each of our MLPs.
MLPS = {"relu": ("relu", "relu"), "geglu": ("gated-gelu", "gelu_new"),
        "swiglu": ("gated-silu", "silu"), "gelu": ("gelu", "gelu")}


def entries(config: ModelConfig) -> list[Entry]:
    """The entries of an encoder-decoder; the first layer of each stack has the bias of all."""
    table = [
        Entry("embed_VD", "shared.weight", "VD"),
        *_layers("encoder/blocks/", "encoder", config), *_ends("encoder/", "encoder"),
        *_layers("blocks/", "decoder", config), *_ends("", "decoder")]
    layer = "decoder.block.{n}.layer.1"
    table += [Entry("blocks/cross_norm_D", f"{layer}.layer_norm.weight", "D"),
              *_attention("blocks/cross_", f"{layer}.EncDecAttention")]
    return table + ([] if config.tied else [Entry("head_DV", "lm_head.weight", "VD")])


def _layers(ours: str, stack: str, config: ModelConfig) -> list[Entry]:
    """Self-attention and MLP of one stack."""
    first = f"{stack}.block.{{n}}.layer.0"
    last = f"{stack}.block.{{n}}.layer.{1 if stack == 'encoder' else 2}"
    hidden = {"w_up_DF": "wi"} if config.mlp in ("relu", "gelu") else {
        "w_gate_DF": "wi_0", "w_up_DF": "wi_1"}
    return [Entry(f"{ours}attn_norm_D", f"{first}.layer_norm.weight", "D"),
            *_attention(ours, f"{first}.SelfAttention"),
            Entry(f"{ours}mlp_norm_D", f"{last}.layer_norm.weight", "D"),
            *(Entry(f"{ours}{name}", f"{last}.DenseReluDense.{theirs}.weight", "FD")
              for name, theirs in hidden.items()),
            Entry(f"{ours}w_down_FD", f"{last}.DenseReluDense.wo.weight", "DF")]


def _attention(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}wq_DHK", f"{theirs}.q.weight", "(HK)D"),
            Entry(f"{ours}wk_DGK", f"{theirs}.k.weight", "(GK)D"),
            Entry(f"{ours}wv_DGK", f"{theirs}.v.weight", "(GK)D"),
            Entry(f"{ours}wo_HKD", f"{theirs}.o.weight", "D(HK)")]


def _ends(ours: str, stack: str) -> list[Entry]:
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [Entry(f"{ours}relative_bias_WH", bias, "WH"),
            Entry(f"{ours}final_norm_D", f"{stack}.final_layer_norm.weight", "D")]


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture that `config.json` describes.

    The first T5 ties its head and scales its logits, version 1.1 does neither. transformers 5
    writes the latter as `scale_decoder_outputs` and always `tie_word_embeddings`.

    Raises:
        UserError: a field asks for what we do not have.
    """
    is_first = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
    projection = hf.get("feed_forward_proj", "relu")
    asked = projection, hf.get("dense_act_fn")
    mlp = next((ours for ours, (name, act) in MLPS.items() if asked in ((name, act), (name, None))),
               None)
    if mlp is None:
        raise UserError(f"feed_forward_proj={projection!r}, dense_act_fn={asked[1]!r}",
                        f"is none of {', '.join(' with '.join(pair) for pair in MLPS.values())}",
                        "give a model of one of these")
    for name, ours in (("is_encoder_decoder", True), ("is_decoder", False)):
        if hf.get(name, ours) != ours:
            raise UserError(f"{name}={hf[name]!r}", f"is not {ours!r}, the only one that we have",
                            "give a T5ForConditionalGeneration")
    width = hf["d_model"]
    return ModelConfig(
        family="encoder_decoder", V=hf["vocab_size"], D=width,
        N=hf.get("num_decoder_layers") or hf["num_layers"], encoder_layers=hf["num_layers"],
        H=hf["num_heads"], G=hf["num_heads"], K=hf["d_kv"], F=hf["d_ff"],
        norm_eps=hf.get("layer_norm_epsilon", 1e-6), positions="relative",
        relative_buckets=hf.get("relative_attention_num_buckets", 32),
        relative_distance=hf.get("relative_attention_max_distance", 128), qk_norm=False,
        attention_scale=1.0, mlp=mlp, tied=is_first, logit_scale=width**-0.5 if is_first else 1.0)


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """The fields of `config.json`; None if T5 has no such model."""
    c = config
    if c.family != "encoder_decoder" or c.mlp not in MLPS:
        return None
    hf = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True,
          "vocab_size": c.V, "d_model": c.D, "num_layers": c.encoder_layers,
          "num_decoder_layers": c.N, "num_heads": c.H, "d_kv": c.K, "d_ff": c.F,
          "layer_norm_epsilon": c.norm_eps, "relative_attention_num_buckets": c.relative_buckets,
          "relative_attention_max_distance": c.relative_distance,
          "feed_forward_proj": MLPS[c.mlp][0], "dense_act_fn": MLPS[c.mlp][1],
          "tie_word_embeddings": c.tied, "decoder_start_token_id": 0, "pad_token_id": 0}
    return hf if read_config(hf) == c else None


T5 = Layout(
    "t5", "T5ForConditionalGeneration", entries, read_config, write_config,
    copies={"encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight", "lm_head.weight": "shared.weight"},
    # Of old files; nothing reads it.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",))
