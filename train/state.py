"""`TrainState`: the only thing that a step returns."""

from __future__ import annotations

from typing import Any

import flax
import jax

from train.guard import Guard


@flax.struct.dataclass
class TrainState:
    """Everything that training needs to go on.

    Attributes:
        step: int32 scalar, optimizer updates done.
        params: float32 master parameters.
        opt_state: the optimizer's state.
        guard: what the loss and the gradient were lately, and how many updates were refused.
        ema: float32 running average of the parameters; None where it is not kept.
        key: randomness of the run; step s uses `fold_in(key, s)`.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    guard: Guard
    ema: Any = None
