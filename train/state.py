"""`TrainState`: everything that a step updates."""

from __future__ import annotations

from typing import Any

import flax
import jax

from train.guard import Guard


@flax.struct.dataclass
class TrainState:
    """Everything that training needs to continue.

    Attributes:
        step: int32 scalar, optimizer updates done.
        params: float32 master parameters.
        opt_state: the optimizer's state.
        guard: recent losses and gradient norms, and how many updates were refused.
        ema: float32 running average of the parameters, see `train.step.average`; None if not kept.
        key: PRNG key of the run; step s uses `fold_in(key, s)`.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    guard: Guard
    ema: Any = None
