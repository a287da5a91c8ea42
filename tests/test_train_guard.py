"""The guard: what is refused, what is not, and that a refused update leaves no trace."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer as make_section
from model.parallel.sharding import make_mesh
from train.guard import judge, make_guard
from train.loss import next_token_loss
from train.optimizer.optimizers import make_optimizer
from train.step import make_state, make_train_step, place_batch


def _judge_all(losses, norms, window, sigmas):
    """Verdicts of a whole run, and the guard after it."""
    def step(guard, pair):
        accepted, guard = judge(guard, *pair, sigmas=sigmas)
        return guard, accepted

    pairs = jnp.asarray(losses, jnp.float32), jnp.asarray(norms, jnp.float32)
    guard, accepted = jax.jit(partial(jax.lax.scan, step))(make_guard(window), pairs)
    return np.asarray(accepted), jax.device_get(guard)


def _reference(losses, norms, window, sigmas):
    """The same in plain Python: verdicts and the windows' last entries."""
    known, verdicts = ([], []), []
    for pair in zip(losses, norms):
        limits = [np.inf, np.inf]
        if sigmas and 2 * len(known[0]) >= window:
            limits = [np.mean(v) + sigmas * max(np.std(v), 0.01 * abs(np.mean(v)) + 1e-6)
                      for v in known]
        finite = bool(np.isfinite(pair).all())
        verdicts.append(finite and pair[0] <= limits[0] and pair[1] <= limits[1])
        if finite:
            for values, value, limit in zip(known, pair, limits):
                values.append(min(value, limit))
                del values[:-window]
    return np.array(verdicts), known


@pytest.mark.parametrize("window, sigmas", [(2, 3.0), (7, 2.0), (16, 4.0), (16, 0.0)])
def test_judging_equals_plain_arithmetic(window, sigmas):
    rng = np.random.default_rng(window)
    losses = 3 + 0.2 * rng.normal(size=150)
    norms = 1 + 0.1 * rng.normal(size=150)
    losses[[20, 60, 61, 62]] *= 5
    norms[[30, 31, 100]] *= 9
    losses[[40, 41]], norms[[41, 80]], losses[90] = np.nan, np.inf, -np.inf
    accepted, guard = _judge_all(losses, norms, window, sigmas)
    expected, (known_losses, known_norms) = _reference(losses, norms, window, sigmas)
    np.testing.assert_array_equal(accepted, expected)
    assert not expected.all() and (sigmas == 0 or (~expected).sum() > 4)
    np.testing.assert_allclose(guard.losses_W, known_losses, rtol=1e-5)
    np.testing.assert_allclose(guard.norms_W, known_norms, rtol=1e-5)
    assert guard.num_accepted == expected.sum() and guard.num_refused == (~expected).sum()


def test_the_window_fills_from_its_end_and_skips_what_is_not_finite():
    _, guard = _judge_all([5, np.nan, 4, np.inf], [2, 1, 3, 1], window=4, sigmas=6.0)
    np.testing.assert_array_equal(guard.losses_W, [0, 0, 5, 4])
    np.testing.assert_array_equal(guard.norms_W, [0, 0, 2, 3])
    assert guard.num_known == 2 and guard.refused_in_row == 1


def test_refusals_are_counted_in_a_row_and_in_all():
    losses = [1, 1, np.nan, np.nan, 1, np.nan, np.nan, np.nan]
    _, guard = _judge_all(losses, np.ones(8), window=4, sigmas=0.0)
    assert (guard.num_accepted, guard.num_refused, guard.refused_in_row) == (3, 5, 3)


def test_nothing_finite_is_refused_before_the_window_is_half_full():
    accepted, _ = _judge_all([1, 1, 1, 99, 1, 99], np.ones(6), window=8, sigmas=6.0)
    np.testing.assert_array_equal(accepted, [1, 1, 1, 1, 1, 1])
    accepted, _ = _judge_all([1, 1, 1, 1, 99, 1], np.ones(6), window=8, sigmas=6.0)
    np.testing.assert_array_equal(accepted, [1, 1, 1, 1, 0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_an_ordinary_run_of_5000_steps_is_never_refused(seed):
    rng, steps = np.random.default_rng(seed), np.arange(5000)
    losses = 2.5 + 8 * np.exp(-steps / 400) + 0.03 * rng.normal(size=5000)
    norms = (0.3 + 4 * np.exp(-steps / 100)) * rng.lognormal(0, 0.1, size=5000)
    accepted, _ = _judge_all(losses, norms, window=128, sigmas=6.0)
    assert accepted.all()


def test_a_loss_that_has_settled_may_still_move_by_some_per_cent():
    losses = np.full(300, 2.0)
    losses[200], losses[250] = 2.1, 2.4
    accepted, _ = _judge_all(losses, np.ones(300), window=128, sigmas=6.0)
    assert accepted[200] and not accepted[250]


def _noisy(level, steps, seed=0):
    return level * (1 + 0.02 * np.random.default_rng(seed).normal(size=steps))


def test_a_spike_does_not_hide_the_next_one():
    losses = _noisy(3.0, 400)
    losses[[200, 205, 206, 230]] = [30, 30, 9, 9]
    accepted, _ = _judge_all(losses, np.ones(400), window=128, sigmas=6.0)
    assert set(np.flatnonzero(~accepted)) == {200, 205, 206, 230}


def test_slow_drift_and_a_new_level_do_not_lock_the_run():
    losses = _noisy(3.0, 3000) * (1 + np.arange(3000) / 1000)
    assert _judge_all(losses, np.ones(3000), window=128, sigmas=6.0)[0].all()
    losses = np.concatenate([_noisy(3.0, 300), _noisy(9.0, 600)])
    losses[800] = 90
    accepted, _ = _judge_all(losses, np.ones(900), window=128, sigmas=6.0)
    *at_first, later = np.flatnonzero(~accepted)
    assert 10 <= len(at_first) <= 40 and at_first == list(range(300, 300 + len(at_first)))
    assert later == 800, "at the new level the guard is on duty again"


@pytest.fixture(scope="module")
def run(config, execution, params, batch):
    """`run(batches) -> (states, metrics)` on the host: the real step, a guard of window 2."""
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    optimizer = make_optimizer(ConfigDict(make_section(warmup_steps=0)), num_steps=10)

    def start():
        return make_state(jax.tree.map(np.array, params), optimizer, jax.random.key(1), mesh,
                          guard_window=2)

    step = make_train_step(partial(next_token_loss, config=config, execution=execution), optimizer,
                           start(), mesh, guard_sigmas=6.0)

    def run(batches):
        state, states, trail = start(), [], []
        for each in batches:
            with jax.set_mesh(mesh):
                state, metrics = step(state, place_batch(each, mesh))
            states.append(jax.tree.map(np.asarray, state.replace(key=0)))
            trail.append(jax.device_get(metrics))
        return states, trail

    return run


def _weighted(batch, changes):
    """The batch with the loss weight of its first target scaled, the others as told."""
    weights_BL = np.array(batch.loss_weights_BL, np.float32)
    row, place = np.argwhere(weights_BL > 0)[0]
    if changes == "nan":
        weights_BL[row, place] = np.nan
    else:  # one target instead of a hundred: ten times the gradient
        weights_BL[:], weights_BL[row, place] = 0, weights_BL[row, place]
    return batch.replace(loss_weights_BL=weights_BL)


@pytest.mark.parametrize("kind", ["nan", "spike"])
def test_a_refused_step_changes_no_bit_and_the_run_goes_on(run, batch, kind):
    bad = _weighted(batch, kind)
    (before, refused, after), metrics = run([batch, bad, batch])
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(refused, part))
    assert [int(state.step) for state in (before, refused, after)] == [1, 2, 3]
    assert refused.guard.refused_in_row == 1 and after.guard.refused_in_row == 0
    assert [float(each["refused"]) for each in metrics] == [0, 1, 1]
    assert metrics[1]["param_norm"] == metrics[0]["param_norm"]
    assert np.isnan(metrics[1]["loss"]) == (kind == "nan")
    assert metrics[1]["gradient_norm"] > 2 * metrics[0]["gradient_norm"] or kind == "nan"
    undisturbed, _ = run([batch, batch])
    jax.tree.map(np.testing.assert_array_equal, undisturbed[1].params, after.params)
