"""The guard: an update whose loss or gradient is not finite, or far out of line, is refused."""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Guard:
    """What the accepted steps looked like, and how many were refused.

    Attributes:
        losses_W: losses of the last W accepted steps, a ring; NaN where there was none yet.
        norms_W: gradient norms of the same steps.
        num_accepted: int32, steps accepted since the start.
        num_refused: int32, steps refused since the start.
        refused_in_row: int32, steps refused since the last accepted one.
    """

    losses_W: jax.Array
    norms_W: jax.Array
    num_accepted: jax.Array
    num_refused: jax.Array
    refused_in_row: jax.Array


def make_guard(window: int) -> Guard:
    """A guard that has seen nothing, looking back on `window` steps."""
    nothing_W, zero = jnp.full(window, jnp.nan), jnp.zeros((), jnp.int32)
    return Guard(nothing_W, nothing_W, zero, zero, zero)


def judge(guard: Guard, loss: jax.Array, gradient_norm: jax.Array, *,
          sigmas: float) -> tuple[jax.Array, Guard]:
    """Whether the update may be applied, and the guard after it."""
    accepted = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    one = accepted.astype(jnp.int32)
    return accepted, guard.replace(
        num_accepted=guard.num_accepted + one, num_refused=guard.num_refused + 1 - one,
        refused_in_row=(guard.refused_in_row + 1) * (1 - one))
