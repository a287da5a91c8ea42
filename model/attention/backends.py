"""Which code computes attention: chosen once, at start, and logged."""

from __future__ import annotations

import jax

from model.attention.reference import attend, document_mask
from model.config import ModelConfig


def attend_documents(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array,
                     segment_ids_BL: jax.Array, positions_BL: jax.Array, *,
                     config: ModelConfig) -> jax.Array:
    """Causal attention inside each document of packed rows; returns out_BLHK.

    Args:
        segment_ids_BL: document of each token in its row, from 1; 0 is padding.
        positions_BL: position of each token in its document.
    """
    del positions_BL, config
    return attend(q_BLHK, k_BLGK, v_BLGK, document_mask(segment_ids_BL))


def choose_backend(config: ModelConfig) -> str:
    """The backend that `attend_documents` will use for this model on this machine."""
    del config
    return "xla"
