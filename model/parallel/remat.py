"""Rematerialisation: what the backward pass computes again instead of keeping.

    none            keeps everything that the backward pass uses
    dots            keeps what matmuls with a weight gave, computes the rest again
    full            keeps each layer's input alone, computes the layer again
    names:TAG,...   keeps the layer's input and what is tagged so
    offload:TAG,... the same, but what is tagged waits in the host's memory
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from core.errors import UserError

POLICIES = ("none", "dots", "full")  # those that name no tags

# What a layer tags with `checkpoint_name`, so that a policy may name it: queries, keys and values
# as attention takes them; what it gives; the MLP's gate and up; the stream between the two.
TAGS = ("qkv", "attention", "hidden", "residual")


def check_policy(policy: str) -> None:
    """Raises `UserError` when `policy` is no policy of this module."""
    kind, _, tags = policy.partition(":")
    if policy in POLICIES:
        return
    if kind not in ("names", "offload"):
        raise UserError(f"remat={policy!r}",
                        f"is none of {', '.join(POLICIES)}, names:TAG,..., offload:TAG,...",
                        "set run.remat")
    for tag in tags.split(","):
        if tag not in TAGS:
            raise UserError(f"remat={policy!r}", f"{tag!r} is no tag of a layer",
                            f"name some of {','.join(TAGS)} after the colon, without spaces")


def remat(layer: Callable, policy: str) -> Callable:
    """Wraps a layer so that its backward pass keeps only what `policy`, not "none", names."""
    policies = jax.checkpoint_policies
    kind, _, tags = policy.partition(":")
    saveable = {
        "dots": lambda: policies.dots_with_no_batch_dims_saveable,
        "full": lambda: policies.nothing_saveable,
        "names": lambda: policies.save_only_these_names(*tags.split(",")),
        "offload": lambda: policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=tags.split(","),
            offload_src="device", offload_dst="pinned_host"),
    }[kind]()
    # Inside a scan XLA cannot merge the second computation with the first, so CSE may stay on.
    return jax.checkpoint(layer, policy=saveable, prevent_cse=False)
