"""Losses as sums and weights, divided once: any accumulation and any number of hosts agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from data.batch import Batch
from model.config import ModelConfig
from model.head import token_logps
from model.transformer import Params, forward

# `loss_fn(params, batch, *, config, key) -> (loss_sum, {name: (sum, weight)})`. The entry "loss"
# must be there: its weight divides the gradient.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


def batch_logps(params: Params, batch: Batch, *, config: ModelConfig) -> jax.Array:
    """Log-probability of every target of a batch, in nats: logp_BL."""
    x_BLD = forward(params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL,
                    config=config)
    return token_logps(params, x_BLD, batch.targets_BL, config=config)


def next_token_loss(params: Params, batch: Batch, *, config: ModelConfig,
                    key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of the next token, in nats; one loss for pretraining and SFT."""
    del key  # no dropout
    logp_BL = batch_logps(params, batch, config=config)
    loss_sum = -jnp.sum(logp_BL * batch.loss_weights_BL)
    weight = jnp.sum(batch.loss_weights_BL)
    return loss_sum, {"loss": (loss_sum, weight)}
