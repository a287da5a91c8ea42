"""Rematerialisation: which results are saved for the backward pass; it recomputes the others.

    none            saves everything that the backward pass uses
    dots            saves results of matmuls with a weight
    full            saves only each layer's input
    names:TAG,...   saves the layer's input and the tagged results
    offload:TAG,... the same, but holds the tagged results in the host's memory
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from core.errors import UserError

POLICIES = ("none", "dots", "full")  # without tags

# Results that a layer tags with `checkpoint_name`: queries, keys and values as input to attention;
# its output; the MLP's gate and up projections; the residual stream between attention and MLP.
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
    """Wraps a layer so that only what `policy` names is saved; `policy` is not "none"."""
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
    # Inside a scan XLA cannot merge the recomputation with the original, so CSE may stay on.
    return jax.checkpoint(layer, policy=saveable, prevent_cse=False)
