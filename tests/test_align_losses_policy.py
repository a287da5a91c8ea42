"""Losses of a policy: TRL's and OpenRLHF's numbers, float64 formulas, gradients, invariances."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.losses.policy import (
    AGGREGATIONS,
    KL_LOSSES,
    RATIOS,
    PolicyBatch,
    Settings,
    check_settings,
    policy_loss,
)
from align.rl.advantages import estimate_kl, spread
from core.artifacts import ROOT
from core.errors import UserError
from model.parallel.sharding import make_mesh
from scripts.golden.policy import CASES, NOT_IN_TRL
from train.step import accumulate, place_batch

GOLDEN = ROOT / "tests" / "golden" / "policy"
PEER = json.loads((GOLDEN / "openrlhf.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "losses.npz") as file:
        return dict(file)


def make_batch(arrays, advantages="advantages"):
    """New log-probabilities and values, which are differentiated, and the batch."""
    x = {name: array.astype(np.float32) for name, array in arrays.items() if "/" not in name}
    mask_BL = x["mask"]
    batch = PolicyBatch(mask_BL, x["old"], np.asarray(spread(x[advantages], mask_BL)),
                        x["reference"], x["returns"], x["values"])
    return {"new": x["new"], "vpred": x["vpred"]}, batch


def loss_of(leaves, batch, settings):
    return policy_loss(leaves["new"], batch, settings=settings, values_BL=leaves["vpred"])


@partial(jax.jit, static_argnames="settings")
def run(leaves, batch, settings):
    """Sums of the loss and of all metrics, and the gradient of the mean, as a step divides it."""
    (total, sums), gradient = jax.value_and_grad(loss_of, has_aux=True)(leaves, batch, settings)
    return total, sums, jax.tree.map(lambda leaf: leaf / sums["loss"][1], gradient)


def means_of(sums):
    return {name: float(total / weight) for name, (total, weight) in sums.items()}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl_and_the_formulas(golden, name):
    settings = check_settings(Settings(**CASES[name]), "golden")
    leaves, batch = make_batch(golden, "rloo_advantages" if name == "rloo" else "advantages")
    total, sums, gradient = run(leaves, batch, settings)
    value = float(total / sums["loss"][1])
    assert value == pytest.approx(float(golden[f"{name}/value"]), rel=1e-5, abs=1e-6)
    if name not in NOT_IN_TRL:
        assert value == pytest.approx(float(golden[f"{name}/trl"]), rel=1e-5, abs=1e-6)
    for key, found in gradient.items():
        expected = golden.get(f"{name}/gradient/{key}", np.zeros_like(found))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, settings", [
    ("token", Settings()), ("answer", Settings(aggregation="grpo")),
    ("clip_higher", Settings(eps_high=0.28)),
    ("gspo", Settings("answer_mean", "grpo", eps_low=0.03, eps_high=0.04))])
def test_surrogates_are_those_of_openrlhf(golden, name, settings):
    means = means_of(run(*make_batch(golden), settings)[1])
    expected = PEER[f"policy/{name}"]
    assert means["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-6)
    if name != "gspo":      # of which OpenRLHF counts tokens, where answers are clipped
        assert means["clip_frac"] == pytest.approx(expected["clip_frac"], rel=1e-6)


def test_value_losses_are_those_of_openrlhf(golden):
    for name, clip in (("0.2", 0.2), ("none", 0.0)):
        means = means_of(run(*make_batch(golden), Settings(vf_coef=1.0, value_clip=clip))[1])
        assert means["value_loss"] == pytest.approx(PEER[f"value/{name}"], rel=1e-5)
        assert (means["value_clip_frac"] > 0) == (clip > 0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_first_update_is_the_plain_policy_gradient(golden, ratio):
    """Of the old policy the ratio is 1, nothing is clipped, the gradient is that of A log pi."""
    leaves, batch = make_batch(golden)
    _, sums, gradient = run({**leaves, "new": batch.old_BL}, batch,
                            Settings(ratio, aggregation="grpo"))
    means, num_B = means_of(sums), golden["mask"].sum(axis=1)
    assert means["ratio"] == means["ratio_max"] == 1
    assert means["clip_frac"] == means["approx_kl"] == 0
    expected_BL = -golden["advantages"][:, None] * golden["mask"] / len(num_B)
    if ratio != "answer":       # a product's gradient is that of each factor
        expected_BL = expected_BL / num_B[:, None]
    np.testing.assert_allclose(gradient["new"], expected_BL, rtol=1e-5, atol=1e-7)


def test_statistics_are_means_over_tokens_or_answers(golden):
    leaves, batch = make_batch(golden)
    mask, d = golden["mask"], (golden["new"] - golden["old"])
    entropy_BL = np.where(mask > 0, np.abs(d), np.nan).astype(np.float32)
    means = means_of(jax.jit(partial(policy_loss, settings=Settings()))(
        leaves["new"], batch, entropy_BL=entropy_BL)[1])
    real, kl = d[mask > 0], (golden["new"] - golden["reference"]) * mask
    ratio = np.exp(real)
    a = (golden["advantages"][:, None] * mask)[mask > 0]
    clipped = ((ratio < 0.8) & (a < 0)) | ((ratio > 1.2) & (a > 0))
    largest = np.where(mask > 0, np.exp(d), 0).max(axis=1)
    expected = dict(ratio=ratio.mean(), approx_kl=0.5 * np.mean(real**2), entropy=abs(real).mean(),
                    clip_frac=clipped.mean(), ratio_max=largest.mean(), kl=kl.sum(axis=1).mean())
    assert 0 < expected["clip_frac"] < 1
    assert {name: means[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    whole = np.exp((d * mask).sum(axis=1))
    means = means_of(run(leaves, batch, Settings("answer", aggregation="token"))[1])
    assert means["ratio"] == pytest.approx(whole.mean(), rel=1e-5)


def test_a_clipped_token_has_no_gradient_and_one_that_went_the_wrong_way_has():
    old = np.zeros((1, 4), np.float32)
    new = np.log(np.float32([[1.5, 0.5, 1.5, 0.5]]))
    batch = PolicyBatch(old + 1, old, np.float32([[1, 1, -1, -1]]))
    for eps_high, expected in ((0.2, [0, -0.5, 1.5, 0]), (0.6, [-1.5, -0.5, 1.5, 0])):
        gradient = run(dict(new=new, vpred=new), batch, Settings(eps_high=eps_high))[2]
        np.testing.assert_allclose(gradient["new"][0] * 4, expected, rtol=1e-6)


def test_a_value_is_clipped_around_that_of_the_rollout():
    """The larger of two squares: a value that jumped to its return still pays for the way."""
    row = np.zeros((1, 4), np.float32)
    values = np.float32([[0.1, 1.0, -1.0, 3.0]])
    batch = PolicyBatch(row + 1, row, row, None, row + 1, row)
    _, sums, gradient = run(dict(new=row, vpred=values), batch, Settings(vf_coef=1.0))
    squares = [0.9**2, 0.8**2, 2.0**2, 2.0**2]
    assert float(sums["value_loss"][0]) == pytest.approx(0.5 * sum(squares), rel=1e-6)
    assert float(sums["value_clip_frac"][0]) == 1
    np.testing.assert_allclose(gradient["vpred"] * 4, [[-0.9, 0, -2, 2]], rtol=1e-6)


OLD = np.array([1, 2, 2, 3]) / 8        # a policy over four answers of one token
REFERENCE = np.array([0.4, 0.1, 0.3, 0.2])


def test_the_gradients_of_kl_terms_are_those_that_their_names_stand_for():
    """Exactly: answers are drawn from the old policy in its own proportions, 8 in all."""
    drawn = np.repeat(np.arange(4), (OLD * 8).astype(int))
    rows = np.log(np.float32(OLD))[drawn][:, None], np.log(np.float32(REFERENCE))[drawn][:, None]
    ones = np.ones((8, 1), np.float32)
    batch = PolicyBatch(ones, rows[0], 0 * ones, rows[1])

    def term(logits, name):
        logps_BL = jax.nn.log_softmax(logits)[drawn][:, None]
        if name == "k1":
            return jnp.mean(estimate_kl(logps_BL, rows[1], ones, "k1"))
        return policy_loss(logps_BL, batch, settings=Settings(kl_coef=1.0, kl_loss=name))[0] / 8

    def kl(logits, reverse=False):
        logp, ref = jax.nn.log_softmax(logits), jnp.log(REFERENCE.astype(np.float32))
        return jnp.sum(jnp.exp(ref) * (ref - logp)) if reverse else jnp.sum(
            jnp.exp(logp) * (logp - ref))

    here, there = jnp.log(OLD.astype(np.float32)), jnp.float32([0.3, -1.0, 0.5, 0.1])
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    slope, kl_slope = jax.jit(jax.grad(term), static_argnums=1), jax.jit(jax.grad(kl))
    close(slope(here, "k1"), np.zeros(4))
    close(slope(here, "k2"), kl_slope(here))
    close(slope(here, "k3"), jax.jit(jax.grad(partial(kl, reverse=True)))(here))
    close(slope(here, "k3_corrected"), kl_slope(here))
    close(term(there, "k3_corrected"), kl(there))
    close(slope(there, "k3_corrected"), kl_slope(there))
    assert not np.allclose(slope(there, "k2"), kl_slope(there), atol=0.02)
    assert not np.allclose(slope(here, "k3"), kl_slope(here), atol=0.02)


def widened(leaves, batch, before, after):
    """With padding in which nothing is a number, and two rows that fill the batch up."""
    def widen(path, leaf):
        value = 0.0 if path and getattr(path[-1], "name", "") == "mask_BL" else np.nan
        return np.pad(leaf, ((0, 2), (before, after)), constant_values=value)

    return jax.tree_util.tree_map_with_path(widen, (leaves, batch))


INVARIANT = [Settings(vf_coef=0.1, kl_coef=0.1),
             Settings("answer", "grpo", kl_coef=0.1, kl_loss="k3_corrected", vf_coef=0.1),
             Settings("answer_mean", "dr_grpo", max_tokens=8, kl_coef=0.1, kl_loss="k2",
                      vf_coef=0.1)]


@pytest.mark.parametrize("settings", INVARIANT, ids=lambda settings: settings.aggregation)
def test_neither_padding_nor_microbatches_nor_devices_matter(golden, settings):
    leaves, batch = make_batch(golden)
    total, sums, gradient = jax.device_get(run(leaves, batch, settings))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for before, after in ((0, 5), (5, 0)):
        wide = widened(leaves, batch, before, after)
        found, found_sums, found_gradient = jax.device_get(run(*wide, settings))
        jax.tree.map(close, (found, found_sums), (total, sums))
        jax.tree.map(lambda a, b, before=before: close(a[:6, before:before + 8], b),
                     found_gradient, gradient)
        assert all(abs(leaf).sum() == pytest.approx(abs(leaf[:6, before:before + 8]).sum())
                   for leaf in found_gradient.values()), "what is masked has no gradient"
    # Eight rows: by a scale and a shift of log-probabilities and values, the gradient of two
    # numbers, as a step computes it.
    wide = widened(leaves, batch, 0, 0)

    def tune(scales, rows):
        return loss_of({name: leaf * scales[name] for name, leaf in rows[0].items()}, rows[1],
                       settings)

    scales = {name: jnp.float32(1.01) for name in leaves}
    gradient_fn = jax.grad(tune, has_aux=True)
    whole = jax.jit(gradient_fn)(scales, wide)
    parts = jax.jit(partial(accumulate, gradient_fn, num_microbatches=4))(scales, wide)
    mesh = make_mesh({"data": 8, "fsdp": 1}, jax.devices())
    with jax.set_mesh(mesh):
        spread_out = jax.device_get(jax.jit(gradient_fn)(scales, place_batch(wide, mesh)))
    jax.tree.map(close, parts, whole)
    jax.tree.map(close, spread_out, whole)


@pytest.mark.parametrize("ratio, kl_loss", [*zip(RATIOS, KL_LOSSES), ("token", "k3_corrected")])
def test_no_ratio_overflows(ratio, kl_loss):
    new = np.float32([[-600.0, -1.0], [-1.0, -1.0]])
    batch = PolicyBatch(np.ones((2, 2), np.float32), np.float32([[-1, -1], [-600, -1]]),
                        np.float32([[0, 1], [-1, 0]]), new[::-1])
    found = run(dict(new=new, vpred=new), batch, Settings(ratio, kl_coef=0.1, kl_loss=kl_loss))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_a_term_without_its_arrays_and_settings_that_do_not_fit_are_refused():
    row = np.ones((1, 2), np.float32)
    batch = PolicyBatch(row, row, row)
    for settings, message in ((Settings(kl_coef=0.1), "no reference_BL"),
                              (Settings(vf_coef=0.1), "no values, or no returns")):
        with pytest.raises(UserError, match=message):
            policy_loss(row, batch, settings=settings)
    for settings, message in (
            (Settings(ratio="sequence"), f"rl.ratio='sequence'.*{', '.join(RATIOS)}"),
            (Settings(aggregation="mean"), f"rl.aggregation='mean'.*{', '.join(AGGREGATIONS)}"),
            (Settings(kl_loss="k1"), "mean gradient of 0"),
            (Settings(kl_loss="k5"), "there is no such choice"),
            (Settings(aggregation="dr_grpo"), "rl.max_tokens=0"),
            (Settings(max_tokens=8), "rl.max_tokens=8")):
        with pytest.raises(UserError, match=message):
            check_settings(settings, "rl")
