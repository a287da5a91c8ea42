"""The decoders of LayerNorm and biases: GPT-2, OPT and GPT-NeoX."""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from model.hf.families.parts import ACTIVATIONS, activation_name, layer_norm, linear
from model.hf.fields import Fields
from model.hf.rope_fields import read_rope, write_rope
from model.hf.tables import Entry, Layout

_COMMON = {"norm": "layer", "qk_norm": False, "mlp_bias": True}


def gpt2_entries(config: ModelConfig) -> list[Entry]:
    """The entries of a GPT-2, whose matrices are stored transposed and whose first is fused."""
    layer = "transformer.h.{n}"
    table = [
        Entry("embed_VD", "transformer.wte.weight", "VD"),
        Entry("embed_position_LD", "transformer.wpe.weight", "LD"),
        *layer_norm("blocks/attn_norm", f"{layer}.ln_1"),
        *(entry for place, (name, head) in enumerate((("wq", "H"), ("wk", "G"), ("wv", "G")))
          for entry in linear(f"blocks/{name}_D{head}K", f"{layer}.attn.c_attn", f"D(Q{head}K)",
                              bias=f"(Q{head}K)", pick=f"Q{place}")),
        *linear("blocks/wo_HKD", f"{layer}.attn.c_proj", "(HK)D", bias="D"),
        *layer_norm("blocks/mlp_norm", f"{layer}.ln_2"),
        *linear("blocks/w_up_DF", f"{layer}.mlp.c_fc", "DF", bias="F"),
        *linear("blocks/w_down_FD", f"{layer}.mlp.c_proj", "FD", bias="D"),
        *layer_norm("final_norm", "transformer.ln_f"),
    ]
    return table if config.tied else [*table, Entry("head_DV", "lm_head.weight", "VD")]


def read_gpt2(hf: Fields) -> ModelConfig:
    """GPT-2 (Radford et al. 2019)."""
    hf.only("scale_attn_weights", True)
    hf.only("scale_attn_by_inverse_layer_idx", False)
    hf.only("add_cross_attention", False)
    width = hf.count("n_embd")
    sizes = _sizes(hf, width, "n_head")
    return ModelConfig(
        N=hf.count("n_layer"), F=hf.count("n_inner", 4 * width),
        norm_eps=hf.number("layer_norm_epsilon"), positions="learned",
        max_positions=hf.count("n_positions"), mlp=hf.choice("activation_function", ACTIVATIONS),
        tied=hf.flag("tie_word_embeddings", True), attention_bias=True, attention_out_bias=True,
        **_COMMON, **sizes)


def write_gpt2(c: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-2."""
    return {"vocab_size": c.V, "n_embd": c.D, "n_layer": c.N, "n_head": c.H, "n_inner": c.F,
            "layer_norm_epsilon": c.norm_eps, "n_positions": c.max_positions,
            "n_ctx": c.max_positions, "activation_function": activation_name(c.mlp),
            "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "tie_word_embeddings": c.tied}


def opt_entries(config: ModelConfig) -> list[Entry]:
    """The entries of an OPT."""
    layer = "model.decoder.layers.{n}"
    table = [
        Entry("embed_VD", "model.decoder.embed_tokens.weight", "VD"),
        Entry("embed_position_LD", "model.decoder.embed_positions.weight", "LD"),
        *layer_norm("blocks/attn_norm", f"{layer}.self_attn_layer_norm"),
        *linear("blocks/wq_DHK", f"{layer}.self_attn.q_proj", "(HK)D", bias="(HK)"),
        *linear("blocks/wk_DGK", f"{layer}.self_attn.k_proj", "(GK)D", bias="(GK)"),
        *linear("blocks/wv_DGK", f"{layer}.self_attn.v_proj", "(GK)D", bias="(GK)"),
        *linear("blocks/wo_HKD", f"{layer}.self_attn.out_proj", "D(HK)", bias="D"),
        *layer_norm("blocks/mlp_norm", f"{layer}.final_layer_norm"),
        *linear("blocks/w_up_DF", f"{layer}.fc1", "FD", bias="F"),
        *linear("blocks/w_down_FD", f"{layer}.fc2", "DF", bias="D"),
        *layer_norm("final_norm", "model.decoder.final_layer_norm"),
    ]
    return table if config.tied else [*table, Entry("head_DV", "lm_head.weight", "VD")]


def read_opt(hf: Fields) -> ModelConfig:
    """OPT, arXiv 2205.01068; the 350M model alone has its norms after the sums."""
    width = hf.count("hidden_size")
    for name, ours in (("do_layer_norm_before", True), ("_remove_final_layer_norm", False),
                       ("enable_bias", True), ("layer_norm_elementwise_affine", True),
                       ("word_embed_proj_dim", width)):
        hf.only(name, ours)
    sizes = _sizes(hf, width, "num_attention_heads")
    return ModelConfig(
        N=hf.count("num_hidden_layers"), F=hf.count("ffn_dim"), norm_eps=1e-5,
        positions="learned", max_positions=hf.count("max_position_embeddings"), position_offset=2,
        mlp=hf.choice("activation_function", ACTIVATIONS),
        tied=hf.flag("tie_word_embeddings", True), attention_bias=True, attention_out_bias=True,
        **_COMMON, **sizes)


def write_opt(c: ModelConfig) -> dict[str, Any]:
    """The fields of an OPT."""
    return {"vocab_size": c.V, "hidden_size": c.D, "num_hidden_layers": c.N,
            "num_attention_heads": c.H, "ffn_dim": c.F, "word_embed_proj_dim": c.D,
            "max_position_embeddings": c.max_positions, "do_layer_norm_before": True,
            "_remove_final_layer_norm": False, "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "activation_function": activation_name(c.mlp), "tie_word_embeddings": c.tied}


def gpt_neox_entries(config: ModelConfig) -> list[Entry]:
    """The entries of a GPT-NeoX, which fuses query, key and value head by head."""
    layer, has_bias = "gpt_neox.layers.{n}", config.attention_bias
    table = [
        Entry("embed_VD", "gpt_neox.embed_in.weight", "VD"),
        *layer_norm("blocks/attn_norm", f"{layer}.input_layernorm"),
        *(entry for place, (name, head) in enumerate((("wq", "H"), ("wk", "G"), ("wv", "G")))
          for entry in linear(f"blocks/{name}_D{head}K", f"{layer}.attention.query_key_value",
                              f"({head}QK)D", bias=f"({head}QK)" if has_bias else "",
                              pick=f"Q{place}")),
        *linear("blocks/wo_HKD", f"{layer}.attention.dense", "D(HK)",
                bias="D" if config.attention_out_bias else ""),
        *layer_norm("blocks/mlp_norm", f"{layer}.post_attention_layernorm"),
        *linear("blocks/w_up_DF", f"{layer}.mlp.dense_h_to_4h", "FD", bias="F"),
        *linear("blocks/w_down_FD", f"{layer}.mlp.dense_4h_to_h", "DF", bias="D"),
        *layer_norm("final_norm", "gpt_neox.final_layer_norm"),
    ]
    return table if config.tied else [*table, Entry("head_DV", "embed_out.weight", "VD")]


def read_gpt_neox(hf: Fields) -> ModelConfig:
    """GPT-NeoX, arXiv 2204.06745."""
    hf.only("is_decoder", False, True)
    width, has_bias = hf.count("hidden_size"), hf.flag("attention_bias", True)
    sizes = _sizes(hf, width, "num_attention_heads")
    return ModelConfig(
        N=hf.count("num_hidden_layers"), F=hf.count("intermediate_size"),
        norm_eps=hf.number("layer_norm_eps"),
        residual="parallel" if hf.flag("use_parallel_residual") else "pre",
        mlp=hf.choice("hidden_act", ACTIVATIONS), tied=hf.flag("tie_word_embeddings", False),
        attention_bias=has_bias, attention_out_bias=has_bias,
        **_COMMON, **sizes, **_read_neox_rope(hf))


def _read_neox_rope(hf: Fields) -> dict[str, Any]:
    if "partial_rotary_factor" not in hf.inner("rope_parameters"):
        hf["rotary_pct"]        # it decides, and has no default
    return read_rope(hf, theta="rotary_emb_base", frac="rotary_pct")


def write_gpt_neox(c: ModelConfig) -> dict[str, Any]:
    """The fields of a GPT-NeoX."""
    rope = write_rope(c)
    rope["rope_parameters"]["partial_rotary_factor"] = c.rope_frac
    return {"vocab_size": c.V, "hidden_size": c.D, "num_hidden_layers": c.N,
            "num_attention_heads": c.H, "intermediate_size": c.F, "layer_norm_eps": c.norm_eps,
            "use_parallel_residual": c.residual == "parallel",
            "hidden_act": activation_name(c.mlp), "tie_word_embeddings": c.tied,
            "attention_bias": c.attention_bias, "rotary_pct": c.rope_frac,
            "rotary_emb_base": rope.pop("rope_theta"), **rope}


def _sizes(hf: Fields, width: int, name: str) -> dict[str, int]:
    """The sizes; `name` is the field of the number of heads."""
    heads = hf.count(name)
    if width % heads:
        hf.refuse(name, f"does not divide the width, {width}")
    return {"V": hf.count("vocab_size"), "D": width, "H": heads, "G": heads, "K": width // heads}


GPT2 = Layout("gpt2", "GPT2LMHeadModel", gpt2_entries, read_gpt2, write_gpt2,
              prefix="transformer.", copies={"lm_head.weight": "wte.weight"},
              ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",))
OPT = Layout("opt", "OPTForCausalLM", opt_entries, read_opt, write_opt, prefix="model.",
             copies={"lm_head.weight": "decoder.embed_tokens.weight"})
GPT_NEOX = Layout(
    "gpt_neox", "GPTNeoXForCausalLM", gpt_neox_entries, read_gpt_neox, write_gpt_neox,
    prefix="gpt_neox.", copies={"embed_out.weight": "embed_in.weight"},
    ignored=(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",))
