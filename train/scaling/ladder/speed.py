"""How long runs take, by the speed of finished ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from model.config import make_model_config
from train.reading import read_reading
from train.scaling.folders import count_by_convention
from train.scaling.forms import FLOPS_PER_PARAM
from train.watch.goodput import account, read_attempts


@dataclasses.dataclass(frozen=True)
class Speed:
    """The speed of a run.

    Attributes:
        params: of its model.
        flops_per_sec: 6 N D over the seconds of its steps.
        other_secs: all else that it took: start, compilation, evaluation, saving.
    """

    params: float
    flops_per_sec: float
    other_secs: float = 0.0


def measure_speed(folder: Path, count: str) -> Speed | None:
    """The speed of a run of pretraining; None if it is not finished or has no record of its time.

    Args:
        count: which parameters are counted, one of `COUNTS`.
    """
    if not (folder / "metrics.json").exists():
        return None
    attempts, _ = read_attempts(folder / "goodput.jsonl")
    secs = account(attempts)
    if secs["step"] <= 0:
        return None
    reading = read_reading(folder)
    sizes = dict(reading.model)
    params = count_by_convention(make_model_config(sizes, sizes.pop("V")))[count]
    last = reading.first_step + sum(phase.steps for phase in reading.phases)
    tokens = reading.tokens_at(last) - reading.tokens_before
    other = sum(spent for cause, spent in secs.items() if cause not in ("step", "wasted", "down"))
    return Speed(params, FLOPS_PER_PARAM * params * tokens / secs["step"], other)


def estimate_secs(params: float, flops: float, speeds: Sequence[Speed]) -> float | None:
    """Seconds of a run, by the speed of the run whose size is the nearest; None without any."""
    if not speeds:
        return None
    near = min(speeds, key=lambda speed: abs(math.log(speed.params / params)))
    return flops / near.flops_per_sec + near.other_secs
