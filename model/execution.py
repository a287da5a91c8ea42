"""How a model runs: precision, kernels, and what is kept or computed again.

Every stage chooses this for itself, and a model directory does not store it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from core.errors import UserError
from model.parallel.remat import check_policy

ATTENTION_BACKENDS = ("auto", "xla", "cudnn", "pallas", "splash")
CONTEXT_ATTENTIONS = ("ring", "all_gather")
MATMULS = ("compute", "int8", "fp8")
COMPUTE_DTYPES = ("float32", "bfloat16")
CHOICES = {"compute_dtype": COMPUTE_DTYPES, "matmul": MATMULS, "attention": ATTENTION_BACKENDS,
           "context_attention": CONTEXT_ATTENTIONS}
# Smallest value of each count.
BOUNDS = {"pipeline_microbatches": 0, "pipeline_rounds": 1, "scan_unroll": 1, "loss_chunks": 0}


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the forward and backward pass are computed. Hashable: a static argument of jit.

    Attributes:
        compute_dtype: dtype of matmuls; masters, norms, softmax and loss stay float32.
        matmul: precision of the blocks' matmuls: compute (that dtype), int8 or fp8.
        attention: backend; auto takes the fastest exact one of this machine.
        context_attention: how attention crosses the mesh's context axis: ring or all_gather.
        pipeline_microbatches: pieces a batch is cut into on its way through the mesh's stages;
            0 takes as many as there are stages.
        pipeline_rounds: times that a piece passes through the stages: 1 is GPipe
            (arXiv 1811.06965), more is the circular schedule with its smaller bubble.
        scan_unroll: layers per iteration of the scan; N unrolls it whole.
        remat: what the backward pass keeps and what it computes again; see `model.parallel.remat`.
        loss_chunks: row chunks of the head, so that [B, L, V] is never held when above 1; 0 takes
            as many as `model.heads.language.LOGITS_BYTES` needs.
    """

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
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name}={getattr(self, name)!r}",
                                f"is none of {', '.join(choices)}", "choose one of them")
        for name, smallest in BOUNDS.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name}={getattr(self, name)}", f"must be at least {smallest}",
                                f"raise {name}")
        check_policy(self.remat)


def make_execution(section: ConfigDict, also: Sequence[str] = ()) -> Execution:
    """Reads a stage's execution from its section.

    Args:
        section: `compute_dtype` and `matmul`, which decide the result, stand in the section
            itself; the other fields of `Execution` in its subsection `run`. What `run` leaves out
            has its default.
        also: other fields that the stage reads from `run`.

    Raises:
        UserError: a field of `run` is unknown, or a value breaks a rule.
    """
    known = {field.name for field in dataclasses.fields(Execution)} - {"compute_dtype", "matmul"}
    for name in section.run:
        if name not in known and name not in also:
            raise UserError(f"{section.out}: run.{name}", "is no field of this stage",
                            f"choose among {', '.join(sorted({*known, *also}))}")
    return Execution(section.compute_dtype, section.matmul,
                     **{name: value for name, value in section.run.items() if name in known})
