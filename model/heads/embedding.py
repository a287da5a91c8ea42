"""Embeddings of whole texts, from an encoder's states."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model.config import ModelConfig


def mean_embedding(x_BLD: jax.Array, segment_ids_BL: jax.Array) -> jax.Array:
    """The mean of a text's states, of length 1, in float32 (arXiv 1908.10084, section 3).

    The cosine of two texts is the product of their embeddings.

    Args:
        x_BLD: states of one text a row: `model.families.encoder.encode`.
        segment_ids_BL: 0 at padding.

    Returns:
        embedding_BD; zeros for a row of padding.
    """
    is_token_BL = segment_ids_BL > 0
    total_BD = jnp.sum(x_BLD.astype(jnp.float32), axis=1, where=is_token_BL[:, :, None])
    # A mean has the direction of the sum.
    length_B = jnp.linalg.norm(total_BD, axis=-1)
    return total_BD / jnp.where(length_B > 0, length_B, 1)[:, None]


def init_pooler(config: ModelConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of `pool_first`."""
    return {"pooler_DO": config.D**-0.5 * jax.random.normal(key, (config.D, config.D)),
            "pooler_bias_O": jnp.zeros(config.D)}


def pool_first(params: Mapping[str, jax.Array], x_BLD: jax.Array) -> jax.Array:
    """A projection of each row's first state, for classifiers of texts: [B, D] in float32
    (`BertPooler`, transformers)."""
    return pool_state(params, x_BLD[:, 0].astype(jnp.float32))


def pool_state(params: Mapping[str, jax.Array], first_BD: jax.Array) -> jax.Array:
    """`pool_first` of states in float32 that are picked already."""
    weight_DO = params["pooler_DO"].astype(jnp.float32)
    return jnp.tanh(first_BD @ weight_DO + params["pooler_bias_O"][None])
