"""AlpacaEval 2: parity with the leaderboard, the regression, invariances, files, messages."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from core.artifacts import ROOT, read_jsonl, write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from eval.alpaca_eval import measure, measure_file
from eval.judges.annotations import compare, read_annotations, read_difficulties, read_leaderboard
from eval.judges.length_control import (
    FEATURES,
    STRENGTHS,
    Comparisons,
    Rows,
    choose_strength,
    control_length,
    fit_logistic,
    predict_win_rate,
)

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
needs_data = pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")


def drawn(num=300, model=0.4, length=-1.5, difficulty=0.0, seed=0):
    """Comparisons whose preferences are those of a judge with these coefficients."""
    rng = np.random.default_rng(seed)
    lengths, baselines = rng.integers(200, 2000, (2, num)).astype(float)
    made = Comparisons(np.zeros(num), lengths, baselines, rng.normal(size=num))
    logits = length * made.length_features() + difficulty * made.difficulties + model
    return dataclasses.replace(made, preferences=expit(logits))


def rows_of(num=200, seed=3):
    """Rows of a regression with unequal weights."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num, 3))
    return Rows(features, expit(features @ [1.0, -0.5, 0.0] + rng.normal(size=num)),
                rng.uniform(0.1, 1, num))


# --- parity ----------------------------------------------------------------------------------

def published():
    folder = Path(DATASETS) / "alpaca_eval_lc"
    return (folder, read_leaderboard(folder / "leaderboard_published.csv"),
            read_difficulties(folder / "instruction_difficulty_recovered.csv"))


@pytest.mark.full
@needs_data
def test_the_leaderboard_comes_out(tmp_path):
    folder, leaderboard, _ = published()
    found = measure_file(
        folder / "annotations_lc.csv.gz", folder / "instruction_difficulty_recovered.csv",
        folder / "gamed_baselines.csv.gz", folder / "leaderboard_published.csv", tmp_path)
    assert found["compared"] == len(found["models"]) == 38
    assert found["terms"] == ["length", "difficulty", "gamed"] and not found["left_out"]
    largest = found["largest_differences"]
    assert largest["win_rate"] < 1e-6 and largest["standard_error"] < 1e-6
    assert largest["length_controlled_winrate"] < 0.1       # published fits stop early
    assert largest["lc_standard_error"] < 1e-3
    for row in read_jsonl(tmp_path / "leaderboard.jsonl"):
        theirs = leaderboard[row["model"]]
        for name in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
            assert row[name] == int(theirs[name]), (row["model"], name)
        assert row["discrete_win_rate"] == pytest.approx(float(theirs["discrete_win_rate"]))


@needs_data
def test_gamed_baselines_are_as_published():
    folder, leaderboard, difficulties = published()
    weights = read_leaderboard(folder / "glm_weights_published.csv")
    for model, rows in read_annotations(folder / "gamed_baselines.csv.gz", Faults("g")).items():
        compared = compare(rows, difficulties)
        theirs = leaderboard[model]
        assert 100 * compared.preferences.mean() == pytest.approx(float(theirs["win_rate"]),
                                                                  abs=1e-6)
        own = dict(zip(FEATURES, map(float, list(weights[model].values())[1:])))
        assert 100 * predict_win_rate(own, list(difficulties.values())) == pytest.approx(
            float(theirs["length_controlled_winrate"]), abs=1e-4)


@pytest.mark.full
@needs_data
def test_published_values_of_incomplete_models_have_shifted_difficulties():
    folder, leaderboard, difficulties = published()
    tied = [compare(rows, difficulties) for rows in read_annotations(
        folder / "gamed_baselines.csv.gz", Faults("gamed")).values()]
    models = read_annotations(folder / "annotations_incomplete_models.csv.gz", Faults("a"))
    assert len(models) == 6
    shifts = []
    for model, rows in models.items():
        theirs = float(leaderboard[model]["length_controlled_winrate"])
        by_position = [row._replace(index=str(place)) for place, row in enumerate(rows)]
        assert measure(by_position, difficulties, tied)[
            "length_controlled_winrate"] == pytest.approx(theirs, abs=0.2), model
        own = measure(rows, difficulties, tied)["length_controlled_winrate"]
        shifts.append(theirs - own)
    assert max(shifts) > 2


@pytest.mark.full
def test_the_regression_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    from sklearn.model_selection import GroupKFold
    rows = rows_of()
    num = len(rows.targets)
    x = np.concatenate([rows.features, rows.features])
    labels = np.repeat([1, 0], num)
    weights = np.concatenate([rows.weights * rows.targets, rows.weights * (1 - rows.targets)])
    groups = np.tile(np.arange(num), 2)
    for number, (_, held_out) in enumerate(GroupKFold(5).split(x, labels, groups)):
        folds = (num - 1 - np.arange(num)) % 5
        assert set(held_out % num) == set(np.flatnonzero(folds == number))
    for strength in STRENGTHS:
        theirs = linear.LogisticRegression(
            C=strength, l1_ratio=1, solver="liblinear", fit_intercept=False, tol=1e-10,
            max_iter=10_000, random_state=123).fit(x, labels, sample_weight=weights)
        np.testing.assert_allclose(fit_logistic(rows, strength), theirs.coef_[0], atol=1e-5)


# --- the regression --------------------------------------------------------------------------

def check_least(rows, strength):
    """Asserts that no coefficient of a fit can be improved; returns the fit."""
    found = fit_logistic(rows, strength)
    residuals = rows.weights * (expit(rows.features @ found) - rows.targets)
    slope, zero = strength * residuals @ rows.features, found == 0
    np.testing.assert_allclose(slope[~zero], -np.sign(found[~zero]), atol=1e-5)
    assert np.all(np.abs(slope[zero]) <= 1 + 1e-5)
    return found


@pytest.mark.parametrize("strength", [1e-3, 0.02, 0.1, 3.0, 1e4])
def test_a_fit_is_where_no_coefficient_can_improve(strength):
    found = check_least(rows_of(), strength)
    assert found.any() != (strength < 0.05)     # the penalty prevails


def test_features_may_be_nearly_the_same():
    for seed in range(12):
        rows = rows_of(60, seed)
        rng = np.random.default_rng(seed + 100)
        rows.features[:, 0] = rows.features[:, 2] * rng.choice([-1, 1]) + rng.normal(0, 0.05, 60)
        for strength in (0.1, 0.3, 1.0, 30.0):
            check_least(rows, strength)


def test_a_start_does_not_matter():
    rows = rows_of()
    np.testing.assert_allclose(fit_logistic(rows, 2.0, np.array([4.0, -4.0, 9.0])),
                               fit_logistic(rows, 2.0), atol=1e-8)


def test_the_strength_is_that_of_the_folds():
    rng = np.random.default_rng(1)
    noise = Rows(rng.normal(size=(60, 3)), rng.integers(0, 2, 60).astype(float), np.ones(60))
    assert choose_strength(noise) < 1
    assert choose_strength(rows_of()) > 1


# --- meaning ---------------------------------------------------------------------------------

def test_a_preference_for_length_is_taken_out():
    rng = np.random.default_rng(5)
    longer = drawn(model=0.0)
    longer = dataclasses.replace(longer, lengths=longer.lengths + 800)
    longer = dataclasses.replace(longer, preferences=expit(-2 * longer.length_features()))
    raw = longer.preferences.mean()
    assert raw > 0.65
    assert control_length(longer).win_rate == pytest.approx(0.5, abs=0.02)
    # Without such a preference there is nothing to take out.
    even = dataclasses.replace(longer, preferences=rng.uniform(0.55, 0.65, len(longer.lengths)))
    assert control_length(even).win_rate == pytest.approx(even.preferences.mean(), abs=0.01)


def test_swapping_the_two_models_gives_the_complement():
    compared = drawn(difficulty=0.8)
    swapped = Comparisons(1 - compared.preferences, compared.baseline_lengths, compared.lengths,
                          compared.difficulties)
    assert control_length(swapped).win_rate == pytest.approx(
        1 - control_length(compared).win_rate, abs=1e-6)


def test_the_unit_of_length_does_not_matter():
    compared = drawn()
    words = dataclasses.replace(compared, lengths=compared.lengths / 5,
                                baseline_lengths=compared.baseline_lengths / 5)
    assert control_length(words).win_rate == pytest.approx(control_length(compared).win_rate)


def test_equal_lengths_leave_the_win_rate():
    compared = drawn()
    same = dataclasses.replace(compared, baseline_lengths=compared.lengths)
    found = control_length(same)
    assert found.coefficients["length"] == 0
    assert found.win_rate == pytest.approx(same.preferences.mean(), abs=0.01)


def test_gamed_baselines_tie_the_coefficient_of_length():
    """A model whose answers are all longer leaves quality and length apart only by the ties."""
    compared = drawn(model=0.0)
    compared = dataclasses.replace(compared, lengths=compared.baseline_lengths + 900)
    compared = dataclasses.replace(compared, preferences=np.full(300, 0.7))
    gamed = drawn(model=0.0, length=-3.0, seed=2)
    alone, tied = control_length(compared), control_length(compared, [gamed] * 10)
    assert alone.coefficients["length"] > tied.coefficients["length"]


@pytest.mark.full
def test_the_standard_error_is_that_of_repeated_draws():
    found = []
    for seed in range(80):
        compared = drawn(200, difficulty=0.5, seed=seed)
        votes = np.random.default_rng(seed + 1000).random(200) < compared.preferences
        found.append(control_length(dataclasses.replace(
            compared, preferences=votes.astype(float))))
    spread = np.std([one.win_rate for one in found], ddof=1)
    assert np.mean([one.stderr for one in found]) == pytest.approx(spread, rel=0.25)


# --- files -----------------------------------------------------------------------------------

def write_rows(path, num=20, **more):
    write_jsonl(path, [{"model": "m", "index": number, "len_model": 100 + 7 * number,
                        "len_baseline": 150, "preference": 1 + number % 3 / 2} | more
                       for number in range(num)])
    return path


def test_answers_themselves_are_measured(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([
        {"generator_2": "m", "output_1": "ab", "output_2": "abc é", "preference": 0.0},
        {"generator_2": "m", "output_1": "", "output_2": "x", "preference": None}]))
    faults = Faults("annotations")
    (row,) = read_annotations(path, faults)["m"]
    assert (row.preference, row.length, row.baseline_length) == (0.5, 5, 2)
    assert faults.counts == {"unparsed": 1}


def test_a_row_without_a_verdict_is_no_loss(tmp_path):
    whole = measure_file(write_rows(tmp_path / "a.jsonl"), None, None, None, None)
    rows = read_jsonl(tmp_path / "a.jsonl")
    write_jsonl(tmp_path / "b.jsonl", [*rows, *(
        row | {"index": f"x{row['index']}", "preference": None} for row in rows)])
    more = measure_file(tmp_path / "b.jsonl", None, None, None, None)
    assert more["models"] == whole["models"] and more["left_out"] == {"unparsed": 20}
    assert more["terms"] == ["length"]


def test_few_comparisons_have_no_controlled_win_rate(tmp_path):
    found = measure_file(write_rows(tmp_path / "a.jsonl", 4), None, None, None, None)
    assert found["models"]["m"]["length_controlled_winrate"] is None
    assert found["models"]["m"]["win_rate"] == 37.5


@pytest.mark.parametrize("change, message", [
    ({"preference": 2.5}, "line 1, preference=2.5: is not from 1 to 2"),
    ({"preference": "good"}, "line 1, preference='good': is no number"),
    ({"index": 7}, "line 2: compares m on the instruction 7 as"),
    ({"model": ""}, "line 1: names no model"),
    ({"len_model": None}, "line 1, len_model=None: is no number")])
def test_bad_rows_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_annotations(write_rows(tmp_path / "a.jsonl", **change), Faults("annotations"))


def test_a_missing_difficulty_is_refused(tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [{"index": 1, "instruction_difficulty": 0.5}])
    with pytest.raises(UserError, match="line 1: its index '0' has no difficulty"):
        measure_file(write_rows(tmp_path / "a.jsonl"), tmp_path / "d.jsonl", None, None, None)


@pytest.mark.full
def test_the_command_prints_what_it_found(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "eval.alpaca_eval", f"--annotations={tmp_path / 'a.jsonl'}",
         f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and last["models"]["m"]["win_rate"] == pytest.approx(47.5)
    assert read_jsonl(tmp_path / "out" / "leaderboard.jsonl")[0]["n_draws"] == 7
