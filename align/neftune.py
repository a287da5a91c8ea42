"""NEFTune: uniform noise on the embeddings while fine-tuning (arXiv 2310.05914, algorithm 1)."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp

from data.batch import Batch
from model.execution import Execution
from model.families.registry import Params
from train.loss import Metrics
from train.step import LossFn


@flax.struct.dataclass
class NoisyTable:
    """A table of embeddings whose rows are looked up with noise, in the place of the table.

    Where the table is also the head, the head reads it as it is.

    Attributes:
        table_VD: the embeddings.
        noise_BLD: what is added to the rows of the batch.
    """

    table_VD: jax.Array
    noise_BLD: jax.Array

    def __getitem__(self, indices_BL: jax.Array) -> jax.Array:
        """The rows of a batch's tokens, with noise."""
        return self.table_VD[indices_BL] + self.noise_BLD

    def astype(self, dtype: Any) -> jax.Array:
        """The table without noise, in another dtype."""
        return self.table_VD.astype(dtype)

    def project(self, equation: str, x: jax.Array, execution: Execution) -> jax.Array:
        """`einsum(equation, x, table)` in the compute dtype."""
        return jnp.einsum(equation, x, self.table_VD.astype(execution.compute_dtype))


def with_noise(loss_fn: LossFn, alpha: float) -> LossFn:
    """The loss of a model whose embeddings are noisy; the loss itself where `alpha` is 0.

    The noise of a token is uniform in ±alpha / sqrt(L D), where L is the number of tokens of its
    conversation: rows are packed, and padding is no part of one.
    """
    def loss(params: Params, batch: Batch, *, key: jax.Array,
             **settings: Any) -> tuple[jax.Array, Metrics]:
        table_VD = params["embed_VD"]
        # Microbatches of a step have one key; with its tokens folded in, each draws other noise.
        own_key = jax.random.fold_in(key, jnp.sum(batch.tokens_BL))
        noise_BLD = jax.random.uniform(own_key, (*batch.tokens_BL.shape, table_VD.shape[1]),
                                       minval=-1.0, maxval=1.0)
        size_BL = segment_lengths(batch.segment_ids_BL) * table_VD.shape[1]
        noise_BLD = noise_BLD * (alpha * size_BL[:, :, None] ** -0.5)
        noisy = {**params, "embed_VD": NoisyTable(table_VD, noise_BLD)}
        return loss_fn(noisy, batch, key=key, **settings)

    return loss if alpha else loss_fn


def segment_lengths(segment_ids_BL: jax.Array) -> jax.Array:
    """How many tokens the segment of each token has, at least 1, in float32."""
    def count(segment_ids_L: jax.Array) -> jax.Array:
        sizes = jnp.zeros(segment_ids_L.shape[0] + 1, jnp.float32).at[segment_ids_L].add(1.0)
        return sizes[segment_ids_L]

    return jax.vmap(count)(segment_ids_BL)
