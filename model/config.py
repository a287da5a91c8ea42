"""Model config: sizes, by the letters that tensor names and einsum strings use.

    B batch           L query length    M key length      D width
    V vocabulary      F MLP width       H query heads     G key/value heads
    R = H/G           K head size       N layers          J samples per prompt
    E experts         C experts chosen per token          Z shared experts
    S pipeline stages U microbatches of a pipeline
    P documents of a row that one call of an attention kernel takes
    W buckets of relative positions     A types of tokens
    Q gates of an LSTM                  O width again, of a matrix from width to width
    I rank of an adapter                X adapters that one program holds
    Y scores of a scalar head, 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from core.bounds import check_numbers
from core.errors import UserError

# The names that fields of `ModelConfig` may have; the tables of the parts hold one entry for each.
CHOICES = {
    "family": ("decoder", "encoder", "encoder_decoder", "lstm"),
    "norm": ("rms", "rms_plus_one", "layer"),
    "residual": ("pre", "post", "sandwich", "parallel"),
    "positions": ("rope", "learned", "sinusoidal", "relative", "none"),
    "rope_scaling": ("none", "linear", "llama3", "yarn"),
    "mlp": ("swiglu", "geglu", "gelu", "gelu_tanh", "relu"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a model. Hashable: a static argument of jit.

    Sizes:
        V: vocabulary, special tokens included; rows of the embedding.
        D: width of the residual stream.
        N: layers; of an encoder-decoder, those of the decoder.
        H: query heads.
        G: key/value heads (GQA, arXiv 2305.13245); divides H.
        K: head size; even where RoPE rotates pairs.
        F: hidden width of the MLP, or of each expert; of an LSTM, of its state.
        family: topology; see `model.families`.
        encoder_layers: of an encoder-decoder.

    Norms and the residual stream:
        norm: RMSNorm (arXiv 1910.07467), the same with weights 1 + w (Gemma), or LayerNorm
            (arXiv 1607.06450).
        norm_eps: added to the mean square or variance.
        residual: where norms stand, and whether attention and MLP run in sequence or in parallel;
            see `WIRINGS` in `model.families.decoder`.
        residual_scale: of what attention and MLP add to the stream.

    Positions:
        positions: RoPE (arXiv 2104.09864), a learned table, sinusoids (arXiv 1706.03762, section
            3.5), T5's relative bias (arXiv 1910.10683, section 2.1), or none.
        max_positions: rows of the learned table; the longest row of tokens. 0 for other positions.
        position_offset: row of the first position in the table (OPT leaves the first two out).
        rope_theta: base of the frequencies.
        rope_local_theta: that of windowed layers where others are global; 0 is `rope_theta`.
        rope_frac: share of each head that is rotated (GPT-NeoX: 0.25).
        rope_scaling: how frequencies are adapted to rows longer than `rope_context`; see
            `model.layers.positions`.
        rope_factor: by which the context was extended.
        rope_context: length of the rows before it was extended.
        rope_low, rope_high: turns over `rope_context` below which a frequency is scaled in full,
            and above which it is kept.
        relative_buckets, relative_distance: buckets of the relative bias, and the distance from
            which all share the last one.

    Attention:
        qk_norm: a norm of queries and keys per head (arXiv 2010.04245).
        window: keys that a query sees, itself included (arXiv 2004.05150); 0 is all.
        global_every: with a window, every so many layers one sees all keys; 0 is none.
        attention_scale: of the scores; 0 is K ** -0.5.
        attention_softcap: c in c tanh(score / c); 0 is none (arXiv 2408.00118, section 2).
        sinks: whether each head has a learned score of no key (arXiv 2309.17453, equation 2).
        attention_bias: whether projections to queries, keys and values have a bias.
        attention_out_bias: whether the projection back has one.

    MLP:
        mlp: SwiGLU or GeGLU (arXiv 2002.05202), or a single activation.
        mlp_bias: whether its projections have a bias.
        E: experts of a layer; 0 is a dense MLP.
        experts_per_token: experts that each token is routed to.
        shared_experts: experts that all tokens pass through (arXiv 2401.06066).
        renormalise_gates: whether the gates of the chosen experts sum to one.
        expert_capacity: choices that an expert accepts, over its share when balanced; further ones
            are dropped. 0 drops none.

    Embedding and head:
        tied: whether the embedding is also the head.
        embed_previous: whether each input also gets an embedding of the token before it. It gives
            the first layer what an induction head needs two layers to compute (arXiv 2209.11895),
            for the cost of a look-up; it helps most when training tokens are few.
        embed_scale: of the embedding; the root of D in Gemma, and in our own models when it is
            tied, which then starts at the head's scale.
        embed_norm: whether the embedding is normed.
        token_types: rows of a table of token types (BERT); all tokens are of the first. 0 is none.
        masked_head: whether hidden states pass an MLP and a norm before the head (BERT).
        pooler: whether the first token's state has a projection of its own (BERT).
        head_bias: whether the head has a bias.
        score_head: whether the head gives a text one score, and tokens no logits (a reward model).
        logit_scale: of the logits.
        logit_softcap: c in c tanh(logit / c); 0 is none.
    """

    V: int
    D: int
    N: int
    H: int
    G: int
    K: int
    F: int
    family: str = "decoder"
    encoder_layers: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    residual: str = "pre"
    residual_scale: float = 1.0
    positions: str = "rope"
    max_positions: int = 0
    position_offset: int = 0
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0
    rope_frac: float = 1.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_context: int = 0
    rope_low: float = 1.0
    rope_high: float = 4.0
    relative_buckets: int = 32
    relative_distance: int = 128
    qk_norm: bool = True
    window: int = 0
    global_every: int = 0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    sinks: bool = False
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp: str = "swiglu"
    mlp_bias: bool = False
    E: int = 0
    experts_per_token: int = 2
    shared_experts: int = 0
    renormalise_gates: bool = True
    expert_capacity: float = 0.0
    tied: bool = False
    embed_previous: bool = False
    embed_scale: float = 1.0
    embed_norm: bool = False
    token_types: int = 0
    masked_head: bool = False
    pooler: bool = False
    head_bias: bool = False
    score_head: bool = False
    logit_scale: float = 1.0
    logit_softcap: float = 0.0

    def __post_init__(self):
        # V is the tokenizer's, and no field of a config.
        check_numbers({name: value for name, value in dataclasses.asdict(self).items()
                       if name != "V"}, "model")
        if self.V < 1:
            raise UserError(f"tokenizer.vocab_size={self.V}", "must be at least 1",
                            "set --config.tokenizer.vocab_size")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"model.{name}={getattr(self, name)!r}",
                                f"is none of {', '.join(choices)}", f"set --config.model.{name}")
        for name, broken, rule, remedy in _rules(self):
            if broken:
                raise UserError(f"model.{name}={getattr(self, name)!r}", rule,
                                f"set --config.model.{remedy}")


def _rules(c: ModelConfig) -> list[tuple[str, bool, str, str]]:
    """What fields ask of each other: (field, whether it is broken, the rule, the remedy)."""
    rotated = round(c.K * c.rope_frac)
    has_learned = c.positions == "learned"
    return [
        ("H", c.H % c.G > 0, f"is not divisible by model.G={c.G}", "G to a divisor of H"),
        ("K", c.positions == "rope" and rotated % 2 > 0,
         "must be even for RoPE" if c.rope_frac == 1 else
         f"has {rotated} rotated numbers of a head, which must be even", "K"),
        ("experts_per_token", 0 < c.E < c.experts_per_token, f"exceeds model.E={c.E}",
         "experts_per_token"),
        ("E", c.E > 0 and c.mlp != "swiglu", f"needs experts of mlp='swiglu', not {c.mlp!r}",
         "mlp=swiglu"),
        ("encoder_layers", (c.family == "encoder_decoder") != (c.encoder_layers > 0),
         f"does not suit family={c.family!r}", "encoder_layers; only encoder_decoder has them"),
        ("max_positions", has_learned != (c.max_positions > 0),
         f"does not suit positions={c.positions!r}",
         "max_positions; only learned positions have them"),
        ("rope_context", (c.rope_scaling in ("llama3", "yarn")) and c.rope_context < 1,
         f"is needed by rope_scaling={c.rope_scaling!r}", "rope_context"),
        ("rope_high", c.rope_high <= c.rope_low, f"must exceed model.rope_low={c.rope_low}",
         "rope_high"),
        ("global_every", c.global_every > 0 and c.window < 1, "needs a window",
         "window, or global_every=0"),
        ("family", c.family != "decoder" and c.embed_previous,
         "has no embed_previous, which reads the token before", "embed_previous=False"),
        ("masked_head", c.masked_head and c.family != "encoder", "needs family='encoder'",
         "masked_head=False"),
        ("pooler", c.pooler and c.family != "encoder", "needs family='encoder'", "pooler=False"),
        ("score_head", c.score_head and c.family == "encoder_decoder",
         "has no place in family='encoder_decoder'", "score_head=False"),
        ("score_head", c.score_head and (c.masked_head or c.head_bias),
         "stands in the place of masked_head and head_bias", "masked_head=False, head_bias=False"),
    ]


def make_model_config(fields: Mapping[str, Any], vocab_size: int) -> ModelConfig:
    """Makes a model's config from the `model` section and its tokenizer's size.

    Raises:
        UserError: a field is missing, unknown or breaks a rule.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"V"}
    if unknown := set(fields) - known:
        raise UserError(f"model.{min(unknown)}", "is no field of a model",
                        f"choose among {', '.join(sorted(known))}")
    try:
        return ModelConfig(V=vocab_size, **fields)
    except TypeError as error:
        raise UserError("config.model", str(error).split(") ")[-1], "give every size") from None
