"""Mixture of experts: equal to a loop over experts, on every mesh, with padding left out."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers.experts import mix_experts, summarise
from model.parallel.sharding import make_mesh

B, L, E = 4, 6, 4


@pytest.fixture(scope="module")
def experts(config):
    """A config with experts, weights and hidden states; the last two positions are padding."""
    config = dataclasses.replace(config, E=E, experts_per_token=2)
    shapes = {"router_DE": (config.D, E), "w_gate_EDF": (E, config.D, config.F),
              "w_up_EDF": (E, config.D, config.F), "w_down_EFD": (E, config.F, config.D)}
    rng = np.random.default_rng(0)
    weights = {name: jnp.asarray(rng.normal(size=shape) * shape[-2]**-0.5, jnp.float32)
               for name, shape in shapes.items()}
    h_BLD = jnp.asarray(rng.normal(size=(B, L, config.D)), jnp.float32)
    is_token_BL = np.arange(L)[None] < np.array([[L], [L], [L], [L - 2]])
    return config, weights, h_BLD, is_token_BL


def _loop(h_BLD, is_token_BL, weights, config):
    """Every expert over every token, then weighted: no sorting, no ragged matmul."""
    logits_BLE = h_BLD @ weights["router_DE"]
    probs_BLE = jnp.exp(logits_BLE) / jnp.exp(logits_BLE).sum(-1, keepdims=True)
    rank_BLE = jnp.argsort(jnp.argsort(-probs_BLE, axis=-1), axis=-1)
    chosen_BLE = (rank_BLE < config.experts_per_token) & is_token_BL[:, :, None]
    gates_BLE = jnp.where(chosen_BLE, probs_BLE, 0)
    if config.renormalise_gates:
        gates_BLE = gates_BLE / jnp.maximum(gates_BLE.sum(-1, keepdims=True), 1e-30)
    out_BLD = 0
    for e in range(config.E):
        gate_BLF, up_BLF = h_BLD @ weights["w_gate_EDF"][e], h_BLD @ weights["w_up_EDF"][e]
        hidden_BLF = gate_BLF / (1 + jnp.exp(-gate_BLF)) * up_BLF
        out_BLD += gates_BLE[:, :, e, None] * (hidden_BLF @ weights["w_down_EFD"][e])
    share_E = chosen_BLE.sum((0, 1)) / chosen_BLE.sum()
    prob_E = probs_BLE[is_token_BL].mean(0)
    stats = {"balance": config.E * (share_E * prob_E).sum(), "max_load": share_E.max(),
             "router_z": (jnp.log(jnp.exp(logits_BLE).sum(-1))[is_token_BL]**2).mean()}
    return out_BLD, stats


def _mix(h_BLD, is_token_BL, weights, config):
    out_BLD, sums = mix_experts(h_BLD, is_token_BL, weights, dtype="float32", config=config)
    stats = summarise(jax.tree.map(lambda leaf: leaf[None], sums))
    return out_BLD, {name: stats[name][0] for name in ("balance", "max_load", "router_z")}


def _value_and_gradient(mix, experts):
    """Outputs, statistics, and the gradient of a mixture of all of them."""
    config, weights, h_BLD, is_token_BL = experts
    direction_D = jnp.asarray(np.random.default_rng(1).normal(size=config.D), jnp.float32)

    def total(h_BLD, weights):
        out_BLD, stats = mix(h_BLD, is_token_BL, weights, config)
        return jnp.sum(out_BLD @ direction_D) + 3 * stats["balance"] + stats["router_z"], (
            out_BLD, stats)

    return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(h_BLD, weights)


@pytest.fixture(scope="module")
def looped(experts):
    return _value_and_gradient(_loop, experts)


def _assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


def test_experts_equal_a_loop_over_experts(experts, looped):
    _assert_close(_value_and_gradient(_mix, experts), looped)
    assert not np.asarray(looped[1][0])[3, -2:].any(), "the output of padding is zero"


def test_gates_may_keep_the_share_of_the_experts_that_were_not_chosen(experts):
    config, *rest = experts
    experts = dataclasses.replace(config, renormalise_gates=False), *rest
    _assert_close(_value_and_gradient(_mix, experts), _value_and_gradient(_loop, experts))


def test_choices_beyond_the_capacity_are_dropped_in_order(experts, looped):
    """Of 48 choices an expert accepts 9, three quarters of its share; 4 are of padding."""
    config, weights, h_BLD, is_token_BL = experts
    config = dataclasses.replace(config, expert_capacity=0.75)
    run = jax.jit(partial(mix_experts, config=config, dtype="float32"))
    out_BLD, sums = run(h_BLD, is_token_BL, weights)
    probs_BLE = np.asarray(jax.nn.softmax(h_BLD @ weights["router_DE"]))
    room_E, load_E, num_dropped = np.full(E, 9), np.zeros(E), 0
    for b, l in np.argwhere(is_token_BL):
        chosen = np.argsort(-probs_BLE[b, l])[:2]
        expected_D = np.zeros(config.D)
        for e in chosen:
            load_E[e] += 1
            if not room_E[e]:
                num_dropped += 1
                continue
            room_E[e] -= 1
            hidden_F = jax.nn.silu(h_BLD[b, l] @ weights["w_gate_EDF"][e]) * (
                h_BLD[b, l] @ weights["w_up_EDF"][e])
            expected_D += probs_BLE[b, l, e] / probs_BLE[b, l, chosen].sum() * np.asarray(
                hidden_F @ weights["w_down_EFD"][e])
        np.testing.assert_allclose(out_BLD[b, l], expected_D, atol=2e-5)
    assert 0 < num_dropped == sums["dropped"]
    np.testing.assert_array_equal(sums["load_E"], load_E)
    means = summarise(jax.tree.map(lambda leaf: leaf[None], sums))
    np.testing.assert_allclose(means["dropped"], num_dropped / 44)
    np.testing.assert_allclose(means["load_E"], load_E[None] / 44)
    np.testing.assert_allclose([means["max_load"], means["min_load"]],
                               [[load_E.max() / 44], [load_E.min() / 44]])
    enough = dataclasses.replace(config, expert_capacity=4.0)
    out_BLD, sums = mix_experts(h_BLD, is_token_BL, weights, config=enough, dtype="float32")
    np.testing.assert_allclose(out_BLD, looped[1][0], atol=2e-5)
    assert sums["dropped"] == 0


@pytest.mark.parametrize("axes", [
    {"expert": 4}, {"expert": 2, "fsdp": 2, "tensor": 2}, {"expert": 2, "context": 2}], ids=str)
def test_experts_on_a_mesh_equal_a_loop_over_experts(experts, looped, axes):
    mesh = make_mesh(axes, jax.devices()[:int(np.prod(list(axes.values())))])
    with jax.set_mesh(mesh):
        _assert_close(_value_and_gradient(_mix, experts), looped)


def test_one_row_can_be_decoded_on_a_mesh_of_experts(experts, looped):
    config, weights, h_BLD, _ = experts
    with jax.set_mesh(make_mesh({"expert": 4, "tensor": 2})):
        run = jax.jit(partial(mix_experts, config=config, dtype="float32"))
        out_BLD, _ = run(h_BLD[:1, :1], np.ones((1, 1), bool), weights)
    np.testing.assert_allclose(out_BLD, looped[1][0][:1, :1], atol=2e-5)
