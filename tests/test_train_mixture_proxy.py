"""DoReMi's proxy: a step by hand, and which domains get weight in a real one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.batch import Batch, make_row, stack
from data.tokens.learned_mixture import doremi_average, doremi_update
from eval.measures.likelihood import batch_logps
from model.execution import Execution
from model.parallel.sharding import make_mesh
from train.mixture.proxy import make_proxy_state, make_proxy_step
from train.setup import Setup

ROWS, LENGTH = 8, 24


@pytest.fixture(scope="module")
def setup(config):
    return Setup(config, Execution(), make_mesh({"data": 1, "fsdp": -1}, jax.devices()[:1]))


def _mean_losses(params, batch: Batch, setup: Setup):
    """Of two domains of four rows: [2], and the losses by token."""
    loss_BL = -batch_logps(params, batch, config=setup.config, execution=setup.execution)
    weighted, counts = (x.reshape(2, -1).sum(axis=1) for x in (
        loss_BL * batch.loss_weights_BL, batch.loss_weights_BL))
    return weighted / counts, loss_BL


@pytest.fixture(scope="module")
def step(setup):
    """Compiled once: steps of 0.1 down the gradient."""
    return make_proxy_step(setup, optax.sgd(0.1), step_size=2.0, smoothing=0.1)


@pytest.fixture(scope="module")
def first(setup):
    """The state before the first step; a step gets a copy, which it may use up."""
    return make_proxy_state(setup, optax.sgd(0.1), 2, seed=7)


def test_a_step_descends_the_losses_by_the_updated_weights(setup, step, first, params, batch):
    """Against each domain's gradient alone, with weights by NumPy; clipping is by token."""
    state = jax.tree.map(jnp.copy, first).replace(log_weights_S=jnp.log(jnp.array([0.3, 0.7])))
    before = first.params
    with jax.set_mesh(setup.mesh):
        after, measured = step(state, params, batch)
        jacobian, loss_BL = jax.jit(jax.jacrev(
            lambda it: _mean_losses(it, batch, setup), has_aux=True))(before)
        reference_S, reference_BL = jax.jit(lambda it: _mean_losses(it, batch, setup))(params)
    clipped_BL = np.maximum(np.asarray(loss_BL) - np.asarray(reference_BL), 0)
    weights_BL = np.asarray(batch.loss_weights_BL)
    excess = (clipped_BL * weights_BL).reshape(2, -1).sum(1) / weights_BL.reshape(2, -1).sum(1)
    assert excess.min() > 0.01
    log_weights = doremi_update(np.log([0.3, 0.7]), excess, step_size=2.0, smoothing=0.1)
    assert np.allclose(measured["excess_S"], excess, rtol=1e-4)
    assert np.allclose(measured["log_weights_S"], log_weights, rtol=1e-4)
    assert np.allclose(measured["reference_loss_S"], reference_S, rtol=1e-5)
    assert np.allclose(after.log_weights_S, measured["log_weights_S"])
    expected = jax.tree.map(lambda old, slope: old - 0.1 * np.einsum(
        "s,s...->...", np.exp(log_weights), np.asarray(slope)), before, jacobian)
    jax.tree.map(lambda found, wanted: np.testing.assert_allclose(
        found, wanted, rtol=1e-3, atol=1e-5), after.params, expected)


def test_a_domain_without_tokens_keeps_its_excess(setup, step, first, params, batch):
    state = jax.tree.map(jnp.copy, first).replace(excess_S=jnp.array([0.0, 0.25]))
    empty = np.array(batch.loss_weights_BL)
    empty[ROWS // 2:] = 0.0
    with jax.set_mesh(setup.mesh):
        after, measured = step(state, params, batch.replace(loss_weights_BL=empty))
    assert after.excess_S[1] == 0.25 and after.excess_S[0] > 0.0
    assert np.isfinite(measured["log_weights_S"]).all()


def _batches(num: int, config, seed: int) -> list[Batch]:
    """Four rows that count up from a random token, and four of random tokens."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        counting = (rng.integers(0, config.V, (4, 1)) + np.arange(LENGTH + 1)) % config.V
        noise = rng.integers(0, config.V, (4, LENGTH + 1))
        ones = np.ones(LENGTH + 1, int)
        made.append(stack([make_row(row, ones, ones) for row in (*counting, *noise)]))
    return made


def test_the_domain_that_can_be_learned_gets_the_weight_and_noise_does_not(setup):
    """The reference can predict noise no better than the proxy, so noise has no excess loss."""
    optimizer = optax.adam(3e-3)
    step = make_proxy_step(setup, optimizer, step_size=1.0, smoothing=1e-3)

    def train(num_steps, seed, reference=None):
        state, history = make_proxy_state(setup, optimizer, 2, seed), []
        with jax.set_mesh(setup.mesh):
            for batch in _batches(num_steps, setup.config, seed):
                own = jax.tree.map(jnp.copy, state.params) if reference is None else reference
                state, measured = step(state, own, batch)
                history.append(jax.device_get(measured))
        return state.params, history

    reference, history = train(120, seed=1)
    assert np.allclose(np.exp(history[-1]["log_weights_S"]), 0.5), "its own excess loss is 0"
    counting, noise = history[-1]["loss_S"]
    assert counting < 1.0 and noise > 0.95 * np.log(setup.config.V)
    _, history = train(60, seed=2, reference=reference)
    weights = doremi_average(np.array([row["log_weights_S"] for row in history]))
    assert weights[0] > 0.8 and np.exp(history[-1]["log_weights_S"])[1] < 0.05
    assert history[0]["excess_S"][0] > 1.0 > 3 * history[0]["excess_S"][1]
