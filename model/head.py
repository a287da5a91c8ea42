"""From hidden states to log-probabilities, without ever holding [B, L, V] when chunked."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.transformer import Params


def head_weight(params: Params, config: ModelConfig) -> jax.Array:
    """The head's weight_DV in the compute dtype; the embedding's transpose when tied."""
    weight_DV = params["embed_VD"].T if config.tied else params["head_DV"]
    return weight_DV.astype(config.dtype)


def logits(params: Params, x_BLD: jax.Array, *, config: ModelConfig) -> jax.Array:
    """logits_BLV in float32."""
    return jnp.einsum("BLD,DV->BLV", x_BLD, head_weight(params, config),
                      preferred_element_type=jnp.float32)


def token_logps(params: Params, x_BLD: jax.Array, targets_BL: jax.Array, *,
                config: ModelConfig) -> jax.Array:
    """Log-probability of each target, in nats, float32.

    The one function behind pretraining, SFT, DPO and evaluation. With `config.loss_chunks` above
    1, rows go through the head chunk by chunk and the backward pass makes each chunk's logits
    again.

    Args:
        x_BLD: hidden states; position l scores `targets_BL[:, l]` (already shifted).

    Returns:
        logp_BL.
    """
    batch, length, width = x_BLD.shape
    weight_DV = head_weight(params, config)

    def score(x_D, target):
        logits_V = jnp.einsum("D,DV->V", x_D, weight_DV, preferred_element_type=jnp.float32)
        return logits_V[target] - jax.nn.logsumexp(logits_V)

    rows_BD, target_B = x_BLD.reshape(-1, width), targets_BL.reshape(-1)
    if config.loss_chunks == 1:
        logp_B = jax.vmap(score)(rows_BD, target_B)
    else:
        rows_per_chunk = -(-batch * length // config.loss_chunks)
        logp_B = jax.lax.map(lambda pair: jax.checkpoint(score)(*pair), (rows_BD, target_B),
                             batch_size=rows_per_chunk)
    return logp_B.reshape(batch, length)
