"""Means, intervals and calibration: against other routes, by hand, and what is refused."""

import csv
import gzip
import itertools
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from core.errors import UserError
from eval.measures.calibration import brier_scores, expected_calibration_error, risk_by_coverage
from eval.statistics import (
    Z_95,
    bootstrap_interval,
    clustered_stderr,
    estimate_mean,
    estimate_share,
    macro_mean,
    mean_and_stderr,
    mean_interval,
    micro_mean,
    paired_difference,
    sign_test,
    wilson_interval,
    win_rate,
)

RNG = np.random.default_rng(0)

# Column of `mmlu_model_correctness.csv.gz`, micro and macro mean: a model may gain or lose.
FLAGS = [("gpt4_1106_correct", 0.8057969, 0.7933202),
         ("mixtral_8x7b_correct", 0.6808147, 0.6859158)]


@pytest.mark.parametrize("items", [1, 2, 7, 40])
def test_wilson_intervals_are_those_of_scipy_and_never_of_width_zero(items):
    for right in range(items + 1):
        expected = stats.binomtest(right, items).proportion_ci(method="wilson")
        low, high = wilson_interval(right / items, items)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert low < high and low <= right / items <= high
        found = estimate_share([1] * right + [0] * (items - right))
        assert (found.low, found.high) == pytest.approx((low, high))


def test_a_share_of_partial_scores_is_surer_than_one_of_right_and_wrong():
    scores = RNG.uniform(0.4, 0.6, 50)
    found, binary = estimate_share(scores), wilson_interval(float(scores.mean()), 50)
    assert found.high - found.low < 0.5 * (binary[1] - binary[0])
    normal = estimate_mean(scores)
    assert found.low == pytest.approx(normal.low, abs=2e-3)
    assert found.high == pytest.approx(normal.high, abs=2e-3)
    half = estimate_share([0.5] * 50)
    assert half.stderr == 0 and half.low < 0.4 and half.high > 0.6


def test_clustered_errors_by_the_double_sum_of_the_paper():
    values = RNG.integers(0, 2, 40).astype(float)
    groups = [f"passage {number}" for number in RNG.integers(0, 9, 40)]
    n, mean = len(values), values.mean()
    variance = mean_and_stderr(values)[1] ** 2
    for i, j in itertools.permutations(range(n), 2):
        if groups[i] == groups[j]:
            variance += (values[i] - mean) * (values[j] - mean) / n**2
    assert clustered_stderr(values, groups) == pytest.approx(math.sqrt(variance))
    alone = clustered_stderr(values, range(n))
    assert alone == pytest.approx(mean_and_stderr(values)[1]), "a group per item: as independent"
    order = RNG.permutation(n)
    assert clustered_stderr(values[order], [groups[i] for i in order]) == pytest.approx(
        math.sqrt(variance))


def test_items_repeated_within_groups_do_not_make_a_mean_surer():
    values = RNG.integers(0, 2, 60).astype(float)
    plain = estimate_share(values)
    repeated = estimate_share(np.repeat(values, 10), np.repeat(np.arange(60), 10).tolist())
    assert repeated.stderr == pytest.approx(plain.stderr, rel=0.02)
    assert (repeated.low, repeated.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    assert repeated.groups == 60 and plain.groups is None
    assert estimate_share(np.repeat(values, 10)).stderr < 0.4 * plain.stderr
    right = estimate_share([1] * 30, ["a"] * 10 + ["b"] * 20)
    assert right.low == pytest.approx(wilson_interval(1, 2)[0]), "two groups, not thirty items"


def test_one_value_or_one_group_has_no_standard_error():
    for found in (estimate_share([1.0]), estimate_mean([3.0]),
                  estimate_share([1, 0, 1], ["a", "a", "a"])):
        assert found.stderr is None
    assert estimate_mean([3.0]).low is None
    assert estimate_share([1.0]).low == pytest.approx(0.2065, abs=1e-4), "Wilson, for one item"
    assert math.isnan(mean_and_stderr([2.0])[1])


@pytest.mark.parametrize("measure", [
    lambda values: mean_and_stderr(values, "piqa"), lambda values: mean_interval(values, "piqa"),
    lambda values: estimate_share(values, name="piqa"),
    lambda values: clustered_stderr(values, [1, 2, 3], "piqa"),
    lambda values: paired_difference([1, 1, 1], values, name="piqa"),
    lambda values: sign_test([1, 1, 1], values, name="piqa")])
@pytest.mark.parametrize("wrong, text", [(math.nan, "nan"), (math.inf, "inf")])
def test_what_is_not_finite_is_refused_by_name(measure, wrong, text):
    with pytest.raises(UserError, match="^piqa: 1 of 3 values are not finite: the first is "
                       f"{text}, at index 1"):
        measure([0.0, wrong, 1.0])


@pytest.mark.parametrize("measure, line", [
    (lambda: mean_and_stderr([], "piqa"), "piqa: there is no value to average"),
    (lambda: estimate_share([0.5, 1.5], name="piqa"), "piqa: 1 of 2 scores are not from 0 to 1"),
    (lambda: clustered_stderr([1, 2], ["a"], "piqa"), "piqa: 2 values have 1 groups"),
    (lambda: paired_difference([1], [0, 1], name="piqa"), "piqa: one model has 1 and the other 2"),
    (lambda: win_rate([math.nan], [1.0]), "differences of scores: 1 of 1 values are not finite"),
    (lambda: macro_mean({"law": [1.0], "art": [math.nan]}, "mmlu"), "mmlu of art: 1 of 1 values")])
def test_bad_input_is_one_line(measure, line):
    with pytest.raises(UserError) as error:
        measure()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_paired_differences_by_the_counts_of_the_four_cells():
    both, ours_only, theirs_only, neither = 30, 12, 4, 14
    ours = [1] * (both + ours_only) + [0] * (theirs_only + neither)
    theirs = [1] * both + [0] * ours_only + [1] * theirs_only + [0] * neither
    found = paired_difference(ours, theirs)
    assert found.value == pytest.approx((ours_only - theirs_only) / 60)
    p, q = (ours_only + 1) / 62, (theirs_only + 1) / 62     # Bonett and Price (2012)
    half = Z_95 * math.sqrt((p + q - (p - q) ** 2) / 62)
    assert (found.low, found.high) == pytest.approx((p - q - half, p - q + half))
    apart = math.hypot(mean_and_stderr(ours)[1], mean_and_stderr(theirs)[1])
    assert found.stderr < apart, "answers to the same items are correlated"
    back = paired_difference(theirs, ours)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low))
    assert sign_test(ours, theirs) == pytest.approx(stats.binomtest(12, 16).pvalue)
    assert sign_test([1] * 8 + [0], [0] * 8 + [1]) == pytest.approx(20 / 512)
    assert sign_test([1, 0], [1, 0]) == 1.0


def test_models_that_agree_everywhere_still_have_an_interval():
    same = paired_difference([1, 0, 1, 1] * 25, [1, 0, 1, 1] * 25)
    assert same.value == same.stderr == 0 and same.low < 0 < same.high < 0.03
    always = paired_difference([1] * 5, [0] * 5)
    assert always.low < 1 == always.high == always.value
    rate, (low, high) = win_rate([1] * 9, [0] * 9)
    assert rate == high == 1 and 0.6 < low < 1
    rate, (low, high) = win_rate([1] * 9, [1] * 9)
    assert rate == 0.5 and low < 0.5 < high


def test_differences_within_groups_are_clustered():
    ours, theirs = RNG.integers(0, 2, (2, 40)).astype(float)
    groups = np.repeat(np.arange(8), 5).tolist()
    found = paired_difference(ours, theirs, groups)
    assert found.stderr == pytest.approx(clustered_stderr(ours - theirs, groups))
    padded = clustered_stderr([*(ours - theirs), 1, -1], [*groups, "x", "y"])
    centre = (ours - theirs).sum() / 42
    assert (found.low, found.high) == pytest.approx(
        (centre - Z_95 * padded, centre + Z_95 * padded))


def test_micro_and_macro_means_by_hand():
    by_group = {"law": [1, 0, 0, 1, 0], "art": [1, 1]}
    assert micro_mean(by_group).value == pytest.approx(4 / 7)
    macro = macro_mean(by_group)
    assert macro.value == pytest.approx((0.4 + 1) / 2)
    assert macro.stderr == pytest.approx(math.sqrt(0.3 / 5 + 0) / 2)
    assert macro.low < macro.value < macro.high and (macro.items, macro.groups) == (7, 2)
    undefined = macro_mean({"law": [1, 0], "art": [1]})
    assert undefined.stderr is undefined.low is None and undefined.value == 0.75


@pytest.mark.skipif("HEARTWOOD_DATASETS" not in os.environ, reason="needs the benchmark files")
@pytest.mark.parametrize("column, micro, macro", FLAGS)
def test_published_flags_of_mmlu_differ_by_their_mean(column, micro, macro):
    path = Path(os.environ["HEARTWOOD_DATASETS"]) / "mmlu" / "mmlu_model_correctness.csv.gz"
    by_subject = defaultdict(list)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            by_subject[row["subject"]].append(int(row[column]))
    assert len(by_subject) == 57
    assert micro_mean(by_subject).value == pytest.approx(micro, abs=1e-7)
    assert macro_mean(by_subject).value == pytest.approx(macro, abs=1e-7)


def test_bootstrap_intervals_of_a_mean_are_the_normal_ones():
    values = RNG.normal(size=200)
    found = bootstrap_interval(lambda index: values[index].mean(), 200, seed=1)
    normal = estimate_mean(values)
    assert found.value == pytest.approx(normal.value)
    assert found.stderr == pytest.approx(normal.stderr, rel=0.1)
    assert (found.low, found.high) == pytest.approx((normal.low, normal.high), abs=0.03)
    assert found == bootstrap_interval(lambda index: values[index].mean(), 200, seed=1)
    assert found != bootstrap_interval(lambda index: values[index].mean(), 200, seed=2)


def test_the_bootstrap_draws_whole_groups():
    values, groups = np.repeat(RNG.normal(size=40), 5), np.repeat(np.arange(40), 5).tolist()
    found = bootstrap_interval(lambda index: values[index].mean(), 200, seed=1, groups=groups)
    assert found.stderr == pytest.approx(clustered_stderr(values, groups), rel=0.1)
    seen = []
    bootstrap_interval(lambda index: seen.append(np.bincount(index, minlength=200)) or 0.0, 200,
                       seed=1, groups=groups, num_samples=3)
    assert all(len(set(part)) == 1 for counts in seen for part in counts.reshape(40, 5).tolist())
    alone = bootstrap_interval(lambda index: 1.0, 3, seed=1, groups=["a"] * 3)
    assert alone.stderr is None and alone.groups == 1
    with pytest.raises(UserError, match="statistic of a bootstrap sample: 1000 of 1000 values"):
        bootstrap_interval(lambda index: math.nan, 3, seed=0)


def test_brier_scores_by_hand():
    assert brier_scores([[0.0, 0.0, 0.0, 0.0]], [2]) == pytest.approx([0.75]), "uniform: 1 - 1/K"
    logps = [[math.log(0.7), math.log(0.3)], [-900.0, 0.0], [-900.0, 0.0]]
    assert brier_scores(logps, [0, 1, 0]) == pytest.approx([0.09 + 0.09, 0, 2])
    shifted = [[p - 55 for p in options] for options in logps]
    assert brier_scores(shifted, [0, 1, 0]) == pytest.approx([0.18, 0, 2])
    with pytest.raises(UserError, match="logps_nats of question 1: 1 of 2 values are not finite"):
        brier_scores([[0, 0], [0, -math.inf]], [0, 0])
    with pytest.raises(UserError, match="answer of question 0: 2 is none of its 2 options"):
        brier_scores([[0, 0]], [2])


def test_calibration_errors_of_hand_made_bins():
    p = [0.05, 0.15, 0.15, 0.95, 1.0]
    right = [0, 1, 0, 1, 1]
    wide = expected_calibration_error(p, right, binning="width")
    assert wide.error == pytest.approx((0.05 + 0.7 + 0.05) / 5)
    assert [found.items for found in wide.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert wide.bins[1].accuracy == 0.5 and wide.bins[2].accuracy is None
    mass = expected_calibration_error(p, right, binning="mass", num_bins=2)
    assert mass.error == pytest.approx((abs(0.35 - 1) + abs(1.95 - 2)) / 5)
    assert [found.items for found in mass.bins] == [3, 2]
    assert mass.bins[0].high == pytest.approx(0.55)
    edge = expected_calibration_error([0.1, 0.2, 0.3], [0, 0, 0], binning="width")
    assert [found.items for found in edge.bins][:3] == [1, 1, 1], "bins are (low, high]"
    with pytest.raises(UserError, match="binning='equal': is unknown"):
        expected_calibration_error(p, right, binning="equal")
    with pytest.raises(UserError, match="confidences: not all are from 0 to 1"):
        expected_calibration_error([1.2], [1], binning="width")


def test_equal_confidences_make_the_order_of_answers_irrelevant():
    p = RNG.choice([0.2, 0.5, 0.7, 0.9], 60)
    right = RNG.integers(0, 2, 60)
    order = RNG.permutation(60)
    for binning in ("width", "mass"):
        found = expected_calibration_error(p, right, binning=binning)
        again = expected_calibration_error(p[order], right[order], binning=binning)
        assert found.error == pytest.approx(again.error)
        assert sum(part.items for part in found.bins) == 60
    np.testing.assert_allclose(risk_by_coverage(p, right), risk_by_coverage(p[order], right[order]))


def test_a_perfectly_calibrated_model_has_no_error_and_confident_errors_cost_coverage():
    p = np.repeat([0.25, 0.75], 4)
    right = [1, 0, 0, 0, 1, 1, 1, 0]
    assert expected_calibration_error(p, right, binning="width").error == pytest.approx(0)
    np.testing.assert_allclose(risk_by_coverage([0.9, 0.8, 0.7], [1, 0, 0]), [0, 1 / 2, 2 / 3])
    np.testing.assert_allclose(risk_by_coverage([0.7, 0.8, 0.9], [1, 0, 0]), [1, 1, 2 / 3])
