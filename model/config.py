"""What a model is: its sizes, by the letters that every tensor name and einsum string uses.

    B batch           L query length    M key length      D width
    V vocabulary      F MLP width       H query heads     G key/value heads
    R = H/G           K head size       N layers          J samples per prompt
    E experts         C choices of a token among them
    S pipeline stages U pieces of a batch on their way through them
    P documents of a row that one call of an attention kernel takes
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from ml_collections import ConfigDict

from core.errors import UserError
from model.parallel.remat import check_policy

ATTENTION_BACKENDS = ("auto", "xla", "cudnn", "pallas", "splash")
CONTEXT_ATTENTIONS = ("ring", "all_gather")
MATMULS = ("compute", "int8", "fp8")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and habits of a decoder. Hashable, so that it can be a static argument of jit.

    Attributes:
        V: vocabulary, special tokens included.
        D: width of the residual stream.
        N: layers.
        H: query heads.
        G: key/value heads (GQA, arXiv 2305.13245); divides H.
        K: head size; even, because RoPE turns pairs.
        F: hidden width of the SwiGLU MLP (arXiv 2002.05202), of each expert where there are some.
        E: experts of a layer; 0 is a dense MLP.
        experts_per_token: experts that each token is sent to.
        tied: whether the embedding is also the head.
        embed_previous: whether each input also gets an embedding of the token before it. It hands
            the first layer what an induction head needs two layers to compose (arXiv 2209.11895),
            for the price of a look-up: worth most where tokens to train on are few.
        rope_theta: base of the RoPE frequencies (arXiv 2104.09864).
        norm_eps: added to the mean square in RMSNorm (arXiv 1910.07467).
        qk_norm: RMSNorm of queries and keys per head (arXiv 2010.04245).
        compute_dtype: dtype of matmuls; masters, norms, softmax and loss stay float32.
        matmul: precision of the blocks' matmuls: compute (that dtype), int8 or fp8.
        attention: backend; auto takes the fastest exact one of this machine.
        context_attention: how attention crosses the mesh's context axis: ring or all_gather.
        pipeline_microbatches: pieces a batch is cut into on its way through the mesh's stages;
            0 takes as many as there are stages.
        pipeline_rounds: times that a piece goes round the stages: 1 is GPipe (arXiv 1811.06965),
            more is the circular schedule with its smaller bubble.
        scan_unroll: layers per iteration of the scan; N unrolls it whole.
        remat: what the backward pass keeps and what it computes again; see `model.parallel.remat`.
        loss_chunks: row chunks of the head, so that [B, L, V] is never held when above 1; 0 takes
            as many as `model.heads.language.LOGITS_BYTES` needs.
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
    compute_dtype: str = "float32"
    matmul: str = "compute"
    attention: str = "auto"
    context_attention: str = "ring"
    pipeline_microbatches: int = 0
    pipeline_rounds: int = 1
    scan_unroll: int = 1
    remat: str = "none"
    loss_chunks: int = 1

    def __post_init__(self):
        for name in ("V", "D", "N", "H", "G", "K", "F", "scan_unroll"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)}", "must be at least 1",
                                f"set --config.model.{name}")
        if self.loss_chunks < 0:
            raise UserError(f"model.loss_chunks={self.loss_chunks}", "must not be negative",
                            "set --config.model.loss_chunks, 0 for as many as memory needs")
        if self.H % self.G:
            raise UserError(f"model.H={self.H}", f"is not divisible by model.G={self.G}",
                            "set --config.model.G to a divisor of H")
        if self.K % 2:
            raise UserError(f"model.K={self.K}", "must be even for RoPE", "set --config.model.K")
        check_policy(self.remat)
        choices = {"compute_dtype": COMPUTE_DTYPES, "matmul": MATMULS,
                   "attention": ATTENTION_BACKENDS, "context_attention": CONTEXT_ATTENTIONS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"model.{name}={getattr(self, name)!r}", f"is none of {known}",
                                f"set --config.model.{name}")

    @property
    def dtype(self) -> jnp.dtype:
        """The compute dtype as JAX knows it."""
        return jnp.dtype(self.compute_dtype)


def make_model_config(section: ConfigDict, vocab_size: int) -> ModelConfig:
    """Makes a model's config from the `model` section and its tokenizer's size.

    Raises:
        UserError: a field is missing, unknown or breaks a rule.
    """
    given = section.to_dict()
    known = {field.name for field in dataclasses.fields(ModelConfig)} - {"V"}
    if unknown := set(given) - known:
        raise UserError(f"model.{min(unknown)}", "is no field of a model",
                        f"choose among {', '.join(sorted(known))}")
    try:
        return ModelConfig(V=vocab_size, **given)
    except TypeError as error:
        raise UserError("config.model", str(error).split(") ")[-1], "give every size") from None
