"""How a model is computed: precision, kernels, parallelism and rematerialisation.

Each stage sets this on its own; a model directory does not store it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from core.bounds import check_numbers
from core.errors import UserError
from model.parallel.remat import check_policy

ATTENTION_BACKENDS = ("auto", "xla", "cudnn", "pallas", "splash")
CONTEXT_ATTENTIONS = ("ring", "all_gather")
MATMULS = ("compute", "int8", "fp8")
COMPUTE_DTYPES = ("float32", "bfloat16")
DECIDING = ("compute_dtype", "matmul", "kv_cache")
KV_CACHES = ("compute", "int8")
CHOICES = {"compute_dtype": COMPUTE_DTYPES, "matmul": MATMULS, "kv_cache": KV_CACHES,
           "attention": ATTENTION_BACKENDS, "context_attention": CONTEXT_ATTENTIONS}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the forward and backward pass are computed. Hashable: a static argument of jit.

    Attributes:
        compute_dtype: dtype of matmuls; master weights, norms, softmax and loss are float32.
        matmul: precision of the blocks' matmuls: compute (that dtype), int8 or fp8.
        kv_cache: how keys and values of earlier tokens are held while text is generated: compute
            (that dtype), or int8 with a scale for each token and head.
        attention: backend; auto is the fastest exact one of this machine.
        context_attention: attention over the mesh's context axis: ring or all_gather.
        pipeline_microbatches: microbatches that a pipeline cuts a batch into; 0 is the number of
            stages.
        pipeline_rounds: times that a microbatch passes through the stages: 1 is GPipe
            (arXiv 1811.06965), more is the circular schedule with its smaller bubble.
        scan_unroll: layers per iteration of the scan; N unrolls it fully.
        remat: what is saved for the backward pass; see `model.parallel.remat`.
        loss_chunks: row chunks of the head; above 1, [B, L, V] is never materialised; 0 derives the
            number from `model.heads.language.LOGITS_BYTES`.
    """

    compute_dtype: str = "float32"
    matmul: str = "compute"
    kv_cache: str = "compute"
    attention: str = "auto"
    context_attention: str = "ring"
    pipeline_microbatches: int = 0
    pipeline_rounds: int = 1
    scan_unroll: int = 1
    remat: str = "none"
    loss_chunks: int = 1

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}",
                                f"is none of {', '.join(choices)}", "choose one of them")
        check_numbers(dataclasses.asdict(self), "SECTION.run")
        check_policy(self.remat)


def make_execution(section: ConfigDict, also: Sequence[str] = ()) -> Execution:
    """Reads a stage's `Execution` from its section.

    Args:
        section: `DECIDING`, which affect the result, are in the section itself, `kv_cache` only
            where text is generated; the other fields of `Execution` in its subsection `run`, where
            they have defaults.
        also: other fields that the stage reads from `run`.

    Raises:
        UserError: a field of `run` is unknown, or a value breaks a rule.
    """
    known = {field.name for field in dataclasses.fields(Execution)} - {*DECIDING}
    for name in section.run:
        if name not in known and name not in also:
            raise UserError(f"{section.out}: run.{name}", "is no field of this stage",
                            f"choose among {', '.join(sorted({*known, *also}))}")
    return Execution(section.compute_dtype, section.matmul, section.get("kv_cache", "compute"),
                     **{name: value for name, value in section.run.items() if name in known})
