"""Embeddings of tokens, of their positions and types."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.layers.norms import apply_norm, init_norm
from model.layers.positions import sinusoids
from model.parallel.sharding import STREAM_RULES, constrain, pad_vocabulary


def init_embeddings(config: ModelConfig, key: jax.Array,
                    previous_key: jax.Array) -> dict[str, jax.Array]:
    """Initialises the float32 tables that the model has: embed_VD, embed_previous_VD,
    embed_position_LD, embed_type_AD, and the norm of their sum."""
    c = config
    # A tied embedding is also the head, so it starts at the head's scale.
    scale = c.D**-0.5 if c.tied else 1.0
    tables = {"embed_VD": scale * jax.random.normal(key, (c.V, c.D))}
    if c.embed_previous:  # initially smaller than the token's own
        tables["embed_previous_VD"] = 0.3 * scale * jax.random.normal(previous_key, (c.V, c.D))
    if c.positions == "learned":
        tables["embed_position_LD"] = 0.3 * scale * jax.random.normal(
            jax.random.fold_in(key, 1), (c.max_positions + c.position_offset, c.D))
    if c.token_types:
        tables["embed_type_AD"] = jnp.zeros((c.token_types, c.D))
    return tables | (init_norm(c.norm, "embed_norm", c.D) if c.embed_norm else {})


def embed(params: Mapping[str, jax.Array], tokens_BL: jax.Array, previous_BL: jax.Array,
          positions_BL: jax.Array, *, config: ModelConfig, execution: Execution) -> jax.Array:
    """Looks up tokens and whatever the model adds to them.

    Args:
        previous_BL: the previous token of each in its document; -1 if there is none.
        positions_BL: position of each token in its document.

    Returns:
        x_BLD in the compute dtype.
    """
    def look_up(table_VD, indices_BL):  # whole rows, as B takes the mesh axis that shards D
        if hasattr(table_VD, "project"):    # quantised: only the rows become numbers
            return constrain(table_VD[indices_BL].astype(execution.compute_dtype), "BLD")
        table_VD = pad_vocabulary(table_VD.astype(execution.compute_dtype), axis=0)
        table_VD = constrain(table_VD, "VD")
        return constrain(table_VD[indices_BL], "BLD")

    c = config
    x_BLD = look_up(params["embed_VD"], tokens_BL)
    if c.embed_previous:
        previous_BLD = look_up(params["embed_previous_VD"], previous_BL)
        x_BLD = x_BLD + jnp.where(previous_BL[:, :, None] >= 0, previous_BLD, 0)
    if c.embed_scale != 1:
        x_BLD = x_BLD * c.embed_scale
    if c.positions == "learned":
        x_BLD = x_BLD + _gather(params["embed_position_LD"], execution)[
            positions_BL + c.position_offset]
    if c.positions == "sinusoidal":
        x_BLD = x_BLD + sinusoids(positions_BL, c.D).astype(x_BLD.dtype)
    if c.token_types:
        x_BLD = x_BLD + _gather(params["embed_type_AD"], execution)[None, :1]
    if c.embed_norm:
        x_BLD = apply_norm(c.norm, params, "embed_norm", x_BLD, c.norm_eps)
    return constrain(x_BLD, "BLD", STREAM_RULES)


def check_length(config: ModelConfig, num_tokens: int) -> None:
    """Raises `UserError` if a row of so many tokens is longer than the table of positions."""
    if config.positions == "learned" and num_tokens > config.max_positions:
        raise UserError(f"rows of {num_tokens} tokens",
                        f"exceed model.max_positions={config.max_positions}, the rows of the "
                        "table of positions", "use shorter rows")


def _gather(table_AD: jax.Array, execution: Execution) -> jax.Array:
    """A small table in the compute dtype, whole on every device."""
    return constrain(table_AD.astype(execution.compute_dtype), "AD")
