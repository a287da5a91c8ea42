"""The pipeline: equal to the scan of the same layers, and unaffected by idle stages."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.execution import Execution
from model.parallel.sharding import make_mesh, param_shardings
from model.parallel.stack import run_layers

N, B, L = 8, 8, 4


@pytest.fixture(scope="module")
def stack(config):
    """A config of N small layers, their weights and a packed batch."""
    config = dataclasses.replace(config, N=N)
    rng = np.random.default_rng(0)
    blocks = {"w_DF": rng.normal(size=(N, config.D, config.F)).astype("float32") / config.D**0.5,
              "w_FD": rng.normal(size=(N, config.F, config.D)).astype("float32") / config.F**0.5}
    x_BLD = rng.normal(size=(B, L, config.D)).astype("float32")
    positions_BL, segment_ids_BL = rng.integers(0, 9, (2, B, L))
    return config, blocks, x_BLD, positions_BL, segment_ids_BL


def _layer(x_BLD, block, positions_BL, segment_ids_BL, dtype="float32"):
    """Depends on positions and documents, is infinite at zero, and has two statistics."""
    h_BLD = x_BLD / jnp.sqrt(jnp.mean(x_BLD**2, axis=-1, keepdims=True))
    h_BLD = h_BLD * (1 + 0.1 * jnp.sin(positions_BL + 2.0 * segment_ids_BL))[:, :, None]
    hidden_BLF = jnp.tanh(h_BLD.astype(dtype) @ block["w_DF"].astype(dtype))
    x_BLD = x_BLD + hidden_BLF.astype(jnp.float32) @ block["w_FD"]
    return x_BLD, {"square": jnp.sum(x_BLD**2), "sum_D": jnp.sum(x_BLD, axis=(0, 1))}


def _loss(execution, batch, layer=_layer):
    """A loss of the outputs and of the statistics, as a function of the blocks and x_BLD."""
    def loss(blocks, x_BLD):
        x_BLD, stats = run_layers(layer, blocks, x_BLD, *batch, execution=execution)
        direction_N = jnp.arange(1, N + 1)
        return (jnp.mean(jnp.sin(x_BLD)) + stats["square"] @ direction_N / x_BLD.size
                + jnp.mean(jnp.cos(stats["sum_D"]) * direction_N[:, None])), (x_BLD, stats)

    return loss


def _value_and_gradient(stack, **changes):
    _, blocks, x_BLD, *batch = stack
    loss = _loss(Execution(**changes), batch)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).trace(blocks, x_BLD)


@pytest.fixture(scope="module")
def scanned(stack):
    return _value_and_gradient(stack).lower().compile()(*stack[1:3])


@pytest.mark.parametrize("stages, changes, ticks", [
    (4, {"pipeline_microbatches": 2}, 5), (2, {"pipeline_microbatches": 8}, 9),
    (2, {"pipeline_rounds": 2}, 5),
    (4, {"pipeline_rounds": 2, "pipeline_microbatches": 8, "remat": "full"}, 19)], ids=str)
def test_a_pipeline_equals_the_scan(scanned, stack, stages, changes, ticks):
    mesh = make_mesh({"stage": stages}, jax.devices()[:stages])
    with jax.set_mesh(mesh):
        traced = _value_and_gradient(stack, **changes)
        actual = traced.lower().compile()(*stack[1:3])
    assert f"length={ticks}\n" in str(traced.jaxpr), "one scan over the ticks of the schedule"
    # The same sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual,
                 scanned)


def test_stages_send_by_a_permute_and_no_weights_move(stack):
    config, blocks, x_BLD, *batch = stack
    mesh = make_mesh({"stage": 2, "data": 2}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(blocks, param_shardings(blocks, mesh))
        assert placed["w_DF"].sharding.shard_shape(placed["w_DF"].shape)[0] == N // 2
        loss = _loss(Execution(), batch)
        text = jax.jit(jax.grad(loss, has_aux=True)).lower(placed, x_BLD).compile().as_text()
    assert "collective-permute(" in text
    moved = re.findall(r"= \S*\[([\d,]+)\]\S* (?:all-gather|all-to-all)\(", text)
    assert not [shape for shape in moved if shape.endswith(f"{config.D},{config.F}")], moved


@pytest.mark.parametrize("changes", [{}, {"remat": "full"}, {"pipeline_rounds": 2}], ids=str)
def test_weights_are_not_saved_for_every_tick(stack, changes):
    config, blocks, x_BLD, *batch = stack
    loss = _loss(Execution(pipeline_microbatches=8, **changes), batch,
                 partial(_layer, dtype="bfloat16"))
    with jax.set_mesh(make_mesh({"stage": 2}, jax.devices()[:2])):
        saved = jax.eval_shape(lambda *args: jax.vjp(loss, *args, has_aux=True)[1], blocks, x_BLD)
    of_weights = [leaf.size for leaf in jax.tree.leaves(saved)
                  if {*leaf.shape[-2:]} == {config.D, config.F}]
    assert sum(of_weights) <= blocks["w_DF"].size + blocks["w_FD"].size
