"""Rewards, advantages and KL: OpenRLHF's numbers, float64 formulas, and what must not matter.

`golden/policy/openrlhf.json` holds what the classes of OpenRLHF at 3c3be62 gave for the arrays of
`golden/policy/losses.npz` with no token masked within an answer, kl_coef 0.05 and groups of 3.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from align.rl import advantages as rl
from core.artifacts import ROOT
from core.errors import UserError
from model.parallel.sharding import make_mesh
from train.step import place_batch

GOLDEN = ROOT / "tests" / "golden" / "policy"
PEER = json.loads((GOLDEN / "openrlhf.json").read_text())
KL_COEF = 0.05
GROUPS = np.repeat([0, 1], 3)


@pytest.fixture(scope="module")
def arrays():
    """Golden inputs in float32, each answer one run of tokens."""
    with np.load(GOLDEN / "losses.npz") as file:
        found = {key: file[key].astype(np.float32) for key in file.files if "/" not in key}
    found["mask"][4, 2] = 1
    return found


def rewards_of(x, scores=None):
    return token_rewards(x["scores"] if scores is None else scores, x["old"], x["reference"],
                            x["mask"], KL_COEF)


def random_mask(rng, shape=(6, 9)):
    """Answers with padding on both sides and masked tokens within; each has a token."""
    mask_BL = (rng.random(shape) < 0.6).astype(np.float32)
    mask_BL[:, 4] = 1
    return mask_BL


group_advantages = jax.jit(rl.group_advantages,
                           static_argnames=("num_groups", "baseline", "ddof", "eps"))
token_rewards, reinforce_plus_plus, returns_to_go = map(jax.jit, (
    rl.token_rewards, rl.reinforce_plus_plus, rl.returns_to_go))
whiten = jax.jit(rl.whiten, static_argnames="shift_mean")
estimate_kl = jax.jit(rl.estimate_kl, static_argnums=3)
gae = jax.jit(rl.gae, static_argnames=("gamma", "lam", "truncation"))
select_best = jax.jit(rl.select_best, static_argnames=("num_groups", "num_kept"))


def group(scores, groups, baseline, mask=None, **options):
    scores = np.float32(scores)
    return jax.device_get(group_advantages(
        scores, np.asarray(groups), np.ones_like(scores) if mask is None else np.float32(mask),
        num_groups=int(max(groups)) + 1, baseline=baseline, **options))


def test_the_rewards_of_an_answer_sum_to_its_score_less_its_kl():
    """Exactly: all numbers are multiples of 1/8, even the sums. Scores are integers."""
    rng = np.random.default_rng(0)
    mask_BL = random_mask(rng)
    logps_BL, reference_BL = (np.float32(-rng.integers(1, 60, (6, 9)) / 8) for _ in range(2))
    scores_B = np.array([3, -1, 0, 7, 2, 5])
    kl_B = np.sum((logps_BL - reference_BL) * mask_BL, axis=1)
    logps_BL[mask_BL == 0] = np.nan
    rewards_BL = np.asarray(token_rewards(scores_B, logps_BL, reference_BL, mask_BL, 0.5))
    assert rewards_BL.dtype == jnp.float32
    np.testing.assert_array_equal(np.sum(rewards_BL, axis=1), scores_B - 0.5 * kl_B)
    assert not np.any(rewards_BL[mask_BL == 0])
    alone_BL = token_rewards(scores_B, reference_BL, reference_BL, mask_BL, 0.5)
    last_B = [np.flatnonzero(row)[-1] for row in mask_BL]
    np.testing.assert_array_equal(alone_BL, np.eye(9)[last_B] * scores_B[:, None])
    assert not np.any(token_rewards(scores_B, logps_BL, reference_BL, 0 * mask_BL, 0.5))


def test_a_score_below_1_is_not_rounded_to_an_integer():
    row = np.zeros((1, 3), np.float32)
    rewards = token_rewards(np.float64([0.7]), row, row, row + 1, 0.1)
    np.testing.assert_array_equal(rewards, np.float32([[0, 0, 0.7]]))


@pytest.mark.parametrize("name", ["gae/1.0/0.95", "gae/0.9/0.8"])
def test_gae_and_its_whitening_are_those_of_openrlhf(arrays, name):
    _, gamma, lam = name.split("/")
    found, returns = gae(rewards_of(arrays), arrays["values"], arrays["mask"],
                            gamma=float(gamma), lam=float(lam))
    np.testing.assert_allclose(returns, PEER[name]["returns"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whiten(found, arrays["mask"]), PEER[name]["advantages"],
                               rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["reinforce/1.0/1.0", "reinforce/0.9/1.0"])
def test_reinforce_plus_plus_is_that_of_openrlhf(arrays, name):
    gamma = float(name.split("/")[1])
    rewards_BL = rewards_of(arrays)
    np.testing.assert_allclose(returns_to_go(rewards_BL, arrays["mask"], gamma),
                               PEER[name]["returns"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reinforce_plus_plus(rewards_BL, arrays["mask"], gamma),
                               PEER[name]["advantages"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("peer, baseline, options", [
    ("reinforce_baseline", "dr_grpo", {}), ("dr_grpo", "dr_grpo", {}), ("rloo", "rloo", {}),
    ("group_norm", "grpo", dict(eps=1e-9))])
def test_groups_are_those_of_openrlhf(arrays, peer, baseline, options):
    scores_B = group(arrays["scores"], GROUPS, baseline, **options).advantages_B
    rewards_BL = rewards_of(arrays, scores_B)
    make = reinforce_plus_plus if peer == "reinforce_baseline" else returns_to_go
    np.testing.assert_allclose(make(rewards_BL, arrays["mask"]),
                               PEER[f"{peer}/1.0/1.0"]["advantages"], rtol=1e-5, atol=1e-6)


def test_groups_are_those_of_the_trainers_of_trl(arrays):
    """The golden advantages were compared with what TRL's trainers gave to these scores."""
    for baseline, key in (("grpo", "advantages"), ("rloo", "rloo_advantages")):
        found = group(arrays["scores"], rl.group_ids(2, 3), baseline)
        np.testing.assert_allclose(found.advantages_B, arrays[key], rtol=1e-5)
        assert found.usable_G.all() and found.usable_B.all()


@pytest.mark.parametrize("truncation", rl.TRUNCATIONS)
def test_gae_is_the_sum_of_its_definition(truncation):
    """In float64; masked tokens are passed over, before, within and behind an answer."""
    rng = np.random.default_rng(1)
    mask_BL, gamma, lam = random_mask(rng), 0.97, 0.9
    rewards_BL, values_BL = rng.normal(size=(2, 6, 9))
    after_B, is_cut_B = rng.normal(size=6), np.arange(6) % 2 == 0
    expected_BL = np.zeros((6, 9))
    for b in range(6):
        places = np.flatnonzero(mask_BL[b])
        end = after_B[b] if truncation == "bootstrap" and is_cut_B[b] else 0.0
        values = np.append(values_BL[b, places], end)
        deltas = rewards_BL[b, places] + gamma * values[1:] - values[:-1]
        for i, place in enumerate(places):
            expected_BL[b, place] = sum((gamma * lam)**n * delta
                                        for n, delta in enumerate(deltas[i:]))
    expected_returns_BL = (expected_BL + values_BL) * mask_BL
    rewards_BL[mask_BL == 0] = values_BL[mask_BL == 0] = np.nan
    after_B[~is_cut_B] = np.nan
    found, returns = gae(rewards_BL, values_BL, mask_BL, gamma=gamma, lam=lam,
                            truncation=truncation, is_cut_B=is_cut_B, after_B=after_B)
    np.testing.assert_allclose(found, expected_BL, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected_returns_BL, rtol=1e-5, atol=1e-6)


def test_a_bootstrap_needs_its_values():
    row = np.ones((1, 2), np.float32)
    for options, message in ((dict(truncation="bootstrap", is_cut_B=np.array([True])), "after_B"),
                             (dict(truncation="zero"), "choose one of end, bootstrap")):
        with pytest.raises(UserError, match=message):
            gae(row, row, row, gamma=1.0, lam=1.0, **options)


def test_whitening_is_over_all_that_is_not_masked():
    rng = np.random.default_rng(2)
    mask_BL, values_BL = random_mask(rng), rng.normal(3.0, 5.0, (6, 9))
    real = values_BL[mask_BL > 0]
    expected = (real - real.mean()) / np.sqrt(real.var() + 1e-8)
    values_BL[mask_BL == 0] = np.inf
    found_BL = np.asarray(whiten(values_BL, mask_BL))
    np.testing.assert_allclose(found_BL[mask_BL > 0], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(found_BL[mask_BL == 0])
    kept_BL = np.asarray(whiten(values_BL, mask_BL, shift_mean=False))
    np.testing.assert_allclose(kept_BL[mask_BL > 0], expected + real.mean(), rtol=1e-5, atol=1e-5)
    assert not np.any(kept_BL[mask_BL == 0])
    one = np.eye(3, dtype=np.float32)[:1]
    np.testing.assert_array_equal(whiten(one * 7, one), 0 * one)
    np.testing.assert_array_equal(whiten(one * 7, 0 * one), 0 * one)


@pytest.mark.parametrize("baseline", rl.GROUP_BASELINES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_groups_may_differ_in_size_and_lie_in_any_order(baseline, ddof):
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), [2, 5, 3, 4])
    scores = rng.normal(size=14)
    expected = np.empty(14)
    for g in range(4):
        of = scores[groups == g]
        others = (of.sum() - of) / (len(of) - 1)
        expected[groups == g] = {
            "grpo": (of - of.mean()) / (of.std(ddof=ddof) + 1e-4), "dr_grpo": of - of.mean(),
            "rloo": of - others}[baseline]
    order = rng.permutation(14)
    # Fills behind, with whatever score, that belong to a group of others.
    filled = np.append(scores[order], [np.nan, 5.0]), np.append(groups[order], [0, 3])
    found = group(*filled, baseline, mask=[1.0] * 14 + [0.0] * 2, ddof=ddof)
    np.testing.assert_allclose(found.advantages_B[:14], expected[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.advantages_B[14:], 0)
    assert found.usable_B.tolist() == [True] * 14 + [False] * 2


@pytest.mark.parametrize("baseline", rl.GROUP_BASELINES)
def test_groups_that_teach_nothing_are_reported_and_give_no_nan(baseline):
    scores = [1.0, 2.0, 0.1, 0.1, 0.1, 4.0, 1.0, np.nan, 1.0, np.inf, -np.inf, -np.inf]
    groups = [0, 0, 1, 1, 1, 2, 3, 3, 5, 5, 6, 6]
    found = group(scores, groups, baseline)
    assert [rl.STATUSES[status] for status in found.status_G] == [
        "usable", "all_equal", "single", "not_finite", "empty", "not_finite", "not_finite"]
    assert found.usable_G.tolist() == [True] + [False] * 6
    assert found.usable_B.tolist() == [True] * 2 + [False] * 10
    assert np.all(np.isfinite(found.advantages_B)) and not np.any(found.advantages_B[2:])
    assert rl.count_statuses(found.status_G) == {
        "usable": 1, "empty": 1, "single": 1, "all_equal": 1, "not_finite": 3}


def test_a_batch_in_which_no_group_can_be_usable_is_an_error():
    with pytest.raises(UserError, match=r"none of 2 is usable \(1 single, 1 not_finite\)"):
        rl.count_statuses(group([1.0, np.nan, 2.0], [0, 1, 1], "rloo").status_G)
    assert rl.count_statuses(group([1.0, 1.0], [0, 0], "rloo").status_G)["all_equal"] == 1


def test_groups_that_are_usable_are_picked_first():
    scores = jnp.array([1, 1, 0, 1, 2, 2, 0, 3, 5, 4.0])
    status_G = np.asarray(rl.group_statuses(scores, jnp.ones(10), 2))
    assert status_G.tolist() == [3, 0, 3, 0, 0]
    assert [rl.pick_groups(status_G, kept).tolist() for kept in (1, 2, 4, 5)] == [
        [1], [1, 3], [0, 1, 3, 4], [0, 1, 2, 3, 4]]
    with pytest.raises(UserError, match="choose one of grpo, dr_grpo, rloo"):
        group([1.0, 2.0], [0, 0], "ppo")


@pytest.mark.parametrize("num_kept", [1, 2])
def test_the_best_of_each_group_are_kept(num_kept):
    rng = np.random.default_rng(4)
    groups = rng.permutation(np.repeat([0, 1, 3, 4, 5], [4, 3, 5, 1, 2]))
    scores = rng.integers(-4, 0, 15).astype(np.float32)    # with ties
    mask = np.ones(15, np.float32)
    mask[rng.choice(np.flatnonzero(groups == 3), 2, replace=False)] = 0
    scores[mask == 0] = np.nan
    scores[np.flatnonzero(groups == 5)[0]] = np.nan
    found = select_best(scores, groups, mask, num_groups=6, num_kept=num_kept)
    expected, best = np.zeros(15, bool), []
    for g in range(6):
        members = [i for i in range(15) if groups[i] == g and mask[i]]
        members = [] if any(np.isnan(scores[i]) for i in members) else members
        members.sort(key=lambda i: -scores[i])             # the first of equal ones stays first
        expected[members[:num_kept]] = True
        best.append(members[0] if members else -1)
    assert found.kept_B.tolist() == expected.tolist()
    assert found.best_G.tolist() == best
    assert found.usable_G.tolist() == [True, True, False, True, True, False]
    assert [rl.STATUSES[status] for status in found.status_G][2:] == [
        "empty", "usable", "single", "not_finite"]


@pytest.mark.parametrize("estimator", rl.KL_ESTIMATORS)
def test_kl_estimators_are_those_of_openrlhf(arrays, estimator):
    with np.load(GOLDEN / "losses.npz") as file:
        mask_BL = file["mask"]
    found = estimate_kl(arrays["new"], arrays["reference"], mask_BL, estimator)
    np.testing.assert_allclose(found, PEER[f"kl/{estimator}"], rtol=1e-5, atol=2e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    pi, ref = np.float64([0.5, 0.3, 0.2]), np.float64([0.2, 0.2, 0.6])
    kl = np.sum(pi * np.log(pi / ref))
    row = np.log([pi]), np.log([ref]), np.ones((1, 3))
    means = {name: float(np.sum(pi * np.asarray(estimate_kl(*row, name))[0]))
             for name in rl.KL_ESTIMATORS}
    assert means["k1"] == pytest.approx(kl, rel=1e-6)
    assert means["k3"] == pytest.approx(kl, rel=1e-6)
    assert means["k2"] == pytest.approx(np.sum(pi * np.log(pi / ref)**2) / 2, rel=1e-6)
    with pytest.raises(UserError, match="choose one of k1, k2, k3"):
        rl.estimate_kl(*row, "k4")


@pytest.mark.parametrize("estimator", rl.KL_ESTIMATORS)
def test_no_estimator_overflows(estimator):
    """Neither the value nor the gradient; what is masked has a gradient of 0."""
    reference, mask = np.float32([[0.0, -2.0, np.nan]]), np.float32([[1, 1, 0]])
    value, slope = jax.device_get(jax.jit(jax.value_and_grad(lambda logps: jnp.sum(rl.estimate_kl(
        logps, reference, mask, estimator))))(np.float32([[-500.0, -1.0, np.inf]])))
    assert np.isfinite(value) and np.all(np.isfinite(slope)) and slope[0, 2] == 0


def test_the_kl_coefficient_follows_its_target():
    control = rl.KLControl(target_nats=6.0)
    expected = {6.0: 0.15, 12.0: 0.15 * (1 + 0.2 * 64 / 10_000), math.inf: 0.15 * 1.00128,
                0.0: 0.15 * (1 - 0.2 * 64 / 10_000), 6.6: 0.15 * (1 + 0.1 * 64 / 10_000),
                math.nan: 0.15}
    for kl, coefficient in expected.items():
        found = rl.update_kl_coef(0.15, kl, 64, control)
        assert float(found) == pytest.approx(coefficient, rel=1e-6), kl
        assert found.dtype == jnp.float32
    assert rl.update_kl_coef(0.15, 50.0, 64, rl.KLControl()) == np.float32(0.15)


def run_all(x):
    """All advantages of a batch, as by [B, L] arrays, and those of whole answers."""
    scores = rl.group_advantages(x["scores"], x["group"], x["mask_B"], num_groups=3,
                                 baseline="grpo")
    rewards_BL = rl.token_rewards(x["scores"], x["logps"], x["reference"], x["mask"], KL_COEF)
    found, returns = rl.gae(rewards_BL, x["values"], x["mask"], gamma=0.99, lam=0.95)
    best = rl.select_best(x["scores"], x["group"], x["mask_B"], num_groups=3)
    return (dict(rewards=rewards_BL, gae=rl.whiten(found, x["mask"]), returns=returns,
                 plus_plus=rl.reinforce_plus_plus(rewards_BL, x["mask"]),
                 grpo=rl.spread(scores.advantages_B, x["mask"])),
            dict(advantages=scores.advantages_B, status=scores.status_G, best=best.best_G))


def test_neither_padding_nor_devices_nor_what_is_masked_matter():
    rng = np.random.default_rng(5)
    x = dict(zip(("logps", "reference", "values"), rng.normal(-1, 1, (3, 8, 9)).astype("f4")))
    x |= dict(mask=random_mask(rng, (8, 9)), scores=rng.normal(size=8).astype("f4"),
              group=np.array([0, 1, 2, 0, 1, 2, 2, 0]), mask_B=np.ones(8, np.float32))
    run = jax.jit(run_all)
    expected, expected_B = jax.device_get(run(x))

    def widen(array, before, after):
        value = 0 if array is x["mask"] else np.nan
        return np.pad(array, ((0, 0), (before, after)), constant_values=value)

    for before, after in ((0, 5), (5, 0), (3, 2)):
        wide = {name: widen(array, before, after) if array.ndim == 2 else array
                for name, array in x.items()}
        found, found_B = run(wide)
        for name, array in found.items():
            np.testing.assert_allclose(array[:, before:before + 9], expected[name], rtol=1e-5,
                                       atol=1e-6, err_msg=name)
            outside = np.delete(array, np.s_[before:before + 9], axis=1)
            assert not np.any(outside), name
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found_B, expected_B)
    mesh = make_mesh({"data": 8, "fsdp": 1}, jax.devices())
    with jax.set_mesh(mesh):
        spread = jax.device_get(run(place_batch(x, mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
                 spread, (expected, expected_B))
