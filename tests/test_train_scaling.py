"""Scaling laws: published fits and tables, exact recovery, held-out runs, and unfit runs."""

import csv
import dataclasses
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from eval.statistics import Z_95
from model.config import ModelConfig
from train.reading import Phase, Reading, write_reading
from train.scaling.budgets import (
    find_valleys,
    fit_envelope,
    fit_power_law,
    fit_valleys,
    frontier,
)
from train.scaling.checks import check_runs
from train.scaling.data_limited import DataLimited
from train.scaling.downstream import LINKS, fit_accuracy
from train.scaling.folders import count_by_convention, read_folders
from train.scaling.forms import COMPUTE, FORMS, HOFFMANN, KAPLAN, OVERTRAINING, optimal_sizes
from train.scaling.noise_scale import (
    estimate_noise_scale,
    fit_critical_batch,
    relative_examples,
    relative_steps,
)
from train.scaling.report import describe, fit_all, split_runs
from train.scaling.runs import COUNTS, Curve, Runs
from train.scaling.surface import fit_law, fit_projected
from train.scaling.table import Point, make_runs, read_table

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
CHINCHILLA = DATASETS / "scaling_chinchilla" / "svg_extracted_data.csv"
OVERTRAINED = DATASETS / "scaling_overtraining" / "runs.csv.gz"
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")

# Hoffmann's constants as the paper's source has them, not rounded: ln A, ln B, ln E, alpha, beta.
UNROUNDED = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
ROUNDED = np.array([math.log(406.4), math.log(410.7), math.log(1.69), 0.34, 0.28])
KAPLANS = np.array([math.log(6.4e13), math.log(1.8e13), 0.076, 0.103])


def make(params, tokens, loss, **changes):
    params, tokens, loss = (np.asarray(values, np.float64) for values in (params, tokens, loss))
    return Runs(tuple(f"run{i}" for i in range(len(params))), params, tokens, 6 * params * tokens,
                loss, np.full(len(params), np.nan), "total", **changes)


def losses(form, theta, params, tokens):
    x = np.log(np.stack(np.broadcast_arrays(params, tokens), axis=1))
    return np.exp(form.evaluate(theta, x)[0])


def grid(form=HOFFMANN, theta=UNROUNDED, noise=0.0):
    """Five sizes, each with five numbers of tokens."""
    params, tokens = (values.ravel() for values in np.meshgrid(
        np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    scatter = np.exp(noise * np.random.default_rng(0).normal(size=25))
    return make(params, tokens, losses(form, theta, params, tokens) * scatter)


def valleys(theta, width, num=16, budgets=(1e17, 1e18, 1e19, 1e20, 1e21)):
    """At each budget, tokens from the best over `width` to the best times `width`."""
    flops = np.repeat(budgets, num)
    best = optimal_sizes(HOFFMANN, theta, flops)[1]
    tokens = best * np.tile(np.geomspace(1 / width, width, num), len(budgets))
    params = flops / 6 / tokens
    return make(params, tokens, losses(HOFFMANN, theta, params, tokens))


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
    """Of ten draws of noise, most 95 % intervals of a forecast hold the true loss."""
    held = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        runs = grid()
        noisy = dataclasses.replace(runs, loss_R=runs.loss_R * np.exp(rng.normal(0, 0.01, 25)))
        fit = fit_law(HOFFMANN, noisy, num_samples=40)
        low, high = np.quantile(fit.predict_samples(params=1e10, tokens=1e12), (0.025, 0.975))
        held.append(low < losses(HOFFMANN, UNROUNDED, np.array([1e10]), np.array([1e12]))[0] < high)
    assert sum(held) >= 7


# --- approaches 1 and 2


@pytest.mark.parametrize("width, percent", [(2, -0.32), (4, -1.29), (8, -2.88), (16, -5.06)])
def test_parabolas_are_biased_as_published(width, percent):
    """Tokens at 1e24 FLOPs from parabolas at 1e17 to 1e21, without noise (arXiv 2603.22339)."""
    law = fit_valleys(valleys(UNROUNDED, width))
    tokens = 1e24 / 6 / law(1e24)
    assert 100 * (tokens / optimal_sizes(HOFFMANN, UNROUNDED, 1e24)[1] - 1) == pytest.approx(
        percent, abs=0.02)


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
    fit = fit_law(OVERTRAINING, fitted)
    sizes = {"params": held.params_R, "tokens": held.tokens_R}
    assert np.abs(fit.predict(**sizes) / held.loss_R - 1).max() < 0.005
    low, high = np.quantile(fit.predict_runs(0, **sizes), (0.025, 0.975), axis=0)
    assert (low < held.loss_R).all() and (held.loss_R < high).all()
    with pytest.raises(UserError, match=r"3 kinds of corpus.*c4_original \(3\d\).*--only"):
        read_table(OVERTRAINED, "total", columns=columns, only={})
    link = fit_accuracy(fitted.loss_R, fitted.accuracy_R, 10042, link="sigmoid", chance=0.25)
    assert link.predict(fit.predict(**sizes)) == pytest.approx(held.accuracy_R, abs=0.03)


@pytest.mark.parametrize("link, theta", [("sigmoid", (0.6, 4.0, 3.0)), ("power", (1.0, 0.8))])
def test_accuracies_are_recovered_and_weighted_by_their_items(link, theta):
    loss = np.linspace(2.0, 5.0, 30)
    true = (0.25 + theta[0] / (1 + np.exp(-theta[1] * (theta[2] - loss))) if link == "sigmoid"
            else 0.25 + np.exp(theta[0] - theta[1] * loss))
    exact = fit_accuracy(loss, true, 500, link=link, chance=0.25)
    assert exact.theta_P == pytest.approx(theta, rel=1e-4) and exact.dispersion < 1e-6
    rng = np.random.default_rng(0)
    drawn = [fit_accuracy(loss, rng.binomial(500, true) / 500, 500, link=link, chance=0.25)
             for _ in range(40)]
    assert np.mean([fit.dispersion for fit in drawn]) == pytest.approx(1.0, abs=0.15)
    at = np.array([2.5])
    (low,), (high,) = exact.interval(at)
    found = np.std([fit.predict(at)[0] for fit in drawn])
    assert (high - low) / (2 * Z_95) == pytest.approx(found, rel=0.35)


@pytest.mark.parametrize("accuracies, line", [
    ([0.3, 0.4], "2 accuracies: are too few"), ([30, 40, 50, 60, 70], "give numbers from 0 to 1"),
    ([0.1, 0.2, 0.2, 0.2, 0.2], "are never above chance")])
def test_accuracies_that_are_none_are_refused(accuracies, line):
    with pytest.raises(UserError, match=line):
        fit_accuracy(np.linspace(3, 2, len(accuracies)), np.array(accuracies), 100,
                     link=LINKS[0], chance=0.25)


# --- unfit runs


@pytest.mark.parametrize("change, line", [
    (lambda runs: runs.choose(np.arange(25) < 6), "6 runs: are too few for the 5 parameters"),
    (lambda runs: valleys(UNROUNDED, 8, budgets=(1e18,)), "have one budget only"),
    (lambda runs: dataclasses.replace(runs, loss_R=1 / runs.loss_R), "losses that rise with"),
    (lambda runs: dataclasses.replace(runs, flops_R=runs.flops_R / 8.64e19), "are in PF-days"),
    (lambda runs: dataclasses.replace(runs, tokens_R=4 * runs.tokens_R), "tokens may be bytes"),
    (lambda runs: dataclasses.replace(runs, flops_R=runs.flops_R / 1e12), "is in another unit"),
    (lambda runs: runs.choose(runs.params_R < 5e7), "only 2 different values of params"),
    (lambda runs: dataclasses.replace(runs, tokens_R=20 * runs.params_R, flops_R=120
                                      * runs.params_R**2), "cannot be told apart")])
def test_unfit_runs_are_refused_in_one_line(change, line):
    with pytest.raises(UserError) as error:
        check_runs(change(grid()), HOFFMANN)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_doubtful_runs_are_reported():
    runs = grid()
    loss = runs.loss_R.copy()
    loss[-1] = loss[0]
    warnings = check_runs(dataclasses.replace(runs, loss_R=loss), HOFFMANN)
    assert warnings[0].startswith("1 runs are over 2 % worse") and "run24" in warnings[0]
    assert warnings[1] == "not known whether all runs have the same tokenizer, corpus, eval length"
    known = dataclasses.replace(runs, origin={"tokenizer": "a", "corpus": "b", "eval_length": "9"})
    assert check_runs(known, HOFFMANN) == []
    report = fit_all(HOFFMANN, known, known.choose(np.zeros(25, bool)))
    assert any("no best size by approach 2" in warning for warning in report.warnings)
    assert "1e+30 FLOPs are" in describe(report, [1e30])["warnings"][-1]


# --- tables


def write_csv(path, rows, compress=False):
    with (gzip.open if compress else open)(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path, **given):
    return read_table(path, "total", columns=given.get("columns", {}), only=given.get("only", {}))


def test_a_table_gives_the_third_size_and_the_curves(tmp_path):
    rows = [{"size": 1e8, "tokens": tokens, "loss": loss, "run": name}
            for name, tokens, loss in (("a", 2e9, 3.0), ("a", 1e9, 3.5), ("b", 2e9, 3.1))]
    path = write_csv(tmp_path / "runs.csv.gz", rows, compress=True)
    runs, left_out = read(path, columns={"params": "size"})
    assert runs.names == ("a", "b") and left_out == {}
    assert runs.loss_R.tolist() == [3.0, 3.1] and runs.flops_R.tolist() == [1.2e18, 1.2e18]
    assert runs.curves[0].loss_R.tolist() == [3.5, 3.0] and len(runs.curves) == 1
    only = write_csv(tmp_path / "flops.csv", [{"flops": 6e18, "params": 1e9, "loss": 3}])
    assert read(only)[0].tokens_R.tolist() == [1e9]


@pytest.mark.parametrize("change, given, line", [
    ({"loss": "nan"}, {}, "line 2: loss is 'nan', which is no positive number"),
    ({"loss": ""}, {}, "line 2: has no loss"), ({"tokens": "-5"}, {}, "tokens is '-5'"),
    ({"tokens": ""}, {}, "has no two of params, tokens and flops"),
    ({"tokens": "many"}, {}, "tokens is 'many'"),
    ({"tokenizer": "other"}, {}, "runs of 2 kinds of tokenizer"),
    ({"eval_length": "64"}, {}, "runs of 2 kinds of eval length"),
    ({}, {"columns": {"loss": "bpb"}}, "has no column 'bpb': correct --columns=loss=bpb"),
    ({}, {"columns": {"size": "params"}}, "--columns=size: is no column of runs"),
    ({}, {"only": {"corpus": "x"}}, "holds no row with corpus=x"),
    ({"run": "b"}, {}, "run 'b': has two sizes, or two losses after the same tokens")])
def test_a_table_that_cannot_be_fitted_is_one_line(tmp_path, change, given, line):
    row = {"run": "a", "params": "1e8", "tokens": "2e9", "loss": "3.0", "tokenizer": "mine",
           "eval_length": "128"}
    path = write_csv(tmp_path / "runs.csv", [row | change, row | {"run": "b"}])
    with pytest.raises(UserError) as error:
        read(path, **given)
    assert line in str(error.value) and "\n" not in str(error.value)


# --- folders of this project


MODEL = ModelConfig(V=300, D=8, N=2, H=2, G=1, K=4, F=16)


def write_run(folder, width=8, row_length=16, tokenizer="t", bpb=(3.0, 2.0), finished=True):
    folder.mkdir(parents=True)
    config = dataclasses.replace(MODEL, D=width)
    write_reading(folder, Reading(
        {"tokens": "corpus", "row_length": row_length, "packing": "cut", "seed": 0}, tokenizer,
        dataclasses.asdict(config), 4, 0, 0, {}, (Phase("mixture", 20, {"web": 1.0}),)))
    write_json(folder / "lineage.json", make_lineage(
        stage="pretrain", config={"pretrain": {"row_length": row_length}}, inputs={}, code=""))
    rows = [{"step": 0, "heldout_bpb": 8.0, "evaluated": 1}, {"step": 5, "loss": 2.0}]
    rows += [{"step": 10 * (i + 1), "heldout_bpb": value, "evaluated": 1}
             for i, value in enumerate(bpb)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        write_json(folder / "metrics.json", {})


def test_runs_of_a_sweep_are_read_with_their_curves(tmp_path):
    for width in (8, 16):
        write_run(tmp_path / f"D={width}" / "base", width)
        write_json(tmp_path / f"D={width}" / "result.json", {"status": "finished"})
    write_run(tmp_path / "D=32" / "base.partial", 32, finished=False)
    (tmp_path / "D=64").mkdir()
    write_json(tmp_path / "D=64" / "result.json", {"status": "failed"})
    runs, left_out = read_folders(tmp_path, "total", "heldout_bpb")
    assert runs.names == ("D=16/base", "D=8/base")
    assert left_out == {"not_finished": 1, "failed": 1}
    assert runs.tokens_R.tolist() == [20 * 4 * 16] * 2 and runs.loss_R.tolist() == [2.0, 2.0]
    assert runs.params_R[1] == count_by_convention(MODEL)["total"]
    assert runs.origin == {"tokenizer": "t", "corpus": "corpus", "eval_length": "16"}
    assert runs.curves[0].loss_R.tolist() == [3.0, 2.0], "the model before training is no point"


@pytest.mark.parametrize("other, line", [
    ({"tokenizer": "u"}, "2 kinds of tokenizer"), ({"row_length": 32}, "2 kinds of eval length"),
    ({"bpb": (3.0, None)}, "heldout_bpb is nan"), ({"bpb": ()}, "--metric=heldout_bpb")])
def test_runs_of_a_workdir_must_agree(tmp_path, other, line):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", **other)
    if not other.get("bpb", True):      # an evaluation before training alone
        (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 5, "loss": 2.0}\n')
    with pytest.raises(UserError, match=line):
        read_folders(tmp_path, "total", "heldout_bpb")


@pytest.mark.parametrize("tied", [True, False])
def test_counts_differ_by_table_and_head(tied):
    counts = count_by_convention(dataclasses.replace(MODEL, tied=tied))
    assert counts.keys() == COUNTS.keys()
    assert counts["with_head"] - counts["non_embedding"] == 300 * 8
    assert counts["total"] - counts["with_head"] == (0 if tied else 300 * 8)


def test_runs_of_one_name_need_one_size():
    points = [Point("a", params, tokens, 6 * params * tokens, 3.0, math.nan, {})
              for params, tokens in ((1e8, 1e9), (2e8, 2e9))]
    with pytest.raises(UserError, match="has two sizes"):
        make_runs(points, "total")


# --- the command


def run_command(*arguments, status=0):
    done = subprocess.run([sys.executable, "-m", "train.scaling", *arguments], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if not status else done.stderr


def test_the_command_fits_forecasts_and_names_its_conventions(tmp_path):
    runs = valleys(UNROUNDED, 8, num=6, budgets=(1e18, 1e19, 1e20, 1e21))
    path = write_csv(tmp_path / "runs.csv", [
        {"params": params, "tokens": tokens, "loss": loss} for params, tokens, loss in zip(
            runs.params_R, runs.tokens_R, runs.loss_R)])
    given = (f"--runs={path}", f"--out={tmp_path / 'law'}", "--holdout_flops=5e20")
    result = run_command("fit", *given, "--count=non_embedding", "--budgets=5.76e23")
    assert result["runs"] == 18 and result["heldout"]["runs"] == 6
    assert result["heldout"]["max_relative_error"] < 1e-6
    assert result["counted"] == COUNTS["non_embedding"]
    assert result["forecast"][0]["params"] == pytest.approx(40.4e9, rel=0.002)
    saved = json.loads((tmp_path / "law" / "fit.json").read_text())
    assert saved["count"] == "non_embedding" and len(saved["samples"]) == 200
    rows = (tmp_path / "law" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(row)["part"] for row in rows].count("held_out") == 6
    assert "--count: is missing" in run_command("fit", *given, status=2)


@pytest.mark.full
def test_the_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from train.scaling.figures import FIGURES, draw_all

    fitted, held = split_runs(valleys(UNROUNDED, 8, num=6), 5e20)
    for form in FORMS.values():
        paths = draw_all(tmp_path / form.name, fit_all(form, fitted, held), "loss", [1e23])
        assert [path.stem for path in paths] == list(FIGURES)
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


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
