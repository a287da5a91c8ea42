"""Optimizers by parameter name: who is a matrix, who decays, and each rule's first steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.common import make_optimizer as make_section
from core.errors import UserError
from train.loss import next_token_loss
from train.optimizer.optimizers import FIELDS, eval_params, learning_rates, make_optimizer

N, D, H, G, K, F, V, E = 2, 8, 4, 2, 2, 12, 10, 3
SHAPES = {"embed_VD": (V, D), "head_DV": (D, V), "final_norm_D": (D,), "blocks": {
    "attn_norm_D": (N, D), "q_norm_K": (N, K), "wq_DHK": (N, D, H, K), "wk_DGK": (N, D, G, K),
    "wo_HKD": (N, H, K, D), "router_DE": (N, D, E), "w_up_EDF": (N, E, D, F),
    "w_down_EFD": (N, E, F, D)}}
# Each weight as the matrices [..., inputs, outputs] that Muon and Adafactor are about.
MATRICES = {"wq_DHK": (N, D, H * K), "wk_DGK": (N, D, G * K), "wo_HKD": (N, H * K, D),
            "w_up_EDF": (N, E, D, F), "w_down_EFD": (N, E, F, D)}
LEAVES = [(name,) for name in SHAPES if name != "blocks"] + [
    ("blocks", name) for name in SHAPES["blocks"]]
RATE, DECAY = 0.02, 0.1


def _section(**changes):
    return ConfigDict(make_section(learning_rate=RATE, adam_learning_rate=0.01, clip_norm=0.0,
                                   schedule="constant", warmup_steps=0) | changes)


def _random_tree(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.normal(size=shape).astype(np.float32), SHAPES,
                        is_leaf=lambda leaf: isinstance(leaf, tuple))


PARAMS, GRADIENTS = _random_tree(0), [_random_tree(seed) for seed in (1, 2, 3)]


def _run(section, gradients, params=PARAMS):
    """The updates, parameters and last optimizer state of consecutive steps."""
    optimizer = make_optimizer(section, num_steps=100)

    @jax.jit
    def run(gradients, params):
        state, trail = optimizer.init(params), []
        for gradient in gradients:
            update, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, update)
            trail.append((update, params))
        return trail, state

    return jax.device_get(run(gradients, params))


def _leaf(tree, path):
    for name in path:
        tree = tree[name]
    return np.asarray(tree, np.float64)


def _is_decayed(path):
    return path[0] == "blocks" and "norm" not in path[-1]


def _adamw(params, gradients, decay, rate=RATE, b1=0.9, b2=0.95, eps=1e-8, nesterov=False):
    """Closed form of arXiv 1711.05101, algorithm 2: moments as explicit sums over all steps.

    With Nesterov's momentum, the mean looks one step ahead (OpenReview OM0jvwB8jIp57ZJjtNEZ).
    """
    for t in range(1, len(gradients) + 1):
        ages = np.arange(t)[::-1]
        mean = sum(b1**a * g for a, g in zip(ages, gradients)) * (1 - b1) / (1 - b1**t)
        if nesterov:
            ahead = b1 * (1 - b1**t) / (1 - b1 ** (t + 1))
            mean = ahead * mean + (1 - b1) / (1 - b1**t) * gradients[t - 1]
        square = sum(b2**a * g**2 for a, g in zip(ages, gradients)) * (1 - b2) / (1 - b2**t)
        params = params - rate * (mean / (np.sqrt(square) + eps) + decay * params)
    return params


def _lion(params, gradients, decay, b1=0.9, b2=0.95):
    """arXiv 2302.06675, program 1."""
    momentum = np.zeros_like(params)
    for gradient in gradients:
        params = params - RATE * (np.sign(b1 * momentum + (1 - b1) * gradient) + decay * params)
        momentum = b2 * momentum + (1 - b2) * gradient
    return params


def _sgd(params, gradients, decay, momentum=0.95):
    trace = np.zeros_like(params)
    for gradient in gradients:
        trace = gradient + momentum * trace
        params = params - RATE * (gradient + momentum * trace + decay * params)
    return params


def _schedule_free(params, gradients, decay, b1=0.9, b2=0.95, eps=1e-8):
    """arXiv 2405.15682, algorithm 1, with a constant rate; returns y and x."""
    x = y = z = params
    square = np.zeros_like(params)
    for t, gradient in enumerate(gradients, start=1):
        square = b2 * square + (1 - b2) * gradient**2
        z = z - RATE * (gradient / (np.sqrt(square / (1 - b2**t)) + eps) + decay * y)
        x = (1 - 1 / t) * x + z / t
        y = (1 - b1) * z + b1 * x
    return y, x


@pytest.mark.parametrize("name, reference", [("adamw", _adamw), ("lion", _lion), ("sgd", _sgd)])
def test_three_steps_equal_the_papers_formula(name, reference):
    trail, _ = _run(_section(name=name, weight_decay=DECAY), GRADIENTS)
    for path in LEAVES:
        expected = reference(_leaf(PARAMS, path), [_leaf(g, path) for g in GRADIENTS],
                             DECAY if _is_decayed(path) else 0.0)
        np.testing.assert_allclose(_leaf(trail[-1][1], path), expected, rtol=2e-5, atol=2e-6,
                                   err_msg=path[-1])


def test_sgd_without_momentum_is_the_gradient_and_keeps_no_state():
    trail, state = _run(_section(name="sgd", momentum=0.0), GRADIENTS[:1])
    jax.tree.map(lambda update, gradient: np.testing.assert_allclose(update, -RATE * gradient,
                                                                     rtol=1e-6),
                 trail[0][0], GRADIENTS[0])
    assert all(leaf.ndim == 0 for leaf in jax.tree.leaves(state))


def test_schedule_free_evaluates_another_point_than_it_differentiates():
    section = _section(name="schedule_free", weight_decay=DECAY, clip_norm=1e9)
    trail, state = _run(section, GRADIENTS)
    evaluated = eval_params(state, trail[-1][1])
    for path in LEAVES:
        y, x = _schedule_free(_leaf(PARAMS, path), [_leaf(g, path) for g in GRADIENTS],
                              DECAY if _is_decayed(path) else 0.0)
        np.testing.assert_allclose(_leaf(trail[-1][1], path), y, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(_leaf(evaluated, path), x, rtol=2e-5, atol=4e-6)
        assert np.abs(x - y).max() > 1e-4


@pytest.mark.parametrize("name", sorted(set(FIELDS) - {"schedule_free"}))
def test_all_others_evaluate_the_parameters_themselves(name):
    state = jax.jit(make_optimizer(_section(name=name), num_steps=10).init)(PARAMS)
    assert eval_params(state, PARAMS) is PARAMS


@pytest.fixture(scope="module")
def muon_trail():
    """Three steps of Muon on the same gradients as everywhere here."""
    return _run(_section(name="muon", weight_decay=DECAY, momentum=0.9), GRADIENTS)[0]


def _quintic(matrix):
    """Muon's five steps on one matrix (kellerjordan.github.io/posts/muon), on singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(matrix)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return left * values @ right


@pytest.mark.parametrize("name", MATRICES)
def test_muon_treats_each_layer_and_each_expert_as_a_matrix_of_its_own(muon_trail, name):
    shape = MATRICES[name]
    before = [_leaf(PARAMS["blocks"], [name]), *(_leaf(after["blocks"], [name])
                                                for _, after in muon_trail)]
    momentum = 0.0
    for step, gradient in enumerate(GRADIENTS):
        gradient = _leaf(gradient["blocks"], [name])
        momentum = 0.9 * momentum + gradient
        direction = (gradient + 0.9 * momentum).reshape(shape)
        for index in np.ndindex(shape[:-2]):
            expected = 0.2 * max(shape[-2:]) ** 0.5 * _quintic(direction[index])
            expected += DECAY * before[step].reshape(shape)[index]
            found = _leaf(muon_trail[step][0]["blocks"], [name]).reshape(shape)[index]
            np.testing.assert_allclose(found, -RATE * expected, rtol=1e-3, atol=1e-5)


def test_muon_brings_all_singular_values_near_one():
    update = _run(_section(name="muon"), GRADIENTS[:1])[0][0][0]
    for name, shape in MATRICES.items():
        before, after = (np.linalg.svd(_leaf(tree["blocks"], [name]).reshape(shape))[1]
                         for tree in (GRADIENTS[0], update))
        assert (before.max(-1) / before.min(-1)).max() > 2.5
        after /= RATE * 0.2 * max(shape[-2:]) ** 0.5
        assert after.min() > 0.6 and after.max() < 1.3, name


def test_what_is_no_matrix_goes_to_nadamw_under_muon(muon_trail):
    for path in LEAVES:
        if path[-1] not in MATRICES:
            expected = _adamw(_leaf(PARAMS, path), [_leaf(g, path) for g in GRADIENTS],
                              DECAY if path[-1] == "router_DE" else 0.0, rate=0.01, nesterov=True)
            np.testing.assert_allclose(_leaf(muon_trail[-1][1], path), expected, rtol=2e-5,
                                       atol=2e-6, err_msg=path[-1])


def _adafactor(params, gradients, is_factored):
    """arXiv 1804.04235, algorithms 4 and 5, of one matrix or vector, without relative step."""
    row = column = full = 0.0
    for t, gradient in enumerate(gradients, start=1):
        beta, square = 1 - t**-0.8, gradient**2 + 1e-30
        if is_factored:
            row = beta * row + (1 - beta) * square.mean(1)
            column = beta * column + (1 - beta) * square.mean(0)
            second = np.outer(row, column) / row.mean()
        else:
            second = full = beta * full + (1 - beta) * square
        update = gradient / np.sqrt(second)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        params = params - RATE * max(1e-3, np.sqrt(np.mean(params**2))) * update
    return params


@pytest.mark.parametrize("name, shape, count_axes, matrix", [
    ("wq_DHK", (2, 130, 3, 50), 1, (130, 150)),
    ("wo_HKD", (2, 3, 50, 130), 1, (150, 130)),
    ("w_up_EDF", (2, 2, 130, 128), 2, (130, 128)),
    ("w_up_DF", (2, 20, 30), 1, (20, 30)),
    ("attn_norm_D", (130, 140), 1, (140,)),
], ids=str)
def test_adafactor_of_a_stack_is_adafactor_of_each_matrix(name, shape, count_axes, matrix):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) * rng.lognormal(size=shape) for _ in range(3)]
    params, *gradients = [{"blocks": {name: v.astype(np.float32)}} for v in values]
    trail, _ = _run(_section(name="adafactor"), gradients, params)
    found = trail[-1][1]["blocks"][name].reshape(-1, *matrix)
    stacks = [value.reshape(-1, *matrix) for value in values]
    for n in range(np.prod(shape[:count_axes])):
        expected = _adafactor(stacks[0][n], [stack[n] for stack in stacks[1:]],
                              is_factored=min(matrix) >= 128 and len(matrix) == 2)
        np.testing.assert_allclose(found[n], expected, rtol=1e-3, atol=2e-5)


def test_adafactor_keeps_rows_and_columns_instead_of_a_moment():
    params = {"blocks": {"w_up_DF": jax.ShapeDtypeStruct((2, 200, 300), jnp.float32)}}
    state = jax.eval_shape(make_optimizer(_section(name="adafactor"), num_steps=10).init, params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 0.02 * 2 * 200 * 300


@pytest.mark.parametrize("name", FIELDS)
def test_weight_decay_shrinks_the_blocks_matrices_alone(name):
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    trail, state = _run(_section(name=name, weight_decay=DECAY), [zeros])
    after = eval_params(state, trail[0][1])  # schedule-free's base step, without its averaging
    for path in LEAVES:
        shrink = 0.01 if name == "muon" and path[-1] == "router_DE" else RATE
        factor = 1 - shrink * DECAY if _is_decayed(path) else 1.0
        np.testing.assert_allclose(_leaf(after, path), factor * _leaf(PARAMS, path), rtol=3e-6,
                                   err_msg=path[-1])


@pytest.mark.parametrize("name", FIELDS)
def test_multipliers_scale_whole_updates_by_name(name):
    plain = _run(_section(name=name, weight_decay=DECAY), GRADIENTS[:1])[0][0][0]
    scaled = _run(_section(name=name, weight_decay=DECAY, lr_multipliers={
        "*": 2.0, "router_DE": 0.5, "w_*": 3.0, "w_up_*": 0.0}), GRADIENTS[:1])[0][0][0]
    factors = {"router_DE": 0.5, "w_up_EDF": 0.0, "w_down_EFD": 3.0}
    for path in LEAVES:
        np.testing.assert_allclose(_leaf(scaled, path),
                                   factors.get(path[-1], 2.0) * _leaf(plain, path), rtol=2e-5,
                                   atol=2e-6, err_msg=path[-1])


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "sgd"])
def test_the_first_moment_may_be_kept_in_bfloat16(name):
    optimizer = make_optimizer(_section(name=name, mu_dtype="bfloat16"), num_steps=10)
    update, state = jax.eval_shape(lambda gradient, params: optimizer.update(
        gradient, optimizer.init(params), params), GRADIENTS[0], PARAMS)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim > 2]
    num_moments = sum(leaf.ndim > 2 for leaf in jax.tree.leaves(PARAMS))
    assert dtypes.count(jnp.bfloat16) == num_moments
    num_seconds = {"adamw": num_moments, "muon": 1}.get(name, 0)  # of rank above 2
    assert dtypes.count(jnp.float32) == num_seconds
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(update))


def test_a_gradient_beyond_the_limit_is_scaled_back_to_it():
    gradient, other = GRADIENTS[:2]
    limit = float(jax.jit(optax.tree.norm)(gradient))

    def second(factor, clip_norm=limit):
        scaled = jax.tree.map(lambda leaf: factor * leaf, gradient)
        return _run(_section(name="adamw", clip_norm=clip_norm), [other, scaled])[0][1][0]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), second(1.0),
                 second(1000.0))
    assert np.abs(second(0.5)["head_DV"] - second(1.0)["head_DV"]).max() > 1e-4, "below, untouched"
    assert np.abs(second(1000.0, 0.0)["head_DV"] - second(1.0)["head_DV"]).max() > 1e-4, "0 is off"


@pytest.fixture(scope="module")
def gradient_fn(batch, config, execution):
    """`params -> (loss, gradient)` of the tiny model on one batch."""
    def mean_loss(params):
        total, sums = next_token_loss(params, batch, config=config, execution=execution,
                                      key=jax.random.key(0))
        return total / sums["loss"][1]

    return jax.jit(jax.value_and_grad(mean_loss))


@pytest.mark.parametrize("name", FIELDS)
def test_every_optimizer_learns(name, params, gradient_fn):
    rates = {"sgd": 0.3, "lion": 1e-3, "adafactor": 0.05}
    section = _section(name=name, learning_rate=rates.get(name, 5e-3), adam_learning_rate=5e-3,
                       clip_norm=1.0)
    optimizer = make_optimizer(section, num_steps=8)

    @jax.jit
    def apply(gradient, state, params):
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    state, losses = jax.jit(optimizer.init)(params), []
    for _ in range(8):
        loss, gradient = gradient_fn(params)
        params, state = apply(gradient, state, params)
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.1, losses


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_the_recorded_learning_rates_are_those_of_the_updates(name):
    """The gradient of an update is all ones, so that the rate is read off directly."""
    section = _section(name=name, schedule="linear", warmup_steps=2, momentum=0.0, b1=0.0)
    ones = jax.tree.map(np.ones_like, PARAMS)
    trail, _ = _run(section, [ones] * 4)
    rates_at = jax.jit(lambda count: learning_rates(section, 100, count, PARAMS))
    for count, (update, _) in enumerate(trail):
        rates = rates_at(count)
        assert set(rates) == ({"learning_rate"} if name == "sgd" else
                              {"learning_rate", "adam_learning_rate"})
        rate = rates["learning_rate" if name == "sgd" else "adam_learning_rate"]
        np.testing.assert_allclose(-update["final_norm_D"], rate, rtol=1e-4)
        matrix_rms = float(np.sqrt(np.mean(np.square(update["blocks"]["wq_DHK"]))))
        first_rms = float(np.sqrt(np.mean(np.square(trail[0][0]["blocks"]["wq_DHK"]))))
        first = float(rates_at(0)["learning_rate"])
        assert matrix_rms / first_rms == pytest.approx(float(rates["learning_rate"]) / first,
                                                       rel=1e-4)


@pytest.mark.parametrize("name, expected", [
    ("sgd", {"learning_rate": 0.01, "learning_rate/w*": 0.005, "learning_rate/embed*": 0.002}),
    ("muon", {"learning_rate": 0.01, "learning_rate/w*": 0.005,
              "adam_learning_rate": 0.005, "adam_learning_rate/embed*": 0.001})])
def test_each_pattern_that_applies_has_a_recorded_learning_rate(name, expected):
    """`e*` applies to none, as `embed*` is longer."""
    section = _section(name=name, schedule="linear", warmup_steps=2, momentum=0.0, b1=0.0,
                       lr_multipliers={"w*": 0.5, "e*": 7.0, "embed*": 0.2})
    rates = learning_rates(section, 100, jnp.int32(0), PARAMS)
    assert {name: float(rate) for name, rate in rates.items()} == pytest.approx(expected)
    (update, _), = _run(section, [jax.tree.map(np.ones_like, PARAMS)])[0]
    np.testing.assert_allclose(-update["embed_VD"], [*expected.values()][-1], rtol=1e-4)


@pytest.mark.parametrize("changes, line", [
    ({"name": "sgdm"}, "optimizer.name='sgdm': is none of adamw, muon, lion, adafactor, sgd, sch"),
    ({"clip_norm": -1.0}, r"SECTION\.optimizer\.clip_norm=-1\.0: must be a number, at least 0 and"),
    ({"final_frac": 1.5}, r"final_frac=1\.5: must be a number, at least 0 and at most 1"),
    ({"name": "lion", "mu_dtype": "float16"}, "optimizer.mu_dtype='float16': is none of float32"),
    ({"name": "schedule_free", "schedule": "wsd"}, "schedule='wsd': schedule_free averages"),
    ({"name": "schedule_free", "b1": 0.0}, "optimizer.b1=0.0: must be above 0"),
    ({"lr_multipliers": {"embd*": 0.5}},
     r"lr_multipliers='embd\*': matches no parameter: choose among attn_norm_D, embed_VD"),
], ids=str)
def test_impossible_settings_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        make_optimizer(_section(**changes), num_steps=20).init(PARAMS)


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_field_is_named(name):
    for field in ("clip_norm", *FIELDS[name]):
        section = _section(name=name)
        del section[field]
        with pytest.raises(UserError, match=f"optimizer.{field}: is missing, and {name} needs it"):
            make_optimizer(section, num_steps=20)
