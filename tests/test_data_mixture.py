"""Mixtures: plans in whole tokens, rows that follow them exactly, weights that are learned."""

import itertools
import json
import math
from collections import Counter

import grain
import numpy as np
import pytest

from core.errors import UserError
from data.tokens.checked import write_sums
from data.tokens.learned_mixture import (
    RIDGES,
    best_mixture,
    doremi_average,
    doremi_update,
    fit_losses,
    sample_mixtures,
)
from data.tokens.mixture import Interleave, mixture, plan_mixture

L = 16
SIZES = {"books": 100, "code": 1_000, "pages": 10_000}


def test_weights_by_hand_become_whole_tokens():
    plan = plan_mixture(SIZES, total_tokens=1_000, weights={"pages": 1, "books": 2})
    assert plan.tokens == {"books": 667, "code": 0, "pages": 333}
    assert plan.weights == {"books": 2 / 3, "code": 0.0, "pages": 1 / 3}, "of any length"
    assert plan.epochs == {"books": 6.67, "code": 0.0, "pages": 0.0333}
    assert plan.warnings == ("books is seen 6.67 times", "code is left out: its share is 0")


@pytest.mark.parametrize(("temperature", "expected"), [
    (None, {"books": 9, "code": 90, "pages": 901}),
    (1.0, {"books": 9, "code": 90, "pages": 901}),
    (0.5, {"books": 71, "code": 223, "pages": 706}),
    (0.0, {"books": 334, "code": 333, "pages": 333})])
def test_temperature_moves_from_natural_to_uniform(temperature, expected):
    plan = plan_mixture(SIZES, total_tokens=1_000, temperature=temperature)
    assert plan.tokens == expected


def _unimax(sizes, total, max_epochs):
    """Algorithm 1 of arXiv:2304.09151: from the smallest on, an equal part or the cap."""
    given, left = {}, total
    for rank, name in enumerate(sorted(sizes, key=sizes.get)):
        given[name] = min(left / (len(sizes) - rank), max_epochs * sizes[name])
        left -= given[name]
    return given


@pytest.mark.parametrize("max_epochs", [1, 2, 4.5])
@pytest.mark.parametrize("total", [300, 3_000, 9_000])
def test_a_capped_uniform_mixture_is_unimax(total, max_epochs):
    plan = plan_mixture(SIZES, total_tokens=total, temperature=0.0, max_epochs=max_epochs)
    for name, tokens in _unimax(SIZES, total, max_epochs).items():
        assert abs(plan.tokens[name] - tokens) < 1


def test_tokens_beyond_a_cap_are_distributed_by_share():
    sizes = {"books": 100, "code": 10_000, "pages": 10_000}
    plan = plan_mixture(sizes, total_tokens=1_400, max_epochs={"books": 2},
                        weights={"books": 2, "code": 1, "pages": 1}, upweight={"code": 2.0})
    assert plan.tokens == {"books": 200, "code": 800, "pages": 400}
    assert plan.epochs["books"] == 2
    assert plan.warnings == (
        "books gives 14.29% instead of 40.00%: it is seen 2 times, which is its cap",)


def test_an_earlier_phase_counts_towards_the_cap():
    stable = plan_mixture(SIZES, total_tokens=9_000, temperature=0.5, max_epochs=4)
    anneal = plan_mixture(SIZES, total_tokens=2_000, weights={"books": 1, "code": 1, "pages": 0.1},
                          max_epochs=4, used_tokens=stable.tokens)
    for name, size in SIZES.items():
        assert anneal.epochs[name] == (stable.tokens[name] + anneal.tokens[name]) / size
        assert anneal.epochs[name] <= 4
    assert stable.tokens["books"] + anneal.tokens["books"] == 400


def test_plans_are_exact_for_any_input():
    key = np.random.default_rng(0)
    for _ in range(300):
        names = [f"d{i}" for i in range(key.integers(1, 9))]
        sizes = {name: int(key.integers(0, 10 ** int(key.integers(1, 13)))) for name in names}
        cap = float(key.choice([0.5, 1, 1.7, 4, 16]))
        room = sum(math.floor(cap * size) for size in sizes.values())
        if not room:
            continue
        total = int(key.integers(1, room + 1)) if key.random() < 0.8 else room
        plan = plan_mixture(sizes, total_tokens=total, temperature=float(key.random()),
                            max_epochs=cap)
        assert sum(plan.tokens.values()) == total
        assert all(0 <= plan.tokens[name] <= cap * sizes[name] for name in names)
        assert math.isclose(sum(plan.weights.values()), 1)


@pytest.mark.parametrize(("given", "message"), [
    (dict(weights={"poems": 1}), r"mixture\.poems: the domains are books, code, pages"),
    (dict(upweight={"poems": 1}), r"upweight\.poems"),
    (dict(max_epochs={"poems": 1}), r"max_epochs\.poems"),
    (dict(weights={"code": -1}), r"mixture\.code=-1: must be a number that is not negative"),
    (dict(weights={"code": math.nan}), r"mixture\.code=nan"),
    (dict(weights={"code": math.inf}), r"mixture\.code=inf"),
    (dict(weights={"code": 0}), "gives no domain a positive share"),
    (dict(weights={}), "gives no domain a positive share"),
    (dict(temperature=-1.0), "temperature=-1.0"),
    (dict(temperature=1.0, weights={"code": 1}), "cannot be combined with a mixture"),
    (dict(max_epochs=0.05), "total_tokens=1000: the domains give 555 within max_epochs"),
    (dict(weights={"books": 1}, max_epochs=4), "the domains give 400 within"),
    (dict(total_tokens=0), "total_tokens=0: must be positive")])
def test_invalid_plans_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        plan_mixture(SIZES, **dict(total_tokens=1_000) | given)


@pytest.fixture
def folder(tmp_path):
    """Three domains of 7, 31 and 120 rows; a row's first token identifies its domain and row."""
    domains = {}
    for place, (name, num_rows) in enumerate({"books": 7, "code": 31, "pages": 120}.items()):
        tokens = np.arange(num_rows * L + 1) + 10_000 * place
        (tmp_path / f"{name}.tokens").write_bytes(tokens.astype("<u2").tobytes())
        (tmp_path / f"{name}.ends").write_bytes(np.array([len(tokens)], "<i8").tobytes())
        for suffix in ("tokens", "ends"):
            write_sums(tmp_path / f"{name}.{suffix}")
        domains[name] = {"tokens": len(tokens)}
    (tmp_path / "tokens.json").write_text(json.dumps({"dtype": "uint16", "domains": domains}))
    return tmp_path


@pytest.mark.parametrize("weights", [
    {"pages": 1.0}, {"books": 0.1, "code": 0.3, "pages": 0.6},
    {"books": 1.0, "code": 1.009, "pages": 1.001}, {"books": 0.007, "code": 0.213, "pages": 0.78}])
@pytest.mark.parametrize("num_rows", [1, 100, 777])
def test_every_row_is_drawn_floor_or_ceil_of_the_epochs(folder, weights, num_rows):
    rows = mixture(folder, weights, L, num_rows=num_rows, seed=3)
    drawn = [int(rows[i].tokens_BL[0]) for i in range(num_rows)]
    sizes = {"books": 7, "code": 31, "pages": 120}
    for place, (name, size) in enumerate(sizes.items()):
        times = Counter(token for token in drawn if token // 10_000 == place)
        share = weights.get(name, 0) / sum(weights.values()) * num_rows
        assert abs(times.total() - share) < 2 if share else not times
        counts = [times[10_000 * place + L * i] for i in range(size)]
        assert sum(counts) == times.total()
        assert max(counts) == math.ceil(times.total() / size)
        assert min(counts) == times.total() // size


def test_rows_follow_a_plan_to_the_last(folder):
    """Grain's own `mix` would draw a row of the first domain an eleventh time here."""
    sizes = {"books": 7, "code": 31, "pages": 120}
    plan = plan_mixture(sizes, total_tokens=1_580, temperature=0.99, max_epochs=10.0)
    assert plan.epochs == {"books": 10, "code": 10, "pages": 10}
    rows = mixture(folder, plan.weights, L, num_rows=1_580, seed=3)
    drawn = Counter(int(rows[i].tokens_BL[0]) // 10_000 for i in range(1_580))
    assert dict(zip(sizes, (drawn[place] for place in range(3)))) == plan.tokens


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.5], [0.25, 0.75], [1, 2, 4], [8, 1, 1]])
def test_interleaving_agrees_with_grain_where_grain_is_exact(weights):
    parts = [grain.MapDataset.source([(i, k) for k in range(500)]) for i in range(len(weights))]
    theirs, ours = grain.MapDataset.mix(parts, weights), Interleave(weights, 400)
    assert [theirs[i] for i in range(400)] == [ours[i] for i in range(400)]


def test_interleaving_keeps_the_shares_in_every_prefix():
    weights = np.array([0.0003, 0.2, 0.3, 0.1234, 0.3763])
    order = Interleave(weights.tolist(), 10_000)
    seen, next_row = np.zeros(5), [itertools.count() for _ in weights]
    for i in range(10_000):
        domain, row = order[i]
        assert row == next(next_row[domain])
        seen[domain] += 1
        assert (np.abs(seen - weights * (i + 1)) < 3).all()
    assert seen.tolist() == [3, 2000, 3000, 1234, 3763]


def test_invalid_mixtures_are_refused(folder):
    with pytest.raises(UserError, match="gives no domain a positive weight"):
        mixture(folder, {"code": 0.0}, L, num_rows=1, seed=0)
    with pytest.raises(UserError, match=r"mixture\.code=-0\.5: must be a number"):
        mixture(folder, {"code": -0.5, "pages": 1.0}, L, num_rows=1, seed=0)
    with pytest.raises(UserError, match=r"packing='tight'.*concatenate, best_fit"):
        mixture(folder, {"code": 1.0}, L, num_rows=1, seed=0, packing="tight")


def test_doremi_update_by_hand():
    before = np.log([0.5, 0.25, 0.25])
    after = np.exp(doremi_update(before, np.array([0.1, -5.0, np.log(4)]), smoothing=0.1))
    raised = np.array([0.5 * np.exp(0.1), 0.25, 1.0])
    assert np.allclose(after, 0.9 * raised / raised.sum() + 0.1 / 3)
    average = doremi_average(np.stack([before, np.log(after)]))
    assert np.allclose(average, (np.exp(before) + after) / 2)


def test_doremi_finds_the_domain_that_can_still_be_learned():
    """Excess loss falls as a domain is trained on; one is learned at once, one is pure noise."""
    seen, log_weights, history = np.zeros(3), np.log(np.ones(3) / 3), []
    for _ in range(300):
        excess = np.array([2.0 / (1 + seen[0]), 2.0 / (1 + seen[1] / 50), 0.0])
        log_weights = doremi_update(log_weights, excess)
        history.append(log_weights)
        seen += np.exp(log_weights)
    weights = doremi_average(np.array(history))
    assert weights[1] > 0.8 and weights.min() > 1e-4 and np.isclose(weights.sum(), 1)


def test_sampled_mixtures_keep_their_bounds():
    prior = np.array([70.0, 20.0, 9.0, 1.0])
    mixtures = sample_mixtures(prior, 500, seed=1, max_ratio=4.0)
    assert mixtures.shape == (500, 4) and np.allclose(mixtures.sum(axis=1), 1)
    assert (mixtures <= np.minimum(prior / 100 * 4, 1) + 3e-4).all()
    assert mixtures[mixtures > 0].min() > 1.9e-4
    flat = np.sqrt(prior) / np.sqrt(prior).sum()
    free = sample_mixtures(prior, 4_000, seed=1, max_ratio=math.inf)
    assert np.abs(free.mean(axis=0) - flat).max() < 0.02, "the centre is the flattened prior"
    assert (mixtures == sample_mixtures(prior, 500, seed=1, max_ratio=4.0)).all()
    with pytest.raises(ValueError, match="max_ratio"):
        sample_mixtures(prior, 10, seed=0, max_ratio=0.5)


def test_regmix_finds_the_best_mixture_of_a_known_law():
    """Losses of a power law with diminishing returns, and noise as of proxy runs."""
    prior, gain = np.array([0.6, 0.2, 0.15, 0.05]), np.array([0.3, 1.0, 0.05, 0.6])

    def law(mixtures):
        return 2.0 + (gain * (mixtures + 0.02) ** -0.3).sum(axis=-1)

    proxies = sample_mixtures(prior, 256, seed=0)
    noise = np.random.default_rng(1).normal(0, 0.01, len(proxies))
    model = fit_losses(proxies, law(proxies) + noise)
    assert model.rank_correlation > 0.98
    learned = best_mixture(model, prior, seed=2, num_simulated=20_000)
    everything = sample_mixtures(prior, 20_000, seed=3)
    best, natural = law(everything).min(), law(prior)
    assert np.isclose(learned.sum(), 1)
    assert law(learned) - best < 0.1 * (natural - best), "nine tenths of what can be gained"
    assert learned[1] > prior[1] and learned[2] < prior[2]


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out_equals_refitting(seed):
    """The closed form against models fitted without the run."""
    proxies = sample_mixtures(np.ones(3), 7, seed=seed)
    losses = 2 + proxies @ [1.0, 0.5, 2.0] + np.random.default_rng(seed).normal(0, 0.3, 7)
    model = fit_losses(proxies, losses)
    features, logs = np.concatenate([proxies, np.sqrt(proxies)], axis=1), np.log(losses)

    def predict_left_out(ridge):
        for i in range(7):
            rest = np.arange(7) != i
            x, y = features[rest], logs[rest]
            centered = x - x.mean(axis=0)
            slope = np.linalg.solve(centered.T @ centered + ridge * np.eye(6),
                                    centered.T @ (y - y.mean()))
            yield y.mean() + (features[i] - x.mean(axis=0)) @ slope

    predicted = {ridge: np.array([*predict_left_out(ridge)]) for ridge in RIDGES[8:]}
    errors = {ridge: ((values - logs) ** 2).mean() for ridge, values in predicted.items()}
    assert model.ridge == min(errors, key=errors.get)
    ranks = [np.argsort(np.argsort(values)) for values in (logs, predicted[model.ridge])]
    assert np.isclose(model.rank_correlation, np.corrcoef(*ranks)[0, 1])
