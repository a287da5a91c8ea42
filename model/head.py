"""From hidden states to log-probabilities, without ever holding [B, L, V] when chunked."""

from __future__ import annotations

import flax
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


@flax.struct.dataclass
class Scores:
    """What the head says of each target, in nats, float32.

    Attributes:
        logp_BL: log-probability of the target.
        log_z_BL: log of the softmax's normaliser, for z-loss.
        top_logit_BL: the largest logit; carries no gradient.
    """

    logp_BL: jax.Array
    log_z_BL: jax.Array
    top_logit_BL: jax.Array


def score_targets(params: Params, x_BLD: jax.Array, targets_BL: jax.Array, *,
                  config: ModelConfig) -> Scores:
    """Scores each target: the one function behind pretraining, SFT, DPO and evaluation.

    With `config.loss_chunks` above 1, rows go through the head chunk by chunk and the backward
    pass makes each chunk's logits again.

    Args:
        x_BLD: hidden states; position l scores `targets_BL[:, l]` (already shifted).
    """
    batch, length, width = x_BLD.shape
    weight_DV = head_weight(params, config)

    def score(x_D, target):
        logits_V = jnp.einsum("D,DV->V", x_D, weight_DV, preferred_element_type=jnp.float32)
        log_z = jax.nn.logsumexp(logits_V)
        return Scores(logits_V[target] - log_z, log_z, jax.lax.stop_gradient(jnp.max(logits_V)))

    rows_BD, target_B = x_BLD.reshape(-1, width), targets_BL.reshape(-1)
    if config.loss_chunks == 1:
        scores = jax.vmap(score)(rows_BD, target_B)
    else:
        rows_per_chunk = -(-batch * length // config.loss_chunks)
        scores = jax.lax.map(lambda pair: jax.checkpoint(score)(*pair), (rows_BD, target_B),
                             batch_size=rows_per_chunk)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, length), scores)


def token_logps(params: Params, x_BLD: jax.Array, targets_BL: jax.Array, *,
                config: ModelConfig) -> jax.Array:
    """Log-probability of each target, in nats, float32: logp_BL of `score_targets`."""
    return score_targets(params, x_BLD, targets_BL, config=config).logp_BL
