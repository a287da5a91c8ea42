"""Gradients of disjoint batches, measured for the noise scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from core.errors import UserError
from core.progress import Progress
from train.scaling.noise_scale import GradientNorms
from train.step import LossFn


def measure_norms(loss_fn: LossFn, params: Any, batches: Sequence[Any], *, num_small: int,
                  key: jax.Array) -> GradientNorms:
    """Squared norms and products of gradients, from one pass over the data.

    Each large batch is cut into small ones, of which the gradients are summed as they come. The
    sums of all large batches are held in the host's memory: R times the parameters.

    Args:
        loss_fn: sums and weights; the weight of its metric `loss` are the tokens. Calls with the
            same one share a compiled program.
        batches: large batches of one shape, disjoint and drawn at random: a pytree of leaves with
            rows as their first axis.
        num_small: small batches in a large one.

    Raises:
        UserError: the rows of a large batch are no multiple of the small ones, no target is
            scored, or a gradient is not finite.
    """
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    sums_RP, squared, weights = np.empty((len(batches), num_params), np.float32), [], []
    with Progress("noise", len(batches), "batches") as progress:
        for number, batch in enumerate(batches):
            num_rows = len(jax.tree.leaves(batch)[0])
            if num_rows % num_small:
                raise UserError(f"large batch of {num_rows} rows", f"is no multiple of {num_small} "
                                "small ones", "change the sizes of the batches")
            total, (squared_C, weight_C) = jax.device_get(
                _measure(params, batch, key, loss_fn=loss_fn, num_small=num_small))
            sums_RP[number] = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(total)])
            squared.append(squared_C)
            weights.append(weight_C)
            progress.update(number + 1)
    # One weight for all: a small batch's own would weigh its targets unlike the large batch does.
    tokens = float(np.mean(weights, dtype=np.float64))
    if not tokens:
        raise UserError("batches", "have no target that is scored", "name other tokens")
    squared_RC = np.stack(squared).astype(np.float64) / tokens**2
    products_RR = (sums_RP @ sums_RP.T).astype(np.float64) / (num_small * tokens)**2
    if not (np.isfinite(squared_RC).all() and np.isfinite(products_RR).all()):
        raise UserError("gradients", "are not finite", "name a model whose loss is finite")
    return GradientNorms(squared_RC, products_RR, tokens)


@partial(jax.jit, static_argnames=("loss_fn", "num_small"))
def _measure(params: Any, batch: Any, key: jax.Array, *, loss_fn: LossFn,
             num_small: int) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The gradient of a large batch's loss sum; of its small ones the squared norm of it, and the
    weight, as squared_C and weight_C."""
    gradient_fn = jax.grad(loss_fn, has_aux=True)

    def add(total, small):
        gradient, sums = gradient_fn(params, small, key=key)
        return (jax.tree.map(jnp.add, total, gradient),
                (optax.tree.norm(gradient, squared=True), sums["loss"][1]))

    pieces = jax.tree.map(lambda leaf: leaf.reshape(num_small, -1, *leaf.shape[1:]), batch)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), pieces)
