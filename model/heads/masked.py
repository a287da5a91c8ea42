"""The transform before the head of a masked language model (arXiv 1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model.config import ModelConfig
from model.execution import Execution
from model.layers.mlps import gelu
from model.layers.norms import apply_norm, init_norm


def init_masked_head(config: ModelConfig, key: jax.Array) -> dict[str, jax.Array]:
    """Parameters of `masked_head`."""
    return {"transform_DO": config.D**-0.5 * jax.random.normal(key, (config.D, config.D)),
            "transform_bias_O": jnp.zeros(config.D)
            } | init_norm(config.norm, "transform_norm", config.D)


def masked_head(params: Mapping[str, jax.Array], x_BLD: jax.Array, config: ModelConfig,
                execution: Execution) -> jax.Array:
    """A projection to the same width, GELU and a norm (`BertPredictionHeadTransform`)."""
    weight_DO = params["transform_DO"].astype(execution.compute_dtype)
    h_BLD = jnp.einsum("BLD,DO->BLO", x_BLD, weight_DO)
    h_BLD = gelu(h_BLD + params["transform_bias_O"][None, None].astype(h_BLD.dtype))
    return apply_norm(config.norm, params, "transform_norm", h_BLD, config.norm_eps)
