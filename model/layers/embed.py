"""Embeddings of tokens."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.execution import Execution
from model.parallel.sharding import STREAM_RULES, constrain, pad_vocabulary


def init_embeddings(config: ModelConfig, key: jax.Array,
                    previous_key: jax.Array) -> dict[str, jax.Array]:
    """Initialises float32 tables: embed_VD and, if the model has it, embed_previous_VD."""
    # A tied embedding is also the head, so it starts at the head's scale.
    scale = config.D**-0.5 if config.tied else 1.0
    tables = {"embed_VD": scale * jax.random.normal(key, (config.V, config.D))}
    if config.embed_previous:  # initially smaller than the token's own
        tables["embed_previous_VD"] = 0.3 * scale * jax.random.normal(
            previous_key, (config.V, config.D))
    return tables


def embed(params: Mapping[str, jax.Array], tokens_BL: jax.Array, previous_BL: jax.Array, *,
          config: ModelConfig, execution: Execution) -> jax.Array:
    """Looks tokens up and scales them to unit variance.

    Args:
        previous_BL: the previous token of each in its document; -1 if there is none.

    Returns:
        x_BLD in the compute dtype.
    """
    def look_up(table_VD, indices_BL):  # whole rows, as B takes the mesh axis that shards D
        table_VD = pad_vocabulary(table_VD.astype(execution.compute_dtype), axis=0)
        table_VD = constrain(table_VD, "VD")
        return constrain(table_VD[indices_BL], "BLD")

    x_BLD = look_up(params["embed_VD"], tokens_BL)
    if config.embed_previous:
        previous_BLD = look_up(params["embed_previous_VD"], previous_BL)
        x_BLD = x_BLD + jnp.where(previous_BL[:, :, None] >= 0, previous_BLD, 0)
    return constrain(x_BLD * (config.D**0.5 if config.tied else 1.0), "BLD", STREAM_RULES)
