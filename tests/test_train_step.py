"""One step of training: golden numbers, and what may not change them."""

from functools import partial

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer as make_optimizer_section
from core.errors import UserError
from model.families.decoder import init
from model.parallel.sharding import make_mesh
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.step import accumulate, init_state, make_train_step, place_batch, place_params

SECTION = ConfigDict(make_optimizer_section(
    name="muon", learning_rate=0.02, adam_learning_rate=0.01, weight_decay=0.1, schedule="wsd",
    warmup_steps=0, decay_frac=0.5))

GOLDEN = {"loss": 4.584188, "gradient_norm": 0.5532271, "param_norm": 63.831398, "refused": 0.0,
          "refused_in_row": 0.0, "top_logit": 0.3141186}


def _take_one_step(config, batch, mesh):
    optimizer = make_optimizer(SECTION, num_steps=10)
    state = init_state(partial(init, config), jax.random.key(0), optimizer, jax.random.key(1), mesh)
    step = make_train_step(next_token_loss, optimizer, config=config, mesh=mesh, state=state,
                           batch_size=8)
    with jax.set_mesh(mesh):
        return step(state, place_batch(batch, mesh))


@pytest.fixture(scope="module")
def one_device(config, batch):
    """State and metrics after one step on one device."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return _take_one_step(config, batch, mesh)


def test_golden_metrics_of_one_step(one_device):
    state, metrics = one_device
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-4), (
        f"one step of the tiny model now gives {found}. If architecture, initialisation, loss or "
        "optimizer were meant to change: say so in the commit message, show that the quickstart's "
        "base_bpb is no worse, and put these numbers into GOLDEN. Otherwise it is a bug.")
    assert int(state.step) == 1


def test_eight_devices_equal_one(one_device, config, batch):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    state, metrics = _take_one_step(config, batch, mesh)
    wq_NDHK = state.params["blocks"]["wq_DHK"]
    assert wq_NDHK.sharding.shard_shape(wq_NDHK.shape) == (2, 16, 2, 8)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == wq_NDHK.shape]
    assert moments and all(leaf.sharding == wq_NDHK.sharding for leaf in moments)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, one_device[1][name], rtol=1e-5, err_msg=name)
    # Sums in another order differ in the last bits, and Muon's five iterations enlarge that.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 jax.device_get(state.params), jax.device_get(one_device[0].params))


@pytest.fixture(scope="module")
def whole_gradient(params, batch, config):
    return _gradient(params, batch, config, 1)


def _gradient(params, batch, config, num_microbatches):
    run = partial(accumulate, partial(next_token_loss, config=config),
                  num_microbatches=num_microbatches)
    return jax.jit(run)(params, batch, jax.random.key(0))


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_accumulation_changes_nothing_when_weights_are_uneven(whole_gradient, params, batch, config,
                                                              num_microbatches):
    weights = batch.loss_weights_BL.reshape(num_microbatches, -1).sum(-1)
    assert len(set(weights.tolist())) > 1, "the microbatches must weigh unequally"
    gradient, sums = _gradient(params, batch, config, num_microbatches)
    np.testing.assert_allclose(sums["loss"], whole_gradient[1]["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient,
                 whole_gradient[0])


def test_a_step_starts_from_given_parameters_where_they_belong(params):
    mesh = make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
    placed = place_params(params, mesh)
    assert placed["embed_VD"].sharding.shard_shape((98, 32)) == (49, 16)
    np.testing.assert_array_equal(placed["embed_VD"], params["embed_VD"])


def test_a_batch_that_does_not_divide_is_refused(config):
    mesh = make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
    with pytest.raises(UserError, match=r"batch_size=8: is not divisible by 8 data shards x 2"):
        make_train_step(next_token_loss, None, config=config, mesh=mesh, state=None, batch_size=8,
                        num_microbatches=2)
