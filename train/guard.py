"""The guard: refuses an update whose loss or gradient is not finite or is an outlier.

A step is an outlier if its loss or its gradient norm is more than `sigmas` standard deviations
above the mean of the last W steps, as in OLMo-core (`optim/skip_step_optimizer.py`: 6 over 128).
OLMo-core adds a refused step to the window unchanged, so one spike hides the next; a window of
accepted steps only would refuse forever once the loss has shifted. Here a refused step enters with
the limit that it exceeded. One spike raises the limit by little, and a new level is accepted after
some refusals, because each raises the limit by about a tenth of the distance.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp

# The least standard deviation, as a share of the mean: a loss that has settled to within a
# thousandth may still change by some per cent on a different batch.
MIN_STD_FRAC = 0.01
MIN_STD = 1e-6  # so that a window of zeros does not refuse everything


@flax.struct.dataclass
class Guard:
    """Losses and gradient norms of the last steps, and counts of refusals.

    Attributes:
        losses_W: losses of the last W steps that were finite, the newest last, each clipped to
            the limit at its step; 0 where not filled.
        norms_W: gradient norms of the same steps, likewise.
        num_known: int32, how many of the W entries are filled, from the end.
        num_accepted: int32, steps accepted since the start.
        num_refused: int32, steps refused since the start.
        refused_in_row: int32, steps refused since the last accepted one.
    """

    losses_W: jax.Array
    norms_W: jax.Array
    num_known: jax.Array
    num_accepted: jax.Array
    num_refused: jax.Array
    refused_in_row: jax.Array


def make_guard(window: int) -> Guard:
    """A guard with an empty window of `window` steps, at least 2."""
    nothing_W, zero = jnp.zeros(window), jnp.zeros((), jnp.int32)
    return Guard(nothing_W, nothing_W, zero, zero, zero, zero)


def judge(guard: Guard, loss: jax.Array, gradient_norm: jax.Array, *,
          sigmas: float) -> tuple[jax.Array, Guard]:
    """Whether the update may be applied, and the guard after it.

    Args:
        loss: of this step, a float32 scalar, like the gradient's norm.
        sigmas: standard deviations above the mean that are accepted; 0 refuses only what is not
            finite. While the window is less than half full, nothing finite is refused.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    loss_limit = _limit(guard.losses_W, guard.num_known, sigmas)
    norm_limit = _limit(guard.norms_W, guard.num_known, sigmas)
    accepted = finite & (loss <= loss_limit) & (gradient_norm <= norm_limit)
    window, one = guard.losses_W.shape[0], accepted.astype(jnp.int32)
    return accepted, Guard(
        losses_W=_push(guard.losses_W, jnp.minimum(loss, loss_limit), finite),
        norms_W=_push(guard.norms_W, jnp.minimum(gradient_norm, norm_limit), finite),
        num_known=jnp.minimum(guard.num_known + finite, window),
        num_accepted=guard.num_accepted + one, num_refused=guard.num_refused + 1 - one,
        refused_in_row=(guard.refused_in_row + 1) * (1 - one))


def _limit(values_W: jax.Array, num_known: jax.Array, sigmas: float) -> jax.Array:
    """The largest accepted value: mean + sigmas * std, or infinity if none is refused."""
    window = values_W.shape[0]
    if not sigmas:
        return jnp.inf
    known_W = jnp.arange(window) >= window - num_known
    mean = jnp.mean(values_W, where=known_W)
    std = jnp.maximum(jnp.std(values_W, where=known_W), MIN_STD_FRAC * jnp.abs(mean) + MIN_STD)
    return jnp.where(2 * num_known >= window, mean + sigmas * std, jnp.inf)


def _push(values_W: jax.Array, value: jax.Array, is_known: jax.Array) -> jax.Array:
    return jnp.where(is_known, jnp.roll(values_W, -1).at[-1].set(value), values_W)
