"""The head of a reward model: one number for a text, from the state of one of its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.heads.embedding import pool_state

NAMES = ("score_DY", "score_bias_Y")    # Y is 1


def init_scalar_head(config: ModelConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of `score_last`: weights of N(0, 1/(D + 1)) and a bias of zero.

    Source: lm-human-preferences, `lm_human_preferences/rewards.py`, whose reward head begins with
    that variance.
    """
    return {"score_DY": (config.D + 1) ** -0.5 * jax.random.normal(key, (config.D, 1)),
            "score_bias_Y": jnp.zeros(1)}


def score_last(params: Mapping[str, jax.Array], x_BLD: jax.Array, segment_ids_BL: jax.Array, *,
               config: ModelConfig) -> jax.Array:
    """The score of each row's text, from the state of its last token.

    Of an encoder, whose tokens all see the whole text, the state is that of the first token,
    through the pooler if the model has one. Which tokens are real is what the segments say; ids
    are not read, so the text may stand anywhere in its row and hold any token.

    Args:
        x_BLD: hidden states of one text a row.
        segment_ids_BL: 0 at padding.

    Returns:
        score_B in float32; that of a row of padding alone is the bias.
    """
    is_token_BL = segment_ids_BL > 0
    ordered_BL = is_token_BL if config.family == "encoder" else is_token_BL[:, ::-1]
    place_B = jnp.argmax(ordered_BL, axis=1)
    if config.family != "encoder":
        place_B = is_token_BL.shape[1] - 1 - place_B
    is_read_BL = is_token_BL & (jnp.arange(is_token_BL.shape[1])[None] == place_B[:, None])
    # A sum with one term: positions may be sharded. What is masked may not even be finite.
    x_BD = jnp.sum(x_BLD.astype(jnp.float32), axis=1, where=is_read_BL[:, :, None])
    if config.pooler:
        x_BD = pool_state(params, x_BD)
    score_BY = jnp.einsum("BD,DY->BY", x_BD, params["score_DY"], precision="highest")
    return score_BY[:, 0] + params["score_bias_Y"]


def normalise_head(params: Mapping[str, jax.Array], mean: float, std: float) -> dict:
    """The parameters with a head whose scores are (score - mean) / std."""
    return {**params, "score_DY": params["score_DY"] / std,
            "score_bias_Y": (params["score_bias_Y"] - mean) / std}
