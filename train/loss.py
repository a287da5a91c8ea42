"""Losses as sums and weights, divided once, so that microbatches and hosts do not change them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from data.batch import Batch
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import FAMILIES, Params
from model.heads.language import score_targets

# `loss_fn(params, batch, *, config, execution, key) -> (loss_sum, {name: (sum, weight)})`.
# The entry "loss" is required: its weight divides the gradient.
Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Coefficients(NamedTuple):
    """Of the terms beside the cross-entropy.

    Attributes:
        z_loss: of the mean square of log Z of the head's softmax, which keeps its logits from
            drifting (PaLM, arXiv 2204.02311, section 5: 1e-4).
        balance: of the experts' balance loss, averaged over layers; no effect in a model without
            experts, like the next one.
        router_z: of the router's z-loss, averaged over layers.
    """

    z_loss: float = 0.0
    balance: float = 0.0
    router_z: float = 0.0


NO_TERMS = Coefficients()


def next_token_loss(params: Params, batch: Batch, *, config: ModelConfig, execution: Execution,
                    key: jax.Array, coefs: Coefficients = NO_TERMS,
                    skip_unscored: bool = False) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of each target, in nats; one loss for every objective and for SFT.

    Args:
        coefs: of further terms.
        skip_unscored: computes no logits of targets without a weight. Pays where these are many, as
            in conversations; sorting the rows is not free.

    Returns:
        The sum to differentiate, and the metrics: `loss` is the cross-entropy alone; `top_logit`
        the mean over rows of the largest logit at any weighted target; `z_loss`, if enabled, and
        the routers' statistics do not include their coefficients. The routers' terms are per
        microbatch, so they depend slightly on the number of microbatches.
    """
    del key  # no dropout
    weights_BL = batch.loss_weights_BL
    weight = jnp.sum(weights_BL)
    source = () if batch.source is None else (batch.source,)
    x_BLD, stats = FAMILIES[config.family].forward_with_stats(
        params, batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL, *source, config=config,
        execution=execution)
    scores = score_targets(params, x_BLD, batch.targets_BL, config=config, execution=execution,
                           scored_BL=weights_BL > 0 if skip_unscored else None)
    loss_sum = -jnp.sum(scores.logp_BL * weights_BL)
    metrics = {"loss": (loss_sum, weight), "top_logit": _top_logit(scores.top_logit_BL, weights_BL)}
    if coefs.z_loss:
        z_sum = jnp.sum(scores.log_z_BL**2 * weights_BL)
        metrics["z_loss"] = (z_sum, weight)
        loss_sum += coefs.z_loss * z_sum
    # Statistics are means; times the weight they become sums like the others.
    if stats:
        loss_sum += weight * (coefs.balance * jnp.mean(stats["balance"])
                              + coefs.router_z * jnp.mean(stats["router_z"]))
        metrics |= {"balance": (weight * jnp.mean(stats["balance"]), weight),
                    "router_z": (weight * jnp.mean(stats["router_z"]), weight),
                    "max_load": (weight * jnp.max(stats["max_load"]), weight),
                    "min_load": (weight * jnp.min(stats["min_load"]), weight),
                    "dropped": (weight * jnp.mean(stats["dropped"]), weight)}
        metrics |= {f"load/{e}": (weight * load, weight)
                    for e, load in enumerate(jnp.mean(stats["load_E"], axis=0))}
    return loss_sum, metrics


def _top_logit(top_logit_BL: jax.Array, weights_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over rows of each row's largest logit, and the rows: a maximum that can be summed."""
    counts_B = jnp.any(weights_BL > 0, axis=1)
    top_B = jnp.max(top_logit_BL, axis=1, where=weights_BL > 0, initial=-jnp.inf)
    return jnp.sum(jnp.where(counts_B, top_B, 0.0)), jnp.sum(counts_B, dtype=jnp.float32)
