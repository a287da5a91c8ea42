"""One step of training: golden numbers, and what may not change them."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from align.finetune import with_adapter
from configs.common import make_optimizer as make_optimizer_section
from configs.common import make_training, make_training_run
from core.errors import UserError
from model.adapters.lora import Lora, init_lora
from model.parallel.sharding import make_mesh
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.setup import Setup
from train.step import accumulate, average, make_state, make_train_step, place_batch
from train.trainer import make_step

SECTION = ConfigDict(make_optimizer_section(
    name="muon", learning_rate=0.02, adam_learning_rate=0.01, weight_decay=0.1, schedule="wsd",
    warmup_steps=0, decay_frac=0.5))

GOLDEN = {"loss": 4.584188, "gradient_norm": 0.5532271, "param_norm": 63.831398, "refused": 0.0,
          "refused_in_row": 0.0, "top_logit": 0.3141186}


def _take_one_step(loss_fn, params, batch, mesh):
    optimizer = make_optimizer(SECTION, num_steps=10)
    state = make_state(jax.tree.map(np.array, params), optimizer, jax.random.key(1), mesh)
    step = make_train_step(loss_fn, optimizer, state, mesh)
    with jax.set_mesh(mesh):
        return step(state, place_batch(batch, mesh))


@pytest.fixture(scope="module")
def loss_fn(config, execution):
    return partial(next_token_loss, config=config, execution=execution)


@pytest.fixture(scope="module")
def one_device(loss_fn, params, batch):
    """State and metrics after one step on one device."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return _take_one_step(loss_fn, params, batch, mesh)


def test_golden_metrics_of_one_step(one_device):
    state, metrics = one_device
    found = {name: float(value) for name, value in metrics.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-4), (
        f"one step of the tiny model now gives {found}. If architecture, initialisation, loss or "
        "optimizer were meant to change: say so in the commit message, show that the quickstart's "
        "base_bpb is no worse, and put these numbers into GOLDEN. Otherwise it is a bug.")
    assert int(state.step) == 1


def test_eight_devices_equal_one(one_device, loss_fn, params, batch):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    state, metrics = _take_one_step(loss_fn, params, batch, mesh)
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
def whole_gradient(loss_fn, params, batch):
    return jax.jit(jax.grad(loss_fn, has_aux=True))(params, batch, key=jax.random.key(0))


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_accumulation_changes_nothing_when_weights_are_uneven(whole_gradient, loss_fn, params,
                                                              batch, num_microbatches):
    weights = batch.loss_weights_BL.reshape(num_microbatches, -1).sum(-1)
    assert len(set(weights.tolist())) > 1, "the microbatches must weigh unequally"
    gradient_fn = partial(jax.grad(loss_fn, has_aux=True), key=jax.random.key(0))
    run = partial(accumulate, gradient_fn, num_microbatches=num_microbatches)
    gradient, sums = jax.jit(run)(params, batch)
    np.testing.assert_allclose(sums["loss"], whole_gradient[1]["loss"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient,
                 whole_gradient[0])


def test_the_first_state_is_made_around_given_parameters_where_they_belong(params):
    mesh = make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
    optimizer = make_optimizer(SECTION, num_steps=10)
    state = make_state(jax.tree.map(np.array, params), optimizer, jax.random.key(1), mesh,
                       keep_ema=True)
    for tree in (state.params, state.ema):
        assert tree["embed_VD"].sharding.shard_shape((98, 32)) == (49, 16)
        np.testing.assert_array_equal(tree["embed_VD"], params["embed_VD"])
    shapes = jax.eval_shape(lambda: params)
    abstract = make_state(shapes, optimizer, jax.random.key(1), mesh, keep_ema=True)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    jax.tree.map(lambda found, leaf: _assert_describes(found, leaf), abstract, state)


def _assert_describes(found, leaf):
    """The shape is abstract, and places what it describes as the array is placed."""
    assert isinstance(found, jax.ShapeDtypeStruct)
    assert (found.shape, found.dtype) == (leaf.shape, leaf.dtype)
    assert found.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_that_of_optax_corrected_for_its_start(decay):
    paths = [{"w_D": np.full(3, value, np.float32)} for value in (7, 5, 6, -2, 4)]
    reference = optax.ema(decay, debias=True)
    update, average_ = jax.jit(reference.update), jax.jit(average, static_argnums=2)
    state, ema = reference.init(paths[0]), {"w_D": np.full(3, 100, np.float32)}
    for count, params in enumerate(paths, start=1):
        expected, state = update(params, state)
        ema = average_(ema, params, decay, np.int32(count))
        # 1 - 0.9999 has four digits left in the float32 of the reference.
        np.testing.assert_allclose(ema["w_D"], expected["w_D"], rtol=1e-5 if decay < 0.9 else 1e-3)
    if decay > 0.9:     # hardly anything is forgotten: nearly the mean
        np.testing.assert_allclose(ema["w_D"], 4.0, atol=1e-3)


def test_the_average_of_a_short_run_holds_nothing_of_its_random_start(loss_fn, params, batch):
    mesh, optimizer = make_mesh({"data": 1}, jax.devices()[:1]), optax.sgd(0.5)
    state = make_state(jax.tree.map(np.array, params), optimizer, jax.random.key(1), mesh,
                       keep_ema=True)
    step = make_train_step(loss_fn, optimizer, state, mesh, ema_decay=0.999)
    poisoned = batch.replace(loss_weights_BL=batch.loss_weights_BL * np.nan)
    with jax.set_mesh(mesh):
        for each, num_accepted in ((poisoned, 0), (batch, 1), (poisoned, 1), (batch, 2)):
            before = jax.device_get(state.params)
            state, _ = step(state, place_batch(each, mesh))
            expected = {0: params, 1: state.params}.get(num_accepted) or jax.tree.map(
                lambda old, new: (old + np.asarray(new)) / 2, before, state.params)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.ema,
                         expected)


@pytest.mark.parametrize("num_microbatches, line", [
    (2, "batch_size=4: is not divisible by 8 data shards"),
    (3, "toy: batch_size=8: is not divisible by run.num_microbatches=3"),
])
def test_a_batch_that_does_not_divide_is_refused(config, execution, num_microbatches, line):
    section = ConfigDict(make_training(
        out="toy", row_length=24, batch_size=8, optimizer=SECTION.to_dict(),
        run=make_training_run(num_microbatches=num_microbatches)))
    setup = Setup(config, execution, make_mesh({"data": -1, "fsdp": 1, "tensor": 1}))
    with pytest.raises(UserError, match=line):
        make_step(next_token_loss, setup, section, num_steps=10)


def _lowered(step, mesh, *inputs):
    with jax.set_mesh(mesh):
        return step.lower(*inputs)


def fresh_adapter(config, lora):
    return jax.device_get(jax.jit(init_lora, static_argnums=(0, 1))(
        config, lora, jax.random.key(0)))


def test_frozen_parameters_are_an_argument_that_stays(loss_fn, params, batch, config):
    """Not donated, no constant of the program, and no part of the state or of its gradient."""
    mesh, optimizer = make_mesh({"data": 1}, jax.devices()[:1]), optax.sgd(0.5)
    lora, frozen = Lora(rank=2), jax.device_put(jax.tree.map(np.array, params))
    state = make_state(fresh_adapter(config, lora), optimizer, jax.random.key(1), mesh)
    loss = with_adapter(loss_fn, lora)
    step = make_train_step(loss, optimizer, state, mesh)
    placed = place_batch(batch, mesh)
    program = _lowered(step, mesh, state, placed, frozen)
    num_inputs = len(jax.tree.leaves((state, placed, frozen)))
    assert len(jax.tree.leaves(program.args_info)) == num_inputs
    assert _longest_line(program) < 10_000
    enclosed = make_train_step(partial(loss, frozen=frozen), optimizer, state, mesh)
    assert _longest_line(_lowered(enclosed, mesh, state, placed)) > 30_000, "it is told apart"

    before = jax.device_get(state.params)
    with jax.set_mesh(mesh):
        state, metrics = step(state, placed, frozen)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(frozen))
    jax.tree.map(np.testing.assert_array_equal, frozen, params)
    assert jax.tree.structure(state.params) == jax.tree.structure(before)
    assert float(metrics["param_norm"]) == pytest.approx(
        float(jax.jit(optax.tree.norm)(state.params)))
    changed = {name for name, leaf in state.params["blocks"].items()
               if np.any(np.asarray(leaf) != before["blocks"][name])}
    assert changed == {name for name in before["blocks"] if "_b_" in name}, "A waits for B"


def _longest_line(program):
    """Characters of the program's longest line: a constant array is written out."""
    return max(len(line) for line in program.as_text().splitlines())


def test_microbatches_share_the_frozen_parameters(loss_fn, params, batch, config):
    mesh, optimizer, lora = make_mesh({"data": 1}, jax.devices()[:1]), optax.sgd(0.5), Lora(rank=2)
    after = []
    for num_microbatches in (1, 2):
        state = make_state(fresh_adapter(config, lora), optimizer, jax.random.key(1), mesh)
        step = make_train_step(with_adapter(loss_fn, lora), optimizer, state, mesh,
                               num_microbatches=num_microbatches)
        with jax.set_mesh(mesh):
            after.append(step(state, place_batch(batch, mesh), params)[0].params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), *after)


def test_without_frozen_parameters_the_program_is_as_if_there_were_no_such_thing(loss_fn, params,
                                                                                 batch):
    mesh, optimizer = make_mesh({"data": 1}, jax.devices()[:1]), optax.sgd(0.5)
    state = make_state(jax.eval_shape(lambda: params), optimizer, jax.random.key(1), mesh)
    step = make_train_step(loss_fn, optimizer, state, mesh)
    texts = [_lowered(step, mesh, *inputs).as_text() for inputs in ((state, batch),
                                                                     (state, batch, None))]
    assert texts[0] == texts[1]
    assert len(jax.tree.leaves(_lowered(step, mesh, state, batch).args_info)) == len(
        jax.tree.leaves((state, batch)))
