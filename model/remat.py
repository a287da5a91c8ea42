"""Rematerialisation: what the backward pass computes again instead of keeping."""

from __future__ import annotations

from collections.abc import Callable

import jax

# What a layer tags with `checkpoint_name`, so that a policy may name it.
TAGS = ("qkv", "attention", "hidden", "residual")


def remat(layer: Callable, policy: str) -> Callable:
    """Wraps a layer of the scan so that its backward pass keeps only what `policy` says."""
    policies = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                "full": jax.checkpoint_policies.nothing_saveable}
    if policy == "none":
        return layer
    return jax.checkpoint(layer, policy=policies[policy], prevent_cse=False)
