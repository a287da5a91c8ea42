"""Optimizers by parameter name: who is a matrix, who decays, and the schedules' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from train.optimizer import make_optimizer, make_schedule, muon_dimensions

N, D, H, G, K, F, V = 3, 8, 4, 2, 2, 12, 10
SHAPES = {"embed_VD": (V, D), "head_DV": (D, V), "final_norm_D": (D,), "blocks": {
    "attn_norm_D": (N, D), "q_norm_K": (N, K), "wq_DHK": (N, D, H, K), "wk_DGK": (N, D, G, K),
    "wo_HKD": (N, H, K, D), "w_up_DF": (N, D, F), "w_down_FD": (N, F, D)}}
# Each weight of one layer as the matrix [inputs, outputs] that Muon is about.
MATRICES = {"wq_DHK": (D, H * K), "wk_DGK": (D, G * K), "wo_HKD": (H * K, D), "w_up_DF": (D, F),
            "w_down_FD": (F, D)}
OTHERS = ("embed_VD", "head_DV", "final_norm_D")


def _section(**changes):
    return ConfigDict(dict(name="muon", learning_rate=0.02, adam_learning_rate=0.01,
                           weight_decay=0.0, b1=0.9, b2=0.95, clip_norm=1e9, schedule="wsd",
                           warmup_steps=0, decay_frac=0.0) | changes)


def _random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), SHAPES,
                        is_leaf=lambda leaf: isinstance(leaf, tuple))


def _updates(section, gradients, params):
    """The updates of consecutive steps with these gradients, parameters held still."""
    optimizer = make_optimizer(section, num_steps=100)

    @jax.jit
    def run(gradients, params):
        state, updates = optimizer.init(params), []
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, params)
            updates.append(update)
        return updates

    return jax.device_get(run(gradients, params))


def _newton_schulz(gradient):
    """Muon's orthogonalization of one matrix (kellerjordan.github.io/posts/muon), in float64."""
    x = np.asarray(gradient, np.float64)
    x /= np.linalg.norm(x)
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.775 * product + 2.0315 * product @ product) @ x
    return x


@pytest.fixture(scope="module")
def muon_updates():
    """The gradient, the parameters, and Muon's first two updates with that gradient."""
    gradient, params = _random_tree(0), _random_tree(1)
    return gradient, params, _updates(_section(), [gradient, gradient], params)


@pytest.mark.parametrize("name", MATRICES)
def test_muon_treats_each_layer_as_a_matrix_of_its_own(muon_updates, name):
    gradient_N, _, updates = muon_updates
    shape = MATRICES[name]
    for n in range(N):
        direction = _newton_schulz(gradient_N["blocks"][name][n].reshape(shape))
        expected = -0.02 * 0.2 * max(shape) ** 0.5 * direction
        for update in updates:  # the momentum of equal gradients keeps their direction
            np.testing.assert_allclose(update["blocks"][name][n].reshape(shape), expected,
                                       rtol=1e-3, atol=1e-5)


def test_embedding_head_and_norms_go_to_adam(muon_updates):
    gradient, _, updates = muon_updates
    # Adam's first step is the sign of the gradient; optax.contrib.muon adds Nesterov's momentum.
    step = -0.01 * (1 + 0.9 / 1.9)
    for name in OTHERS:
        np.testing.assert_allclose(updates[0][name], step * np.sign(gradient[name]), rtol=1e-3)
    for name in ("attn_norm_D", "q_norm_K"):
        np.testing.assert_allclose(updates[0]["blocks"][name],
                                   step * np.sign(gradient["blocks"][name]), rtol=1e-3)


def test_every_block_weight_of_the_model_is_a_matrix_for_muon(params):
    dimensions = muon_dimensions(params)
    names = {name for name, value in dimensions["blocks"].items() if value is not None}
    assert names == {name for name, leaf in params["blocks"].items() if leaf.ndim > 2}
    assert all(dimensions[name] is None for name in OTHERS)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weight_decay_shrinks_the_matrices_alone(name):
    params = _random_tree(1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update, = _updates(_section(name=name, weight_decay=0.1), [zeros], params)
    for key in MATRICES:
        np.testing.assert_allclose(update["blocks"][key], -0.02 * 0.1 * params["blocks"][key],
                                   rtol=1e-5)
    for key in OTHERS:
        np.testing.assert_array_equal(update[key], 0)
    np.testing.assert_array_equal(update["blocks"]["attn_norm_D"], 0)


def test_a_gradient_beyond_the_limit_is_scaled_back_to_it():
    gradient, params = _random_tree(0), _random_tree(1)
    section = _section(name="adamw", clip_norm=float(optax.tree.norm(gradient)))
    huge = jax.tree.map(lambda leaf: 1000 * leaf, gradient)
    small = jax.tree.map(lambda leaf: 0.5 * leaf, gradient)
    at_limit, beyond, below = (_updates(section, [gradient, second], params)[1]
                               for second in (gradient, huge, small))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), at_limit, beyond)
    assert np.abs(below["head_DV"] - at_limit["head_DV"]).max() > 1e-4, "below it nothing is scaled"


@pytest.mark.parametrize("changes, expected", [
    ({"warmup_steps": 4, "decay_frac": 0.4}, {0: 0, 1: .25, 4: 1, 11: 1, 12: 1, 16: .5, 20: 0}),
    ({"warmup_steps": 0, "decay_frac": 0.5}, {0: 1, 10: 1, 15: .5, 20: 0}),
    ({"warmup_steps": 3, "decay_frac": 0.0}, {0: 0, 3: 1, 19: 1}),
    ({"schedule": "cosine", "warmup_steps": 4}, {0: 0, 2: .5, 4: 1, 8: .853553, 12: .5, 20: 0}),
], ids=str)
def test_golden_values_of_the_schedules(changes, expected):
    schedule = make_schedule(_section(**changes), num_steps=20)
    found = {step: float(schedule(step)) for step in expected}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("changes, line", [
    ({"schedule": "cosine", "warmup_steps": 20}, "warmup_steps=20: must be below num_steps=20"),
    ({"warmup_steps": 12, "decay_frac": 0.5}, "warmup_steps=12: and 10 steps of decay exceed"),
    ({"schedule": "linear"}, "schedule='linear': is none of wsd, cosine"),
    ({"name": "sgd"}, "optimizer.name='sgd': is none of muon, adamw"),
], ids=str)
def test_impossible_settings_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        make_optimizer(_section(**changes), num_steps=20)
