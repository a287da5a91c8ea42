"""BERT: `BertModel`, which gives states of tokens, and `BertForMaskedLM`."""

from __future__ import annotations

from functools import partial
from typing import Any

from model.config import ModelConfig
from model.hf.families.parts import ACTIVATIONS, activation_name, layer_norm, linear
from model.hf.fields import Fields
from model.hf.tables import Entry, Layout


def entries(config: ModelConfig) -> list[Entry]:
    """The entries of an encoder, with the head or the pooler that it has."""
    prefix = "bert." if config.masked_head else ""
    embeddings, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{n}}"
    table = [
        Entry("embed_VD", f"{embeddings}.word_embeddings.weight", "VD"),
        Entry("embed_position_LD", f"{embeddings}.position_embeddings.weight", "LD"),
        Entry("embed_type_AD", f"{embeddings}.token_type_embeddings.weight", "AD"),
        *layer_norm("embed_norm", f"{embeddings}.LayerNorm"),
        *linear("blocks/wq_DHK", f"{layer}.attention.self.query", "(HK)D", bias="(HK)"),
        *linear("blocks/wk_DGK", f"{layer}.attention.self.key", "(GK)D", bias="(GK)"),
        *linear("blocks/wv_DGK", f"{layer}.attention.self.value", "(GK)D", bias="(GK)"),
        *linear("blocks/wo_HKD", f"{layer}.attention.output.dense", "D(HK)", bias="D"),
        *layer_norm("blocks/attn_norm", f"{layer}.attention.output.LayerNorm"),
        *linear("blocks/w_up_DF", f"{layer}.intermediate.dense", "FD", bias="F"),
        *linear("blocks/w_down_FD", f"{layer}.output.dense", "DF", bias="D"),
        *layer_norm("blocks/mlp_norm", f"{layer}.output.LayerNorm"),
    ]
    if config.pooler:
        table += linear("pooler_DO", f"{prefix}pooler.dense", "OD", bias="O")
    if config.masked_head:
        table += [*linear("transform_DO", "cls.predictions.transform.dense", "OD", bias="O"),
                  *layer_norm("transform_norm", "cls.predictions.transform.LayerNorm"),
                  Entry("head_bias_V", "cls.predictions.bias", "V")]
        if not config.tied:
            table.append(Entry("head_DV", "cls.predictions.decoder.weight", "VD"))
    return table


def read_bert(hf: Fields, *, is_masked: bool) -> ModelConfig:
    """BERT, arXiv 1810.04805, with the masked-language-model head or with the pooler."""
    hf.only("position_embedding_type", "absolute")
    hf.only("is_decoder", False)
    hf.only("add_cross_attention", False)
    if is_masked:       # the head's own MLP has the same activation, ours GELU
        hf.only("hidden_act", "gelu")
    is_tied = hf.flag("tie_word_embeddings", True)
    width, heads = hf.count("hidden_size"), hf.count("num_attention_heads")
    if width % heads:
        hf.refuse("num_attention_heads", f"does not divide hidden_size={width}")
    return ModelConfig(
        family="encoder", V=hf.count("vocab_size"), D=width, N=hf.count("num_hidden_layers"),
        H=heads, G=heads, K=width // heads, F=hf.count("intermediate_size"),
        norm="layer", norm_eps=hf.number("layer_norm_eps", 1e-12), residual="post",
        positions="learned", max_positions=hf.count("max_position_embeddings"), qk_norm=False,
        attention_bias=True, attention_out_bias=True, mlp=hf.choice("hidden_act", ACTIVATIONS),
        mlp_bias=True, token_types=hf.count("type_vocab_size"), embed_norm=True,
        tied=is_tied or not is_masked, masked_head=is_masked, pooler=not is_masked,
        head_bias=is_masked)


def write_bert(c: ModelConfig) -> dict[str, Any] | None:
    """The fields of a BERT."""
    if c.family != "encoder":
        return None
    return {"vocab_size": c.V, "hidden_size": c.D, "num_hidden_layers": c.N,
            "num_attention_heads": c.H, "intermediate_size": c.F,
            "hidden_act": activation_name(c.mlp), "layer_norm_eps": c.norm_eps,
            "max_position_embeddings": c.max_positions, "type_vocab_size": c.token_types,
            "tie_word_embeddings": c.tied}


_COMMON = {"entries": entries, "write_config": write_bert, "prefix": "bert.",
           "ignored": (r"embeddings\.(position|token_type)_ids",),
           "old_names": {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}}
BERT = Layout("bert", "BertModel", read_config=partial(read_bert, is_masked=False), **_COMMON)
# Files of pretrained models also have the head that tells whether a sentence follows another.
BERT_MASKED = Layout(
    "bert", "BertForMaskedLM", read_config=partial(read_bert, is_masked=True), **_COMMON,
    copies={"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    left_out=(r"pooler\.dense\.(weight|bias)", r"cls\.seq_relationship\.(weight|bias)"))
