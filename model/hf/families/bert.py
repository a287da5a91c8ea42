"""BERT: `BertModel`, which gives states of tokens, and `BertForMaskedLM`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from model.config import ModelConfig
from model.hf.tables import Entry, Layout

MLPS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def entries(config: ModelConfig) -> list[Entry]:
    """The entries of an encoder, with the head or the pooler that it has."""
    prefix = "bert." if config.masked_head else ""
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{n}}"
    table = [
        Entry("embed_VD", f"{embeddings}.word_embeddings.weight", "VD"),
        Entry("embed_position_LD", f"{embeddings}.position_embeddings.weight", "LD"),
        Entry("embed_type_AD", f"{embeddings}.token_type_embeddings.weight", "AD"),
        *_norm("embed_norm", f"{embeddings}.LayerNorm"),
        *_linear("blocks/wq", "DHK", f"{layer}.attention.self.query", "(HK)D"),
        *_linear("blocks/wk", "DGK", f"{layer}.attention.self.key", "(GK)D"),
        *_linear("blocks/wv", "DGK", f"{layer}.attention.self.value", "(GK)D"),
        *_linear("blocks/wo", "HKD", f"{layer}.attention.output.dense", "D(HK)"),
        *_norm("blocks/attn_norm", f"{layer}.attention.output.LayerNorm"),
        *_linear("blocks/w_up", "DF", f"{layer}.intermediate.dense", "FD"),
        *_linear("blocks/w_down", "FD", f"{layer}.output.dense", "DF"),
        *_norm("blocks/mlp_norm", f"{layer}.output.LayerNorm"),
    ]
    if config.pooler:
        table += _linear("pooler", "DO", f"{prefix}pooler.dense", "OD")
    if config.masked_head:
        table += [*_linear("transform", "DO", "cls.predictions.transform.dense", "OD"),
                  *_norm("transform_norm", "cls.predictions.transform.LayerNorm"),
                  Entry("head_bias_V", "cls.predictions.bias", "V")]
        if not config.tied:
            table.append(Entry("head_DV", "cls.predictions.decoder.weight", "VD"))
    return table


def _linear(ours: str, letters: str, theirs: str, axes: str) -> list[Entry]:
    """A weight and its bias, which has the first of the weight's axes in the tensor."""
    bias = axes[:axes.find(")") + 1] if axes[0] == "(" else axes[0]
    own = bias.strip("()")
    return [Entry(f"{ours}_{letters}", f"{theirs}.weight", axes),
            Entry(f"{ours}_bias_{own}", f"{theirs}.bias", bias)]


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [Entry(f"{ours}_D", f"{theirs}.weight", "D"),
            Entry(f"{ours}_bias_D", f"{theirs}.bias", "D")]


def read_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The architecture that `config.json` describes.

    Raises:
        UserError: a field asks for what we do not have.
    """
    is_masked = "BertForMaskedLM" in (hf.get("architectures") or ())
    for name, ours in (("position_embedding_type", "absolute"), ("is_decoder", False),
                       ("add_cross_attention", False)):
        if hf.get(name, ours) != ours:
            raise UserError(f"{name}={hf[name]!r}", f"is not {ours!r}, the only one that we have",
                            "give an encoder with absolute positions")
    names = ("gelu",) if is_masked else tuple(MLPS)    # the head's own MLP has GELU
    if hf["hidden_act"] not in names:
        raise UserError(f"hidden_act={hf['hidden_act']!r}", f"is none of {', '.join(names)}",
                        "give a model of one of these")
    heads = hf["num_attention_heads"]
    return ModelConfig(
        family="encoder", V=hf["vocab_size"], D=hf["hidden_size"], N=hf["num_hidden_layers"],
        H=heads, G=heads, K=hf["hidden_size"] // heads, F=hf["intermediate_size"],
        norm="layer", norm_eps=hf.get("layer_norm_eps", 1e-12), residual="post",
        positions="learned", max_positions=hf["max_position_embeddings"], qk_norm=False,
        attention_bias=True, attention_out_bias=True, mlp=MLPS[hf["hidden_act"]], mlp_bias=True,
        token_types=hf["type_vocab_size"], embed_norm=True,
        tied=not is_masked or hf.get("tie_word_embeddings", True), masked_head=is_masked,
        pooler=not is_masked, head_bias=is_masked)


def write_config(config: ModelConfig) -> dict[str, Any] | None:
    """The fields of `config.json`; None if BERT has no such model."""
    c = config
    acts = {ours: theirs for theirs, ours in reversed(MLPS.items())}
    hf = {"architectures": ["BertForMaskedLM" if c.masked_head else "BertModel"],
          "vocab_size": c.V, "hidden_size": c.D, "num_hidden_layers": c.N,
          "num_attention_heads": c.H, "intermediate_size": c.F, "hidden_act": acts.get(c.mlp),
          "layer_norm_eps": c.norm_eps, "max_position_embeddings": c.max_positions,
          "type_vocab_size": c.token_types, "tie_word_embeddings": c.tied}
    return hf if c.family == "encoder" and c.mlp in acts and read_config(hf) == c else None


_COMMON = {"entries": entries, "read_config": read_config, "write_config": write_config,
           "prefix": "bert.", "ignored": (r"embeddings\.(position|token_type)_ids",),
           "old_names": {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}}
BERT = Layout("bert", "BertModel", **_COMMON)
# Files of pretrained models also have the head that tells whether a sentence follows another.
BERT_MASKED = Layout(
    "bert", "BertForMaskedLM", **_COMMON,
    copies={"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    left_out=(r"pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\.(weight|bias)"))
