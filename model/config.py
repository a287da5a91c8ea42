"""Model config: sizes, by the letters that tensor names and einsum strings use.

    B batch           L query length    M key length      D width
    V vocabulary      F MLP width       H query heads     G key/value heads
    R = H/G           K head size       N layers          J samples per prompt
    E experts         C experts chosen per token
    S pipeline stages U microbatches of a pipeline
    P documents of a row that one call of an attention kernel takes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from core.bounds import check_numbers
from core.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of a decoder. Hashable: a static argument of jit.

    Attributes:
        V: vocabulary, special tokens included.
        D: width of the residual stream.
        N: layers.
        H: query heads.
        G: key/value heads (GQA, arXiv 2305.13245); divides H.
        K: head size; even, because RoPE rotates pairs.
        F: hidden width of the SwiGLU MLP (arXiv 2002.05202), or of each expert.
        E: experts of a layer; 0 is a dense MLP.
        experts_per_token: experts that each token is routed to.
        tied: whether the embedding is also the head.
        embed_previous: whether each input also gets an embedding of the token before it. It gives
            the first layer what an induction head needs two layers to compute (arXiv 2209.11895),
            for the cost of a look-up; it helps most when training tokens are few.
        rope_theta: base of the RoPE frequencies (arXiv 2104.09864).
        norm_eps: added to the mean square in RMSNorm (arXiv 1910.07467).
        qk_norm: RMSNorm of queries and keys per head (arXiv 2010.04245).
    """

    V: int
    D: int
    N: int
    H: int
    G: int
    K: int
    F: int
    E: int = 0
    experts_per_token: int = 2
    tied: bool = False
    embed_previous: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True

    def __post_init__(self):
        # V is the tokenizer's, and no field of a config.
        check_numbers({name: value for name, value in dataclasses.asdict(self).items()
                       if name != "V"}, "model")
        if self.V < 1:
            raise UserError(f"tokenizer.vocab_size={self.V}", "must be at least 1",
                            "set --config.tokenizer.vocab_size")
        if self.H % self.G:
            raise UserError(f"model.H={self.H}", f"is not divisible by model.G={self.G}",
                            "set --config.model.G to a divisor of H")
        if self.K % 2:
            raise UserError(f"model.K={self.K}", "must be even for RoPE", "set --config.model.K")
        if self.E and self.experts_per_token > self.E:
            raise UserError(f"model.experts_per_token={self.experts_per_token}",
                            f"exceeds model.E={self.E}", "set --config.model.experts_per_token")


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
