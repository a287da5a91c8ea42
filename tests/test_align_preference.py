"""Preference losses: equal to TRL's and to closed formulas, with gradients, however they run."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from marks import some_in_full

from align.losses import preference
from align.losses.preference import (
    LOSSES,
    LabelledBatch,
    PreferenceBatch,
    Settings,
    at_temperature,
    log1mexp,
    preference_loss,
    score_pairs,
)
from align.preference_rows import share_tokens
from core.artifacts import ROOT
from core.errors import UserError
from data.batch import stack
from data.tokens.examples import Example, lay_out_examples
from model.execution import Execution
from model.heads.language import logits
from model.hf.families.table import find_layout
from model.hf.fields import Fields
from model.hf.tables import load_params, write_params
from model.hf.tensor_files import LazyTensor
from model.parallel.sharding import make_mesh
from scripts.golden.trl import (
    BOS,
    CHOSEN,
    EOS,
    GRADIENTS,
    JOINED,
    NOT_IN_TRL,
    NUM_ROWS,
    PAD,
    PROMPTS,
    REJECTED,
)
from scripts.golden.trl import LOSSES as GOLDEN
from train.step import accumulate, place_batch

LENGTH = 16
EXECUTION = Execution()


@pytest.fixture(scope="module")
def golden():
    """Config, layout, both models' parameters and the golden values."""
    with np.load(ROOT / "tests" / "golden" / "preference" / "losses.npz") as file:
        arrays = dict(file)
    fields = Fields(json.loads(str(arrays.pop("config"))))
    layout = find_layout(fields)
    model_config = layout.read_config(fields)

    def load(model):
        tensors = {name.removeprefix(f"{model}/"): array for name, array in arrays.items()
                   if name.startswith(f"{model}/")}
        return load_params(layout, {name: LazyTensor(name, array.shape, array.dtype,
                                                     lambda array=array: array)
                                    for name, array in tensors.items()}, model_config)

    return model_config, layout, {name: load(name) for name in ("policy", "reference")}, arrays


def make_rows(prompts, answers, length=LENGTH):
    return stack([lay_out_examples([Example([*prompt, *answer, EOS], [0.0] * len(prompt)
                                            + [1.0] * (len(answer) + 1))], length)
                  for prompt, answer in zip(prompts, answers)])


def joined(prompts, answers):
    """As TRL's trainers of CPO and ORPO write them; see `scripts.golden.trl`."""
    return [[BOS, *p[:-1]] for p in prompts], [[PAD, *a[1:]] for a in answers]


score = jax.jit(score_pairs, static_argnames=("config", "execution", "temperature",
                                              "scores_prompts"))


@pytest.fixture
def compiled_forward(monkeypatch):
    """Losses that are not compiled as a whole run the model as one program."""
    monkeypatch.setattr(preference, "score_pairs", score)


def make_batch(loss, params, model_config, length=LENGTH, temperature=1.0, order=None):
    """The golden pairs as a batch, with the log-probabilities of a reference."""
    order = list(range(len(PROMPTS)) if order is None else order)
    prompts, ones = [PROMPTS[i] for i in order], np.ones(len(order), np.float32)
    sides = [[answers[i] for i in order] for answers in (CHOSEN, REJECTED)]
    if loss == "kto":
        answers = [sides[place % 2][place] for place in range(len(order))]
        rows = [make_rows(prompts, given, length)
                for given in (answers, [answers[-1], *answers[:-1]])]
    elif loss in JOINED:
        rows = [make_rows(*joined(prompts, side), length) for side in sides]
    else:
        rows = [make_rows(prompts, side, length) for side in sides]
    scored = jax.device_get(score(params, *rows, config=model_config, execution=EXECUTION,
                                  temperature=temperature))
    if loss == "kto":
        is_good_B = np.float32([place % 2 == 0 for place in range(len(order))])
        return LabelledBatch(*rows, *(side.answer_B for side in scored), is_good_B, ones)
    return share_tokens(PreferenceBatch(
        *rows, *(side.answer_B for side in scored), *(side.common_B for side in scored), ones,
        ones))


def loss_of(settings, model_config):
    return partial(preference_loss, config=model_config, execution=EXECUTION,
                   key=jax.random.key(0), settings=settings)


@partial(jax.jit, static_argnums=(0, 3, 4))
def gradient_of(settings, params, batch, model_config, num_microbatches):
    gradient_fn = jax.grad(loss_of(settings, model_config), has_aux=True)
    if num_microbatches > 1:
        return accumulate(gradient_fn, params, batch, num_microbatches)
    return gradient_fn(params, batch)


def differentiate(settings, params, batch, model_config, num_microbatches=1):
    """The mean loss, its gradient and all means of metrics."""
    gradient, sums = jax.device_get(gradient_of(settings, params, batch, model_config,
                                                num_microbatches))
    weight = sums["loss"][1]
    return (jax.tree.map(lambda leaf: leaf / weight, gradient),
            {name: float(total / max(weight, 1e-9)) for name, (total, weight) in sums.items()})


@pytest.mark.parametrize("name", some_in_full(GOLDEN, "dpo", "ld_dpo", "orpo", "kto/swapped"))
def test_value_and_gradient_are_those_of_trl_and_the_formulas(golden, name):
    model_config, layout, models, values = golden
    policy, reference = models["policy"], models["reference"]
    if name == "kto/swapped":
        policy, reference = reference, policy
    loss = name.partition("/")[0]
    settings = Settings(loss, **GOLDEN[name])
    batch = make_batch(loss, reference, model_config)
    gradient, means = differentiate(settings, policy, batch, model_config)
    # A log-ratio is known to 1e-6 in float32, as log-probabilities are near -8; beta times as much
    # is added to the loss, and of a pair's gradient to its logarithm.
    assert means["loss"] == pytest.approx(float(values[f"{name}/value"]), rel=1e-5,
                                          abs=1e-6 * settings.beta)
    if name not in NOT_IN_TRL:
        assert means["loss"] == pytest.approx(float(values[f"{name}/trl"]), rel=2e-5)
    ours = {key: read() for key, _, _, read in write_params(
        layout, jax.device_get(gradient), model_config, np.dtype("float32"))}
    for key in GRADIENTS:
        expected = values[f"{name}/{key}"]
        close = 1e-5 * max(1, settings.beta)
        np.testing.assert_allclose(ours[key][:NUM_ROWS], expected, rtol=close,
                                   atol=close * np.abs(expected).max(), err_msg=key)


def test_every_loss_has_a_golden_value():
    assert {name.partition("/")[0] for name in GOLDEN} == set(LOSSES)


@pytest.mark.parametrize("loss", some_in_full(LOSSES, "dpo"))
def test_neither_padding_nor_microbatches_nor_devices_nor_order_matter(golden, loss):
    model_config, _, models, _ = golden
    settings = Settings(loss, beta=0.1, nll_coef=0.5)
    run = partial(differentiate, settings, models["policy"])
    make = partial(make_batch, loss, models["reference"], model_config)
    order = [2, 3, 0, 1, 0, 1, 2, 3]
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1}, jax.devices())
    batch = make(order=order)
    gradient, means = run(batch, model_config)
    with jax.set_mesh(mesh):
        spread = differentiate(settings, jax.device_put(
            jax.device_get(models["policy"]), NamedSharding(mesh, PartitionSpec())),
            place_batch(batch, mesh), model_config)
    # Padding before a row instead of behind it, as far as there is some behind the longest.
    before = jax.tree.map(lambda leaf: np.roll(leaf, 3, axis=1) if leaf.ndim == 2 else leaf, batch)
    others = {"padding": run(make(order=order, length=40), model_config), "devices": spread,
              "side of the padding": run(before, model_config)}
    if loss != "kto":   # whose mismatched rows and reference point depend on both
        others["microbatches"] = run(make(order=order), model_config, num_microbatches=4)
        others["order"] = run(make(order=order[::-1]), model_config)
    for how, (other, other_means) in others.items():
        assert other_means == pytest.approx(means, rel=1e-5, abs=1e-5), how
        jax.tree.map(lambda a, b, how=how: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max(), err_msg=how), gradient,
            jax.device_get(other))


@pytest.mark.parametrize("loss, value", [
    ("dpo", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0),
    ("dpo_norm", math.log(2)), ("ld_dpo", math.log(2)), ("ipo", 25.0), ("ipo_sum", 25.0),
    ("apo_zero", 1.0), ("apo_down", 1.0), ("kto", 0.5)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.usefixtures("compiled_forward")
def test_the_first_loss_is_that_of_equal_models(golden, loss, value, temperature):
    model_config, _, models, _ = golden
    batch = make_batch(loss, models["policy"], model_config, temperature=temperature)
    settings = Settings(loss, beta=0.1, temperature=temperature)
    total, metrics = loss_of(settings, model_config)(models["policy"], batch)
    assert float(total) / len(PROMPTS) == pytest.approx(value, rel=1e-6)
    if loss != "kto":   # whose reference point is 0 but for rounding
        assert float(metrics["accuracy"][0]) == 0, "a tie is no success"


def test_what_has_weight_0_never_counts(golden):
    """Neither in the loss nor in its gradient, even where it is not finite."""
    model_config, _, models, _ = golden
    for loss in ("dpo", "orpo", "kto"):
        batch = make_batch(loss, models["reference"], model_config, order=[0, 1, 2, 3])
        names = [name for name in ("reference_chosen_B", "reference_B") if hasattr(batch, name)]
        more = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf[:2]]), batch)
        more.weights_B[4:] = 0
        if loss == "dpo":
            getattr(more, names[0])[4:] = 1e4
        settings = Settings(loss, nll_coef=0.3)
        gradient, means = differentiate(settings, models["policy"], batch, model_config)
        other, other_means = differentiate(settings, models["policy"], share_tokens(more),
                                           model_config)
        assert other_means == pytest.approx(means, rel=1e-5), loss
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), gradient, other)


def test_a_batch_without_weight_is_refused(golden):
    model_config, _, models, _ = golden
    batch = make_batch("dpo", models["reference"], model_config)
    with pytest.raises(UserError, match="a batch: has no weight"):
        share_tokens(batch.replace(weights_B=np.zeros(4, np.float32)))


def test_the_temperature_divides_the_logits(config, params):
    changed = config.__class__(**{**config.__dict__, "logit_softcap": 3.0})
    x_BLD = np.random.default_rng(1).normal(size=(2, 5, config.D)).astype(np.float32)
    read = jax.jit(partial(logits, execution=EXECUTION), static_argnames="config")
    for one in (config, changed):
        cool, cool_config = at_temperature(params, one, 0.7)
        np.testing.assert_allclose(
            read(cool, x_BLD, config=cool_config),
            np.asarray(read(params, x_BLD, config=one)) / 0.7, rtol=1e-5, atol=1e-6)


def test_the_mismatched_answers_of_kto_are_a_rotation_and_carry_no_gradient(golden):
    model_config, _, models, _ = golden
    settings = Settings("kto", beta=0.1)
    swapped = make_batch("kto", models["policy"], model_config)     # z0 is above 0
    _, means = differentiate(settings, models["reference"], swapped, model_config)
    assert means["z0"] == pytest.approx(0.75169, abs=1e-4)
    reverse = jax.tree.map(lambda leaf: leaf[::-1], swapped.mismatched)
    gradient = jax.jit(jax.grad(lambda params, rows: loss_of(settings, model_config)(
        params, swapped.replace(mismatched=rows))[0]))
    first = gradient(models["reference"], swapped.mismatched)
    again = gradient(models["reference"], reverse)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), first, again)
    z0_value = np.float32(means["z0"])
    fixed = jax.jit(jax.grad(lambda params: jnp.sum(LOSSES["kto"].function(
        score_pairs(params, swapped.answers, swapped.answers, config=model_config,
                    execution=EXECUTION)[0].answer_B - swapped.reference_B, z0_value,
        swapped.is_good_B, settings))))(models["reference"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), first, fixed)


def test_the_odds_ratio_is_finite_where_an_answer_is_certain():
    x = np.float32([0.0, -1e-9, -1e-6, -0.1, -0.7, -3.0, -100.0])
    value, slope = jax.device_get(jax.jit(jax.vmap(jax.value_and_grad(log1mexp)))(x))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope))
    inner = np.float64(x[2:])
    np.testing.assert_allclose(value[2:], np.log(-np.expm1(inner)), rtol=1e-5, atol=1e-40)
    np.testing.assert_allclose(slope[2:], -np.exp(inner) / -np.expm1(inner), rtol=1e-5,
                               atol=1e-40)
    run = jax.jit(jax.value_and_grad(lambda a, r: jnp.sum(LOSSES["orpo"].function(
        a, r, Settings("orpo"))), (0, 1)))
    for pair in ([0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]):
        found, grads = run(np.float32(pair[:1]), np.float32(pair[1:]))
        assert np.isfinite(found) and np.all(np.isfinite(grads))


@pytest.mark.usefixtures("compiled_forward")
def test_without_a_reference_its_numbers_do_not_matter(golden):
    model_config, _, models, _ = golden
    for loss in ("simpo", "orpo", "dpo"):
        settings = Settings(loss, reference_free=loss == "dpo")
        assert not settings.needs_reference
        batch = make_batch(loss, models["reference"], model_config)
        found = [float(loss_of(settings, model_config)(models["policy"], one)[0])
                 for one in (batch, batch.replace(reference_chosen_B=batch.weights_B * 7))]
        assert found[0] == found[1]
