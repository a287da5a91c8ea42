"""Optional metrics of a step: where in the model gradients, weights and updates are large."""

from __future__ import annotations

from typing import Any

import jax


def diagnose(params: Any, gradient: Any, update: Any) -> dict[str, jax.Array]:
    """Metrics by parameter and layer, as scalars."""
    del params, gradient, update
    return {}
