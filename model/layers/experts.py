"""Mixture of experts: a router sends each token to a few of E MLPs (arXiv 1701.06538).

Unless experts have a capacity, no choice is dropped, and a token's output depends neither on the
mesh nor on the other tokens of the batch. The experts' matmuls run in the compute dtype.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.config import ModelConfig
from model.layers.matmul import project
from model.parallel.sharding import ACTIVATION_RULES, Rules, constrain, fitting_spec, spec

Stats = dict[str, jax.Array]

# Sharding of the experts' weights in the forward and backward pass.
WEIGHT_RULES: Rules = {**ACTIVATION_RULES, "E": "expert"}


def experts(block: nn.Module, h_BLD: jax.Array,
            segment_ids_BL: jax.Array | None) -> tuple[jax.Array, Stats]:
    """Applies to every token its `experts_per_token` experts, each a SwiGLU MLP.

    Args:
        block: the layer that declares the weights; see `model.families.decoder.Block`.
        h_BLD: normed hidden states.
        segment_ids_BL: 0 at padding, whose output is zero and which is not counted; None if there
            is no padding.

    Returns:
        The experts' outputs, weighted and summed, as [B, L, D], and sums for `summarise`.
    """
    c = block.config
    weights = {
        "router_DE": block.weight("router_DE", (c.D, c.E), c.D),
        "w_gate_EDF": block.weight("w_gate_EDF", (c.E, c.D, c.F), c.D),
        "w_up_EDF": block.weight("w_up_EDF", (c.E, c.D, c.F), c.D),
        "w_down_EFD": block.weight("w_down_EFD", (c.E, c.F, c.D), c.F, block.depth_scale),
    }
    is_token_BL = (jnp.ones(h_BLD.shape[:2], bool) if segment_ids_BL is None
                   else segment_ids_BL > 0)
    out_BLD, stats = mix_experts(h_BLD, is_token_BL, weights, config=c,
                                 dtype=block.execution.compute_dtype)
    if c.shared_experts:
        out_BLD += jnp.where(is_token_BL[:, :, None], _shared_experts(block, h_BLD), 0)
    return out_BLD, stats


def _shared_experts(block: nn.Module, h_BLD: jax.Array) -> jax.Array:
    """The sum of the experts that all tokens pass through, each a SwiGLU MLP."""
    c, execution = block.config, block.execution
    shape, back = (c.shared_experts, c.D, c.F), (c.shared_experts, c.F, c.D)
    w_gate_ZDF = block.weight("shared_w_gate_ZDF", shape, c.D)
    w_up_ZDF = block.weight("shared_w_up_ZDF", shape, c.D)
    w_down_ZFD = block.weight("shared_w_down_ZFD", back, c.F, block.depth_scale)
    gate_BLZF = checkpoint_name(project("BLD,ZDF->BLZF", h_BLD, w_gate_ZDF, execution), "hidden")
    up_BLZF = checkpoint_name(project("BLD,ZDF->BLZF", h_BLD, w_up_ZDF, execution), "hidden")
    hidden_BLZF = constrain(jax.nn.silu(gate_BLZF) * up_BLZF, "BLZF")
    return project("BLZF,ZFD->BLD", hidden_BLZF, w_down_ZFD, execution)


def mix_experts(h_BLD: jax.Array, is_token_BL: jax.Array, weights: dict[str, jax.Array], *,
                config: ModelConfig, dtype: str) -> tuple[jax.Array, Stats]:
    """The routed part of `experts` with given weights.

    Args:
        is_token_BL: False at padding.
        weights: float32 router_DE, w_gate_EDF, w_up_EDF, w_down_EFD.
        dtype: of the experts' matmuls.
    """
    num_experts = weights["router_DE"].shape[1]
    logits_BLE = jnp.einsum("BLD,DE->BLE", h_BLD.astype(jnp.float32), weights["router_DE"])
    logits_BLE = constrain(logits_BLE, "BLE")
    probs_BLE = jax.nn.softmax(logits_BLE)
    gates_BLC, experts_BLC = jax.lax.top_k(probs_BLE, config.experts_per_token)
    if config.renormalise_gates:
        gates_BLC = gates_BLC / jnp.sum(gates_BLC, axis=-1, keepdims=True)
    experts_BLC = jnp.where(is_token_BL[:, :, None], experts_BLC, num_experts)  # no such expert
    chosen_E = jnp.sum(jax.nn.one_hot(experts_BLC, num_experts), axis=(0, 1, 2))
    if config.expert_capacity:
        experts_BLC = _drop(experts_BLC, num_experts, config.expert_capacity)

    counted_BL = is_token_BL.astype(jnp.float32)
    stats = {
        "load_E": chosen_E,
        "dropped": jnp.sum(chosen_E) - jnp.sum(experts_BLC < num_experts),
        "prob_E": jnp.sum(probs_BLE * counted_BL[:, :, None], axis=(0, 1)),
        "router_z": jnp.sum(jax.nn.logsumexp(logits_BLE, axis=-1) ** 2 * counted_BL),
        "num_tokens": jnp.sum(counted_BL),
    }
    own = [weights[name].astype(dtype) for name in ("w_gate_EDF", "w_up_EDF", "w_down_EFD")]
    return _run_experts(h_BLD, gates_BLC.astype(dtype), experts_BLC, own), stats


def _drop(experts_BLC: jax.Array, num_experts: int, capacity: float) -> jax.Array:
    """Sends choices beyond an expert's capacity to no expert; its first ones in the batch stay.

    The capacity is `capacity` times the choices over the experts, rounded up (arXiv 2101.03961,
    equation 3); it counts padding as well, so that it is static.
    """
    limit = math.ceil(capacity * experts_BLC.size / num_experts)
    expert_T = experts_BLC.reshape(-1)
    onehot_TE = jax.nn.one_hot(expert_T, num_experts, dtype=jnp.int32)
    rank_TE = jnp.cumsum(onehot_TE, axis=0) * onehot_TE     # from 1
    return jnp.where(jnp.max(rank_TE, axis=1) > limit, num_experts, expert_T
                     ).reshape(experts_BLC.shape)


def summarise(sums: Stats) -> Stats:
    """The layers' statistics, [N] each, from sums over all tokens of the batch, [N, ...].

    Returns:
        balance: E times the sum over experts of their share of choices times their mean
            probability; 1 when balanced (arXiv 2101.03961, equation 4, over all C choices).
        router_z: mean square of the log of the router's normaliser (arXiv 2202.08906, equation 5).
        max_load, min_load: the largest and smallest share of choices of one expert; 1/E when
            balanced.
        load_E: each expert's share of choices, [N, E].
        dropped: share of choices beyond an expert's capacity.
    """
    tokens_N = jnp.maximum(sums["num_tokens"], 1.0)
    load_NE, prob_NE = sums["load_E"], sums["prob_E"]
    share_NE = load_NE / jnp.maximum(jnp.sum(load_NE, axis=-1, keepdims=True), 1.0)
    balance_N = load_NE.shape[-1] * jnp.sum(share_NE * prob_NE / tokens_N[:, None], axis=-1)
    return {"balance": balance_N, "router_z": sums["router_z"] / tokens_N,
            "max_load": jnp.max(share_NE, axis=-1), "min_load": jnp.min(share_NE, axis=-1),
            "load_E": share_NE,
            "dropped": sums["dropped"] / jnp.maximum(jnp.sum(load_NE, axis=-1), 1.0)}


def _run_experts(h_BLD, gates_BLC, experts_BLC, weights):
    """Runs each device's experts over the tokens of all devices along `expert`."""
    if jax.sharding.get_abstract_mesh().empty:
        return _run_own_experts(h_BLD, gates_BLC, experts_BLC, *weights)
    tokens = [fitting_spec(letters, leaf.shape) for letters, leaf in
              (("BLD", h_BLD), ("BLC", gates_BLC), ("BLC", experts_BLC))]
    rows_are_cut = "expert" in (tokens[0][0] or ())

    def run(h_BLD, gates_BLC, experts_BLC, *own_weights):
        if rows_are_cut:
            h_BLD, gates_BLC, experts_BLC = (
                jax.lax.all_gather(leaf, "expert", tiled=True)
                for leaf in (h_BLD, gates_BLC, experts_BLC))
        first = jax.lax.axis_index("expert") * own_weights[0].shape[0]
        out_BLD = _run_own_experts(h_BLD, gates_BLC, experts_BLC - first, *own_weights)
        out_BLD = jax.lax.psum(out_BLD, "tensor")
        if rows_are_cut:
            return jax.lax.psum_scatter(out_BLD, "expert", tiled=True)
        return jax.lax.psum(out_BLD, "expert")

    # D is gathered over `fsdp`, as for every weight; E and F stay sharded.
    specs = [spec(letters, WEIGHT_RULES) for letters in ("EDF", "EDF", "EFD")]
    return jax.shard_map(run, in_specs=(*tokens, *specs), out_specs=tokens[0])(
        h_BLD, gates_BLC, experts_BLC, *weights)


def _run_own_experts(h_BLD, gates_BLC, experts_BLC, w_gate_EDF, w_up_EDF, w_down_EFD):
    """Weighted sum over the choices that are among these E experts; other choices add zero.

    Choices are sorted by expert, so that each expert's rows are one block of a ragged matmul.
    Sorting and its inverse are permutations, so the order of additions is fixed.
    """
    num_experts, num_choices = w_gate_EDF.shape[0], experts_BLC.shape[-1]
    expert_T = experts_BLC.reshape(-1)
    expert_T = jnp.where((expert_T >= 0) & (expert_T < num_experts), expert_T, num_experts)
    order_T = jnp.argsort(expert_T)
    sizes_E = jnp.sum(jax.nn.one_hot(expert_T, num_experts, dtype=jnp.int32), axis=0)
    # Rows after the last group are undefined, in the backward pass as well.
    is_own_T1 = (jnp.arange(expert_T.size) < jnp.sum(sizes_E))[:, None]

    rows_TD = jnp.repeat(h_BLD.reshape(-1, h_BLD.shape[-1]), num_choices, axis=0)[order_T]
    rows_TD = jnp.where(is_own_T1, rows_TD, 0)
    gate_TF = checkpoint_name(jax.lax.ragged_dot(rows_TD, w_gate_EDF, sizes_E), "hidden")
    up_TF = checkpoint_name(jax.lax.ragged_dot(rows_TD, w_up_EDF, sizes_E), "hidden")
    out_TD = jax.lax.ragged_dot(jax.nn.silu(gate_TF) * up_TF, w_down_EFD, sizes_E)
    out_TD = jnp.where(is_own_T1, out_TD, 0)[jnp.argsort(order_T)]
    out_BLCD = out_TD.reshape(*experts_BLC.shape, -1)
    return jnp.sum(out_BLCD * gates_BLC[:, :, :, None], axis=2)
