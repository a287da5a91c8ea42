"""Gemma: norms of 1 + w, GeGLU, a scaled embedding; windows and norms of outputs since Gemma 2."""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from model.hf.families.llama import dense_mlp
from model.hf.families.parts import layer_types, linear, read_pattern, read_sizes, write_sizes
from model.hf.fields import Fields
from model.hf.rope_fields import read_rope, read_scaling, write_rope, write_scaling
from model.hf.tables import Entry, Layout


def entries(config: ModelConfig) -> list[Entry]:
    """The entries of a Gemma of any version."""
    c, layer = config, "model.layers.{n}"
    q_bias, kv_bias = ("(HK)", "(GK)") if c.attention_bias else ("", "")
    table = [
        Entry("embed_VD", "model.embed_tokens.weight", "VD"),
        *linear("blocks/wq_DHK", f"{layer}.self_attn.q_proj", "(HK)D", bias=q_bias),
        *linear("blocks/wk_DGK", f"{layer}.self_attn.k_proj", "(GK)D", bias=kv_bias),
        *linear("blocks/wv_DGK", f"{layer}.self_attn.v_proj", "(GK)D", bias=kv_bias),
        *linear("blocks/wo_HKD", f"{layer}.self_attn.o_proj", "D(HK)",
                bias="D" if c.attention_out_bias else ""),
        *dense_mlp(layer, has_bias=False),
        Entry("final_norm_D", "model.norm.weight", "D"),
    ]
    norms = {"attn_norm_D": "input_layernorm", "mlp_norm_D": "post_attention_layernorm"}
    if c.residual == "sandwich":
        norms |= {"attn_out_norm_D": "post_attention_layernorm",
                  "mlp_norm_D": "pre_feedforward_layernorm",
                  "mlp_out_norm_D": "post_feedforward_layernorm"}
    table += [Entry(f"blocks/{ours}", f"{layer}.{theirs}.weight", "D")
              for ours, theirs in norms.items()]
    if c.qk_norm:
        table += [Entry("blocks/q_norm_K", f"{layer}.self_attn.q_norm.weight", "K"),
                  Entry("blocks/k_norm_K", f"{layer}.self_attn.k_norm.weight", "K")]
    if not c.tied:
        table.append(Entry("head_DV", "lm_head.weight", "VD"))
    return table


def _read_common(hf: Fields) -> dict[str, Any]:
    hf.only("use_bidirectional_attention", False)
    has_bias = hf.flag("attention_bias", False)
    sizes = read_sizes(hf)
    return sizes | {
        "norm": "rms_plus_one", "norm_eps": hf.number("rms_norm_eps"), "mlp": "geglu",
        "embed_scale": sizes["D"] ** 0.5, "tied": hf.flag("tie_word_embeddings", True),
        "attention_bias": has_bias, "attention_out_bias": has_bias}


def _write_common(c: ModelConfig) -> dict[str, Any]:
    return write_sizes(c) | {
        "rms_norm_eps": c.norm_eps, "tie_word_embeddings": c.tied,
        "attention_bias": c.attention_bias}


def read_gemma(hf: Fields) -> ModelConfig:
    """Gemma, arXiv 2403.08295; its files call the approximation of GELU by tanh `gelu` too."""
    names = ("gelu_pytorch_tanh", "gelu")
    hf.only("hidden_act", *names)
    hf.only("hidden_activation", *names[:1])
    return ModelConfig(qk_norm=False, **_read_common(hf), **read_rope(hf))


def write_gemma(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma."""
    return _write_common(c) | write_rope(c) | {
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _read_windowed(hf: Fields, *, pattern: int) -> dict[str, Any]:
    hf.only("hidden_activation", "gelu_pytorch_tanh")
    fields, scalar = _read_common(hf), hf.number("query_pre_attn_scalar")
    if not scalar:
        hf.refuse("query_pre_attn_scalar", "must be above 0")
    return fields | {
        "residual": "sandwich", "window": hf.count("sliding_window"),
        "global_every": read_pattern(hf, default=pattern),
        "attention_scale": 0.0 if scalar == fields["K"] else scalar ** -0.5,
        "attention_softcap": float(hf.number("attn_logit_softcapping", 0.0)),
        "logit_softcap": float(hf.number("final_logit_softcapping", 0.0))}


def _write_windowed(c: ModelConfig) -> dict[str, Any]:
    # The scalar is a whole number in transformers; another one is not read as it was written.
    scalar = round(c.attention_scale ** -2) if c.attention_scale else c.K
    return _write_common(c) | {
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": c.window or None,
        "sliding_window_pattern": c.global_every or None,
        "layer_types": layer_types(c.N, c.global_every or c.N + 1),
        "query_pre_attn_scalar": scalar, "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None}


def read_gemma2(hf: Fields) -> ModelConfig:
    """Gemma 2, arXiv 2408.00118."""
    rope = read_rope(hf)
    if "rope_scaling" in rope:
        hf.refuse("rope_scaling", "scales windowed layers too, for which we have no part")
    return ModelConfig(qk_norm=False, **_read_windowed(hf, pattern=2), **rope)


def write_gemma2(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 2."""
    return _write_windowed(c) | write_rope(c)


def read_gemma3(hf: Fields) -> ModelConfig:
    """Gemma 3 of text, arXiv 2503.19786: windowed layers have frequencies of their own."""
    rope = hf.inner("rope_parameters")
    if rope:
        full, local = rope.inner("full_attention"), rope.inner("sliding_attention")
        thetas = full.number("rope_theta"), local.number("rope_theta")
        for outside, theta in zip(("rope_theta", "rope_local_base_freq"), thetas):
            if hf.number(outside, theta) != theta:
                hf.refuse(outside, "differs from the rope_theta of rope_parameters")
        if read_scaling(local):
            rope.refuse("sliding_attention", "scales windowed layers, for which we have no part")
        hf.pass_over("rope_scaling")
    else:
        thetas, full = (hf.number("rope_theta"), hf.number("rope_local_base_freq")), \
            hf.inner("rope_scaling")
    return ModelConfig(qk_norm=True, rope_theta=float(thetas[0]), rope_local_theta=float(thetas[1]),
                       **_read_windowed(hf, pattern=0), **read_scaling(full))


def write_gemma3(c: ModelConfig) -> dict[str, Any]:
    """The fields of a Gemma 3 of text."""
    scaling, local = write_scaling(c), c.rope_local_theta or c.rope_theta
    return _write_windowed(c) | {
        "rope_theta": c.rope_theta, "rope_local_base_freq": local,
        "rope_scaling": None if c.rope_scaling == "none" else scaling,
        "rope_parameters": {
            "full_attention": scaling | {"rope_theta": c.rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": local}}}


_COPIES = {"copies": {"lm_head.weight": "model.embed_tokens.weight"}}
GEMMA = Layout("gemma", "GemmaForCausalLM", entries, read_gemma, write_gemma, **_COPIES)
GEMMA2 = Layout("gemma2", "Gemma2ForCausalLM", entries, read_gemma2, write_gemma2, **_COPIES)
GEMMA3 = Layout("gemma3_text", "Gemma3ForCausalLM", entries, read_gemma3, write_gemma3, **_COPIES)
