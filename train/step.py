"""The step: pure, jitted once, its state donated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from core.errors import UserError
from model.config import ModelConfig
from model.parallel.sharding import num_batch_shards, param_shardings, spec, state_shardings
from train.guard import judge, make_guard
from train.loss import Metrics
from train.state import TrainState
from train.watch.diagnostics import diagnose

LossFn = Callable[..., tuple[jax.Array, Metrics]]


def make_state(make_params: Callable[[Any], Any], source: Any,
               optimizer: optax.GradientTransformation, key: jax.Array, *,
               guard_window: int = 128, keep_ema: bool = False) -> TrainState:
    """The state before the first step, wherever it is called; see `init_state`."""
    params = make_params(source)
    ema = jax.tree.map(jnp.copy, params) if keep_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key,
                      make_guard(guard_window), ema)


def make_abstract_state(make_params: Callable[[Any], Any], source: Any,
                        optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh,
                        **settings: Any) -> TrainState:
    """Shapes, dtypes and shardings of what `init_state` makes, without making or compiling it."""
    make = partial(make_state, make_params, optimizer=optimizer, key=key, **settings)
    shapes = jax.eval_shape(make, source)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes, state_shardings(shapes, shapes.params, mesh))


def init_state(make_params: Callable[[Any], Any], source: Any,
               optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh,
               **settings: Any) -> TrainState:
    """Makes the first state directly in its place on the mesh.

    Args:
        make_params: parameters from `source`: from a key, or parameters as they are.
        key: randomness of the run.
        settings: `guard_window`, `keep_ema`, as in `make_state`.
    """
    state = make_abstract_state(make_params, source, optimizer, key, mesh, **settings)
    make = partial(make_state, make_params, optimizer=optimizer, key=key, **settings)
    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        return jax.jit(make, out_shardings=places)(source)


def accumulate(loss_fn: LossFn, params: Any, batch: Any, key: jax.Array,
               num_microbatches: int) -> tuple[Any, Metrics]:
    """Gradient of the loss *sum* over microbatches, and all metrics as (sum, weight).

    Sums are divided once, by the caller, so the split does not change the result.
    """
    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if num_microbatches == 1:
        return gradient_fn(params, batch, key=key)
    batch = jax.tree.map(
        lambda leaf: leaf.reshape(num_microbatches, -1, *leaf.shape[1:]), batch)
    first = jax.tree.map(lambda leaf: leaf[0], batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
                         jax.eval_shape(gradient_fn, params, first, key=key))

    def add(total, microbatch):
        return jax.tree.map(jnp.add, total, gradient_fn(params, microbatch, key=key)), None

    return jax.lax.scan(add, zeros, batch)[0]


def make_train_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *,
                    config: ModelConfig, mesh: Mesh, state: TrainState, batch_size: int,
                    num_microbatches: int = 1, guard_sigmas: float = 0.0, ema_decay: float = 0.0,
                    diagnostics: bool = False) -> Callable[[TrainState, Any], tuple]:
    """Compiles `train_step(state, batch) -> (state, metrics)` for one mesh.

    A step that the guard refuses changes neither parameters nor optimizer, but counts as a step.

    Args:
        loss_fn: see `train.loss`.
        state: gives the shapes; it is not used up, and may be abstract.
        batch_size: rows in a batch, over all devices.
        guard_sigmas: see `train.guard.judge`.
        ema_decay: share of the running average that each step keeps.
        diagnostics: whether the metrics of `train.watch.diagnostics` are computed as well.

    Returns:
        The step. Metrics are float32 scalars on the device: means of the loss function's metrics,
        `gradient_norm` before clipping, `param_norm`, `refused` and `refused_in_row` (updates
        refused so far, and since the last accepted one).

    Raises:
        UserError: the batch does not divide by devices times microbatches.
    """
    shards = num_batch_shards(mesh)
    if batch_size % (shards * num_microbatches):
        raise UserError(f"batch_size={batch_size}",
                        f"is not divisible by {shards} data shards x {num_microbatches} "
                        "microbatches", "change batch_size, num_microbatches or --config.mesh")
    loss_fn = partial(loss_fn, config=config)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        gradient, sums = accumulate(loss_fn, state.params, batch, key, num_microbatches)
        gradient = jax.tree.map(lambda leaf: leaf / jnp.maximum(sums["loss"][1], 1e-9), gradient)
        metrics = {name: total / jnp.maximum(weight, 1e-9)
                   for name, (total, weight) in sums.items()}
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        accepted, guard = judge(state.guard, metrics["loss"], metrics["gradient_norm"],
                                sigmas=guard_sigmas)
        update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = _choose(accepted, optax.apply_updates(state.params, update), state.params)
        opt_state = _choose(accepted, opt_state, state.opt_state)
        ema = state.ema
        if ema is not None:
            ema = _choose(accepted, optax.incremental_update(params, ema, 1 - ema_decay), ema)
        metrics |= {"param_norm": optax.tree.norm(params),
                    "refused": guard.num_refused.astype(jnp.float32),
                    "refused_in_row": guard.refused_in_row.astype(jnp.float32)}
        if diagnostics:
            metrics |= diagnose(state.params, gradient, update)
        return TrainState(state.step + 1, params, opt_state, state.key, guard, ema), metrics

    shardings = state_shardings(state, state.params, mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


def _choose(accepted: jax.Array, new: Any, old: Any) -> Any:
    """A select rather than a `cond`: it fuses with the update and costs no trip to the host."""
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a batch on the devices, rows cut over the mesh's batch axes.

    Args:
        batch: all rows, in every process: each takes those of its own devices.
    """
    sharding = NamedSharding(mesh, spec("B"))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(
        sharding, leaf, leaf.shape), batch)


def place_params(params: Any, mesh: Mesh) -> Any:
    """Puts parameters in their place on the mesh."""
    return jax.device_put(params, param_shardings(params, mesh))
