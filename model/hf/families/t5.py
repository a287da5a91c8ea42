"""T5, and its version 1.1 that Flan-T5 has too: `T5ForConditionalGeneration`."""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from model.hf.fields import Fields
from model.hf.tables import Entry, Layout

MLPS = {"relu": "relu", "gated-gelu": "geglu", "gated-silu": "swiglu", "gelu": "gelu"}
# What transformers makes of them: GEGLU has the approximation by tanh.
DENSE_ACTS = {"relu": "relu", "geglu": "gelu_new", "swiglu": "silu", "gelu": "gelu"}


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


def read_t5(hf: Fields) -> ModelConfig:
    """T5, arXiv 1910.10683.

    The first version ties its head and scales its logits, version 1.1 does neither. transformers 5
    writes the latter as `scale_decoder_outputs`, and always `tie_word_embeddings`.
    """
    hf.only("is_encoder_decoder", True)
    hf.only("is_decoder", False)
    is_tied = hf.flag("tie_word_embeddings", True)
    is_first = hf.flag("scale_decoder_outputs", is_tied)
    mlp = hf.choice("feed_forward_proj", MLPS)
    hf.only("dense_act_fn", DENSE_ACTS[mlp])
    hf.only("is_gated_act", mlp.endswith("glu"))
    width, num_layers = hf.count("d_model"), hf.count("num_layers")
    return ModelConfig(
        family="encoder_decoder", V=hf.count("vocab_size"), D=width,
        N=hf.count("num_decoder_layers", num_layers), encoder_layers=num_layers,
        H=hf.count("num_heads"), G=hf.count("num_heads"), K=hf.count("d_kv"), F=hf.count("d_ff"),
        norm_eps=hf.number("layer_norm_epsilon", 1e-6), positions="relative",
        relative_buckets=hf.count("relative_attention_num_buckets", 32),
        relative_distance=hf.count("relative_attention_max_distance", 128), qk_norm=False,
        attention_scale=1.0, mlp=mlp, tied=is_first, logit_scale=width**-0.5 if is_first else 1.0)


def write_t5(c: ModelConfig) -> dict[str, Any] | None:
    """The fields of a T5."""
    projection = next((theirs for theirs, ours in MLPS.items() if ours == c.mlp), None)
    if c.family != "encoder_decoder" or projection is None:
        return None
    return {"is_encoder_decoder": True, "vocab_size": c.V, "d_model": c.D,
            "num_layers": c.encoder_layers, "num_decoder_layers": c.N, "num_heads": c.H,
            "d_kv": c.K, "d_ff": c.F, "layer_norm_epsilon": c.norm_eps,
            "relative_attention_num_buckets": c.relative_buckets,
            "relative_attention_max_distance": c.relative_distance,
            "feed_forward_proj": projection, "dense_act_fn": DENSE_ACTS[c.mlp],
            "tie_word_embeddings": c.tied, "decoder_start_token_id": 0, "pad_token_id": 0}


T5 = Layout(
    "t5", "T5ForConditionalGeneration", entries, read_t5, write_t5,
    copies={"encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight", "lm_head.weight": "shared.weight"},
    # Of old files; nothing reads it.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",))
