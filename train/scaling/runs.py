"""The runs that a law is fitted to: sizes, final losses, and where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

# Which parameters N counts.
COUNTS: Mapping[str, str] = {
    "total": "all parameters",
    "non_embedding": "all but the embedding tables and the head",
    "with_head": "all but the embedding tables; the head counts, tied or not",
    "products": "those that a token is multiplied with: the head, and of experts the chosen ones"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Losses of one run along its training, by tokens in ascending order; the last is final."""

    params: float
    tokens_R: np.ndarray
    loss_R: np.ndarray


@dataclasses.dataclass(frozen=True)
class Runs:
    """Runs with their final losses.

    Attributes:
        names: of the runs.
        params_R: parameters as `count` says, one of `COUNTS`.
        tokens_R: tokens trained on.
        flops_R: FLOPs of training: 6 N D, unless they were measured.
        loss_R: final losses, all in one unit.
        accuracy_R: final accuracies of a task; nan where there is none.
        count: which parameters `params_R` counts.
        origin: what all runs share, as far as it is known: tokenizer, corpus and the tokens of a
            row of the evaluation.
        curves: of the runs that have earlier losses too.
    """

    names: tuple[str, ...]
    params_R: np.ndarray
    tokens_R: np.ndarray
    flops_R: np.ndarray
    loss_R: np.ndarray
    accuracy_R: np.ndarray
    count: str
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict)
    curves: tuple[Curve, ...] = ()

    def column(self, name: str) -> np.ndarray:
        """The values [R] of `params`, `tokens`, `flops` or `loss`."""
        return {"params": self.params_R, "tokens": self.tokens_R, "flops": self.flops_R,
                "loss": self.loss_R}[name]

    def choose(self, chosen_R: np.ndarray) -> Runs:
        """The runs where `chosen_R` is true; curves are kept."""
        arrays = {name: getattr(self, name)[chosen_R] for name in
                  ("params_R", "tokens_R", "flops_R", "loss_R", "accuracy_R")}
        names = tuple(name for name, chosen in zip(self.names, chosen_R) if chosen)
        return dataclasses.replace(self, names=names, **arrays)
