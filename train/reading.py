"""What a pretraining run reads: `data.json` in its folder, from which another run can go on.

A run reads from up to two streams of rows, `mixture` and `anneal_mixture`. Each is endless, and its
order does not depend on the length of the run; what was drawn from it is counted in rows of each
domain, so that a run that goes on with other batches or other shares repeats no row and misses
none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artifacts import read_json, write_json
from core.errors import UserError
from data.tokens.mixture import Drawn, count_drawn

NAME = "data.json"
STREAMS = ("mixture", "anneal_mixture")


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps that read from one stream.

    Attributes:
        stream: one of `STREAMS`.
        steps: how many.
        weights: share of each domain.
    """

    stream: str
    steps: int
    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The rows of a run from its first step on.

    Attributes:
        source: what decides the rows and their order: the tokens' mark, `row_length` (tokens of
            text in a row), `packing` and `seed`.
        tokenizer: fingerprint of the tokens' tokenizer.
        model: the architecture, field by field.
        batch_size: rows of a step.
        first_step: the step at which the run began: 0, or that of another run's checkpoint.
        tokens_before: inputs that the model had been trained on by then.
        drawn: from each stream until then.
        phases: from then on.
    """

    source: Mapping[str, Any]
    tokenizer: str
    model: Mapping[str, Any]
    batch_size: int
    first_step: int
    tokens_before: int
    drawn: Mapping[str, Drawn]
    phases: tuple[Phase, ...]

    def drawn_at(self, index: int) -> dict[str, Drawn]:
        """What each stream has given when the loader stands at batch `index`."""
        drawn, left = dict(self.drawn), (index - self.first_step) * self.batch_size
        for phase in self.phases:
            rows = min(left, phase.steps * self.batch_size)
            drawn[phase.stream] = count_drawn(phase.weights, rows, drawn.get(phase.stream, {}))
            left -= rows
        return drawn

    def tokens_at(self, index: int) -> int:
        """Tokens of text that the model has been trained on by then."""
        rows = (index - self.first_step) * self.batch_size
        return self.tokens_before + rows * self.source["row_length"]


def write_reading(folder: Path, reading: Reading) -> None:
    """Writes `data.json`."""
    write_json(folder / NAME, dataclasses.asdict(reading))


def read_reading(folder: Path) -> Reading:
    """Reads `data.json`; raises `UserError` if it is missing or damaged."""
    saved = read_json(folder / NAME)
    try:
        phases = tuple(Phase(**phase) for phase in saved.pop("phases"))
        return Reading(**saved, phases=phases)
    except (AttributeError, KeyError, TypeError):
        raise UserError(str(folder / NAME), "is damaged", "restore it from a copy") from None
