"""Scaling laws: published fits and tables, exact recovery, and held-out runs."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scaling_runs import KAPLANS, ROUNDED, UNROUNDED, grid, losses, make, valleys
from scipy.optimize import check_grad

from core.errors import UserError
from eval.statistics import Z_95
from train.scaling.budgets import (
    find_valleys,
    fit_envelope,
    fit_power_law,
    fit_valleys,
    frontier,
    sample_envelope,
    sample_vertices,
)
from train.scaling.data_limited import DataLimited, fit_repeats
from train.scaling.downstream import LINKS, fit_accuracy
from train.scaling.forms import COMPUTE, HOFFMANN, KAPLAN, OVERTRAINING, optimal_sizes
from train.scaling.noise_scale import (
    estimate_noise_scale,
    fit_critical_batch,
    relative_examples,
    relative_steps,
)
from train.scaling.report import split_runs, spread
from train.scaling.runs import Curve
from train.scaling.surface import fit_law, fit_projected
from train.scaling.table import read_table
from train.scaling.written import write_sentence

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
CHINCHILLA = DATASETS / "scaling_chinchilla" / "svg_extracted_data.csv"
OVERTRAINED = DATASETS / "scaling_overtraining" / "runs.csv.gz"
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")


def chinchilla():
    runs, _ = read_table(CHINCHILLA, "total", columns={"params": "Model Size",
                                                       "flops": "Training FLOP"}, only={})
    return runs


# --- the forms


@pytest.mark.parametrize("form, theta", [
    (HOFFMANN, UNROUNDED), (OVERTRAINING, UNROUNDED[:4]), (KAPLAN, KAPLANS),
    (COMPUTE, np.array([60.0, 0.05]))], ids=lambda value: getattr(value, "name", ""))
def test_slopes_are_those_of_the_form(form, theta):
    x = np.array([[18.0, 21.0], [20.0, 26.0]])[:, :len(form.inputs)]
    for row in range(2):
        assert check_grad(lambda t, row=row: form.evaluate(t, x)[0][row],
                          lambda t, row=row: form.evaluate(t, x)[1][row], theta) < 1e-5


@pytest.mark.parametrize("form, theta", [
    (HOFFMANN, UNROUNDED), (OVERTRAINING, UNROUNDED[:4]), (KAPLAN, KAPLANS)],
    ids=lambda value: getattr(value, "name", ""))
def test_a_shift_of_the_inputs_is_one_of_the_parameters(form, theta):
    x, centre = np.array([[18.0, 21.0], [20.0, 26.0]]), np.array([19.0, 23.0])
    shifted = form.shift(theta, centre)
    assert form.evaluate(shifted, x)[0] == pytest.approx(form.evaluate(theta, x - centre)[0])


def test_kaplans_constants_give_his_limits():
    """Equation 1.5 of arXiv 2001.08361: without a limit of data it is (N_c / N)^alpha_N."""
    assert losses(KAPLAN, KAPLANS, np.array([1e9]), np.array([1e30])) == pytest.approx(
        (6.4e13 / 1e9)**0.076)
    assert losses(KAPLAN, KAPLANS, np.array([1e30]), np.array([1e9])) == pytest.approx(
        (1.8e13 / 1e9)**0.103)


def test_published_constants_give_the_published_allocations():
    """arXiv 2203.15556: 40B parameters for Gopher's 5.76e23 FLOPs by approach 3. Rounding the
    constants, as the text does, alone makes that 32B."""
    params, tokens = optimal_sizes(HOFFMANN, UNROUNDED, 5.76e23)
    assert (params / 1e9, tokens / 1e12) == (pytest.approx(40.4, abs=0.05),
                                             pytest.approx(2.38, abs=0.005))
    assert tokens / params == pytest.approx(58.9, abs=0.05)
    params, tokens = optimal_sizes(HOFFMANN, ROUNDED, 5.76e23)
    assert (params / 1e9, tokens / 1e12) == (pytest.approx(32.2, abs=0.05),
                                             pytest.approx(2.98, abs=0.005))
    sizes = np.geomspace(0.8, 1.25, 1001) * params
    around = losses(HOFFMANN, ROUNDED, sizes, 5.76e23 / 6 / sizes)
    assert np.argmin(around) == 500, "the allocation is the minimum of the surface"


@pytest.mark.parametrize("tokens, exponent", [
    ((8.0e9, 20.2e9, 205.1e9, 1.5e12, 3.7e12, 21.2e12), 0.50),
    ((7.7e9, 20.0e9, 219.5e9, 1.7e12, 4.3e12, 26.5e12), 0.49)])
def test_published_tables_have_the_published_exponents(tokens, exponent):
    """Best tokens for 400M to 1T parameters by approaches 1 and 2, arXiv 2203.15556."""
    params = np.array([400e6, 1e9, 10e9, 67e9, 175e9, 1e12])
    law = fit_power_law(6 * params * np.array(tokens), params)
    assert law.exponent == pytest.approx(exponent, abs=0.005)


# --- approach 3


@needs_files
def test_hoffmanns_objective_gives_the_replication():
    """Besiroglu et al., arXiv 2404.10102: the grid search of their notebook, and the standard
    errors of its 4000 bootstrap samples; the constants in their abstract are another estimator's.
    """
    runs = chinchilla()
    kept = runs.choose(runs.loss_R < np.sort(runs.loss_R)[-5])
    fit = fit_law(HOFFMANN, kept)
    assert len(kept.names) == 240 and fit.objective == pytest.approx(0.00101827403, rel=1e-6)
    constants = HOFFMANN.constants(fit.theta_P)
    published = {"A": (477.84, 124.5), "B": (2143.86, 1293.3), "E": (1.81724, 0.02566),
                 "alpha": (0.347313, 0.01540), "beta": (0.367183, 0.02060)}
    samples = [HOFFMANN.constants(theta) for theta in fit.samples_SP]
    for name, (value, stderr) in published.items():
        assert constants[name] == pytest.approx(value, rel=5e-4), name
        assert np.std([sample[name] for sample in samples]) == pytest.approx(stderr, rel=0.2), name
    assert fit.num_agreeing > fit.num_starts / 2
    assert fit_law(HOFFMANN, runs, num_samples=0).theta_P[4] == pytest.approx(0.45, abs=0.01), \
        "the five highest losses change the exponent of the data"
    assert fit_projected(kept)["beta"] > constants["beta"] + 0.03, "least squares are not robust"


@pytest.mark.parametrize("form, theta", [
    (HOFFMANN, UNROUNDED), (OVERTRAINING, UNROUNDED[:4]), (KAPLAN, KAPLANS)],
    ids=lambda value: getattr(value, "name", ""))
def test_noise_free_laws_are_recovered(form, theta):
    fit = fit_law(form, grid(form, theta), num_samples=0)
    assert fit.theta_P == pytest.approx(theta, rel=1e-6) and fit.objective < 1e-20
    if form is HOFFMANN:
        assert fit_projected(grid()) == pytest.approx(HOFFMANN.constants(theta), rel=1e-6)


def test_the_unit_of_the_loss_changes_nothing_but_factors():
    runs = grid(noise=0.01)
    one, other = (fit_law(HOFFMANN, dataclasses.replace(runs, loss_R=scale * runs.loss_R),
                          num_samples=0) for scale in (1, 1e4))
    assert other.theta_P[3:] == pytest.approx(one.theta_P[3:], rel=1e-5)
    assert other.theta_P[:3] == pytest.approx(one.theta_P[:3] + math.log(1e4), rel=1e-5)


def test_one_run_that_went_wrong_does_not_move_the_law():
    runs = grid(noise=1e-3)
    loss = runs.loss_R.copy()
    loss[7] *= 1.5
    moved = fit_law(HOFFMANN, dataclasses.replace(runs, loss_R=loss), num_samples=0)
    assert moved.theta_P == pytest.approx(fit_law(HOFFMANN, runs, num_samples=0).theta_P, rel=0.02)


def test_intervals_cover_the_law():
    """Of eight draws of noise, most 95 % intervals of a forecast hold the true loss."""
    held, theta, runs = [], UNROUNDED[:4], grid(OVERTRAINING, UNROUNDED[:4])
    true, = losses(OVERTRAINING, theta, np.array([1e10]), np.array([1e12]))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        noisy = dataclasses.replace(runs, loss_R=runs.loss_R * np.exp(rng.normal(0, 0.01, 25)))
        fit = fit_law(OVERTRAINING, noisy, num_samples=30)
        low, high = np.quantile(fit.predict_samples(params=1e10, tokens=1e12), (0.025, 0.975))
        held.append(low < true < high)
    assert sum(held) >= 6


# --- approaches 1 and 2


@pytest.mark.parametrize("width, percent", [(2, -0.32), (4, -1.29), (8, -2.88), (16, -5.06)])
def test_parabolas_are_biased_as_published(width, percent):
    """Tokens at 1e24 FLOPs from parabolas at 1e17 to 1e21, without noise (arXiv 2603.22339)."""
    runs = valleys(ROUNDED, width)
    law = fit_valleys(runs)
    tokens = 1e24 / 6 / law(1e24)
    assert 100 * (tokens / optimal_sizes(HOFFMANN, ROUNDED, 1e24)[1] - 1) == pytest.approx(
        percent, abs=0.02)
    samples = sample_vertices(runs, 20, 0)
    assert len(samples) == 20 and samples.min() < law.exponent < samples.max()


def test_approach_3_is_not():
    """Where parabolas are off by 5 %: within 0.01 %."""
    runs = valleys(UNROUNDED, 16)
    assert fit_law(HOFFMANN, runs, num_samples=0).theta_P == pytest.approx(UNROUNDED, rel=1e-4)
    assert fit_projected(runs) == pytest.approx(HOFFMANN.constants(UNROUNDED), rel=1e-4)


def test_parabolas_are_exact_for_equal_exponents():
    equal = np.array([6.0, 7.0, 0.5, 0.3, 0.3])
    law = fit_valleys(valleys(equal, 16))
    assert law(1e24) == pytest.approx(optimal_sizes(HOFFMANN, equal, 1e24)[0], rel=1e-9)
    assert law.exponent == pytest.approx(0.5)


def test_a_budget_without_a_minimum_says_why():
    runs = valleys(UNROUNDED, 8, num=5, budgets=(1e18, 1e20))
    assert [valley.fault for valley in find_valleys(runs)] == ["", ""]
    few = runs.choose(np.arange(10) != 3)
    assert [valley.fault for valley in find_valleys(few)] == ["too few sizes", ""]
    assert fit_valleys(few) is None
    close = valleys(UNROUNDED, 1.2, num=5, budgets=(1e18,))
    assert find_valleys(close)[0].fault == "sizes too close"
    falling = dataclasses.replace(runs, loss_R=5 - 0.1 * np.log(runs.params_R)
                                  + 0.001 * np.log(runs.params_R)**2)
    assert {valley.fault for valley in find_valleys(falling)} == {"minimum outside"}
    bent = dataclasses.replace(runs, loss_R=50 - 0.01 * np.log(runs.params_R)**2)
    assert {valley.fault for valley in find_valleys(bent)} == {"no minimum"}


def test_the_envelope_of_curves_gives_the_exponent():
    """Approach 1 on curves that follow the surface: N grows as C^(beta / (alpha + beta))."""
    curves = []
    for params in np.geomspace(1e6, 1e11, 60):
        tokens = np.geomspace(params, 1000 * params, 40)
        curves.append(Curve(params, tokens, losses(HOFFMANN, UNROUNDED, params, tokens)))
    law = fit_envelope(curves)
    alpha, beta = UNROUNDED[3:]
    assert law.exponent == pytest.approx(beta / (alpha + beta), abs=0.005)
    assert law(1e20) == pytest.approx(optimal_sizes(HOFFMANN, UNROUNDED, 1e20)[0], rel=0.05)
    assert sample_envelope(curves, 5, 0) == pytest.approx([law.exponent] * 5, abs=0.05)
    assert fit_envelope(curves[:2]) is None


def test_the_frontier_has_no_cheaper_and_better_run():
    runs = make([1e8, 1e8, 1e8, 1e8], [1e9, 2e9, 3e9, 4e9], [3.0, 3.2, 2.9, 2.9])
    assert frontier(runs).tolist() == [True, False, True, False]


# --- held-out runs, downstream accuracy


@needs_files
def test_small_runs_predict_the_two_large_ones():
    """Gadre et al., arXiv 2403.08540: C4 loss of 1.4B parameters at 640 tokens each and of 6.9B at
    20, from runs on RedPajama of less compute; they report errors of 0.71 % and 0.73 %."""
    columns = {"loss": "loss_c4_val", "corpus": "train_data", "run": "name",
               "accuracy": "acc_hellaswag"}
    runs, left_out = read_table(OVERTRAINED, "total", columns=columns, only={"train_data": "rpj"})
    fitted, held = split_runs(runs, 1e21)
    assert held.names == ("rpj-open_lm_1b-32.0", "rpj-open_lm_7b-1.0")
    assert left_out == {"not_chosen": 104 - len(runs.names)}
    fit = fit_law(OVERTRAINING, fitted, num_samples=50)
    sizes = {"params": held.params_R, "tokens": held.tokens_R}
    assert np.abs(fit.predict(**sizes) / held.loss_R - 1).max() < 0.005
    low, high = np.quantile(fit.predict_runs(0, **sizes), (0.025, 0.975), axis=0)
    assert (low < held.loss_R).all() and (held.loss_R < high).all()
    with pytest.raises(UserError, match=r"3 kinds of corpus.*c4_original \(3\d\).*--only"):
        read_table(OVERTRAINED, "total", columns=columns, only={})
    link = fit_accuracy(fitted.loss_R, fitted.accuracy_R, 10042, link="sigmoid", chance=0.25)
    assert link.predict(fit.predict(**sizes)) == pytest.approx(held.accuracy_R, abs=0.03)


@pytest.mark.filterwarnings("error")
def test_a_constant_that_the_runs_do_not_determine_is_called_so():
    assert spread(np.array([1.0, 3.0, np.inf])) == {
        "stderr": pytest.approx(2**0.5), "low": pytest.approx(1.05), "high": pytest.approx(2.95)}
    assert spread(np.array([1.0, 1e200]))["stderr"] is None
    found = {"A": {"value": 897.4, "stderr": None}, "B": {"value": 14.0, "stderr": 2.5}}
    sentence = write_sentence({"law": "hoffmann", "runs": 9, "counted": "all", "heldout": None,
                               "constants": found})
    assert sentence == "fit: hoffmann of 9 runs, all: A 897.4 (not determined), B 14 ± 2.5"


@pytest.mark.parametrize("link, theta", [("sigmoid", (0.6, 4.0, 3.0)), ("power", (1.0, 0.8))])
def test_accuracies_are_recovered_and_weighted_by_their_items(link, theta):
    loss = np.linspace(2.0, 5.0, 30)
    true = (0.25 + theta[0] / (1 + np.exp(-theta[1] * (theta[2] - loss))) if link == "sigmoid"
            else 0.25 + np.exp(theta[0] - theta[1] * loss))
    exact = fit_accuracy(loss, true, 500, link=link, chance=0.25)
    assert exact.theta_P == pytest.approx(theta, rel=1e-4) and exact.dispersion < 1e-6
    rng = np.random.default_rng(0)
    drawn = [fit_accuracy(loss, rng.binomial(500, true) / 500, 500, link=link, chance=0.25)
             for _ in range(20)]
    assert np.mean([fit.dispersion for fit in drawn]) == pytest.approx(1.0, abs=0.2)
    at = np.array([2.5])
    (low,), (high,) = exact.interval(at)
    found = np.std([fit.predict(at)[0] for fit in drawn])
    assert (high - low) / (2 * Z_95) == pytest.approx(found, rel=0.5)


@pytest.mark.parametrize("accuracies, line", [
    ([0.3, 0.4], "2 accuracies: are too few"), ([30, 40, 50, 60, 70], "give numbers from 0 to 1"),
    ([0.1, 0.2, 0.2, 0.2, 0.2], "are never above chance")])
def test_accuracies_that_are_none_are_refused(accuracies, line):
    with pytest.raises(UserError, match=line):
        fit_accuracy(np.linspace(3, 2, len(accuracies)), np.array(accuracies), 100,
                     link=LINKS[0], chance=0.25)


# --- batch size and limited data


def test_the_noise_scale_is_recovered_from_two_batch_sizes():
    """Expectations by the formula, and drawn gradients."""
    small, big = (2.0 + 300.0 / batch for batch in (10, 1000))
    found = estimate_noise_scale(small, big, batch_small=10, batch_big=1000)
    assert dataclasses.astuple(found) == pytest.approx((2.0, 300.0, 150.0))
    rng = np.random.default_rng(0)
    gradient, sizes = np.full(50, 0.2), (8, 128)
    norms = [np.mean(np.sum((gradient + rng.normal(0, 1 / math.sqrt(size), (20000, 50)))**2, 1))
             for size in sizes]
    drawn = estimate_noise_scale(*norms, batch_small=8, batch_big=128)
    assert drawn.noise_scale == pytest.approx(50 / 2.0, rel=0.02)
    with pytest.raises(UserError, match="give no noise scale"):
        estimate_noise_scale(1.0, 2.0, batch_small=10, batch_big=1000)
    with pytest.raises(UserError, match="two sizes in ascending order"):
        estimate_noise_scale(1.0, 2.0, batch_small=10, batch_big=10)


def test_steps_and_examples_trade_off_at_the_critical_batch():
    batches = np.array([10.0, 100.0, 1000.0])
    steps, examples = 500 * relative_steps(batches, 80), 500 * 80 * relative_examples(batches, 80)
    assert examples == pytest.approx(steps * batches)
    assert (steps / 500 - 1) * (examples / 40000 - 1) == pytest.approx(1.0)
    assert fit_critical_batch(steps, examples) == pytest.approx((500, 40000, 80))
    assert relative_steps(80, 80) == relative_examples(80, 80) == 2.0
    with pytest.raises(UserError, match="fewer than two batch sizes"):
        fit_critical_batch(steps[:1], examples[:1])


def test_repeated_data_is_worth_what_was_published():
    """arXiv 2305.16264, appendix A: U_N = 0.051 U_D, and no more than 16.39 times the tokens."""
    law = DataLimited()
    assert law.best_params(1e9) / 1e9 == pytest.approx(0.051, abs=5e-4)
    assert law.effective_tokens(1e9, 4e9) == 1e9, "nothing is repeated"
    assert law.effective_tokens(1e13, 1e9) == pytest.approx(16.387756e9)
    once = law.effective_tokens((1 + law.repeats) * 1e9, 1e9)
    assert once == pytest.approx((1 + law.repeats * (1 - math.exp(-1))) * 1e9)
    assert law.effective_tokens(4e9, 1e9) == pytest.approx(4e9, rel=0.08), "four epochs are fresh"
    assert law.effective_params(1e7, 1e9, 1e9) == 1e7
    fresh = losses(HOFFMANN, np.array(law.theta_P), np.array([1e7]), np.array([2e9]))
    assert law.predict(1e7, 2e9, 5e9) == pytest.approx(fresh)
    assert law.predict(1e7, 2e9, 1e9) > fresh


def test_limited_data_favours_epochs_over_parameters():
    law = DataLimited()
    plenty = optimal_sizes(HOFFMANN, np.array(law.theta_P), 1e21)
    assert law.allocate(1e21, 1e13) == pytest.approx([float(size) for size in plenty])
    params, tokens = law.allocate(1e21, 1e10)
    assert params < plenty[0] and 6 * params * tokens == pytest.approx(1e21)
    assert law.predict(params, tokens, 1e10) < law.predict(*plenty, 1e10)


def test_the_worth_of_repeats_is_fitted_from_runs_that_repeat():
    law = DataLimited(repeats=9.0, excess=4.0)
    params, tokens = (values.ravel() for values in np.meshgrid([1e7, 1e8, 1e9], [1e9, 8e9, 3e10]))
    found = fit_repeats(law.theta_P, params, tokens, np.full(9, 1e9),
                        law.predict(params, tokens, 1e9))
    assert (found.repeats, found.excess) == (pytest.approx(9, rel=1e-3), pytest.approx(4, rel=1e-3))
    with pytest.raises(UserError, match="none repeats its data"):
        fit_repeats(law.theta_P, params, np.full(9, 1e9), np.full(9, 1e9), np.full(9, 3.0))
