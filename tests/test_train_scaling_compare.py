"""Sets of runs at equal compute: multipliers of planted laws, intervals, refusals."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from scaling_runs import KAPLANS, UNROUNDED, grid, losses, make, valleys

from core.errors import UserError
from train.scaling import __main__ as commands
from train.scaling import compare, figures
from train.scaling.forms import HOFFMANN, KAPLAN, OVERTRAINING, optimal_sizes
from train.scaling.surface import fit_law


def slower(theta, factor):
    """Hoffmann's law of an architecture that needs `factor` times the compute for every loss.

    Its A / N^alpha and B / D^beta at N and D are those of the other at N and D over the root of
    the factor, so both its best sizes grow by that root.
    """
    changed = np.array(theta, np.float64)
    changed[:2] += theta[3:] * np.log(factor) / 2
    return changed


def sides_of(theta, other, noise=0.0, form=HOFFMANN):
    rng = np.random.default_rng(1)
    runs = grid(HOFFMANN, theta)
    both = [dataclasses.replace(runs, loss_R=losses(HOFFMANN, one, runs.params_R, runs.tokens_R)
                                * np.exp(noise * rng.normal(size=25)), origin={"corpus": "c"})
            for one in (theta, other)]
    return compare.make_sides([*zip(("ours", "theirs"), both)], form)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(compare, "fit_law", partial(fit_law, num_samples=20))


@pytest.mark.parametrize("form, theta", [(HOFFMANN, UNROUNDED), (OVERTRAINING, UNROUNDED[:4]),
                                         (KAPLAN, KAPLANS)], ids=["hoffmann", "over", "kaplan"])
def test_the_budget_of_a_loss_is_the_inverse_of_the_best_loss(form, theta):
    flops = np.geomspace(1e16, 1e24, 9)
    best = compare.best_losses(form, theta, flops)
    params, tokens = optimal_sizes(form, theta, flops)
    assert best == pytest.approx(losses(form, theta, params, tokens))
    assert compare.flops_of_losses(form, theta, best) == pytest.approx(flops, rel=1e-6)


def test_a_loss_that_no_budget_has_has_none():
    floor = np.exp(UNROUNDED[2])
    found = compare.flops_of_losses(HOFFMANN, UNROUNDED, np.array([0.9 * floor, 1e9, 3.0]))
    assert np.isnan(found[:2]).all() and np.isfinite(found[2])
    falling = UNROUNDED * [1, 1, 1, 1, -1]      # a bootstrap sample may have no best size
    assert np.isnan(compare.flops_of_losses(HOFFMANN, falling, np.array([3.0]))).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_multiplier_of_planted_laws_is_theirs(factor):
    found = compare.compare_sides(*sides_of(UNROUNDED, slower(UNROUNDED, factor)))
    assert found.multiplier_R == pytest.approx(factor, rel=1e-3)
    for side, budget_R in ((found.side, found.flops_R), (found.against, found.against_flops_R)):
        inside_R = (budget_R > 0.999 * side.runs.flops_R.min()) & (
            budget_R < 1.001 * side.runs.flops_R.max())
        assert inside_R.all(), "nothing is extrapolated"
    described = compare.describe_comparison(found, [1e21])
    assert described["multiplier"]["value"] == pytest.approx(factor, rel=1e-3)
    assert described["multiplier"]["samples_frac"] == 1.0
    assert described["losses"][-1]["runs"]["loss"] == pytest.approx(
        compare.best_losses(HOFFMANN, UNROUNDED, np.array([1e21]))[0], rel=1e-5)


def test_a_multiplier_that_varies_is_given_at_each_loss():
    """An architecture with a better exponent of the parameters gains with compute."""
    better = np.add(UNROUNDED, [0.2, 0, 0, 0.02, 0])
    found = compare.compare_sides(*sides_of(better, UNROUNDED))
    assert (np.diff(found.multiplier_R) > 0).all() and (np.diff(found.loss_R) < 0).all()


def test_noise_gives_intervals_that_hold_the_multiplier():
    found = compare.compare_sides(*sides_of(UNROUNDED, slower(UNROUNDED, 1.5), noise=0.01,
                                            form=OVERTRAINING))
    overall = compare.describe_comparison(found, [])["multiplier"]
    assert overall["low"] < 1.5 < overall["high"] and overall["low"] < overall["high"] / 1.02
    swapped = compare.compare_sides(found.against, found.side)
    assert swapped.multiplier_R == pytest.approx(1 / found.multiplier_R)


def test_what_pairs_have_in_common_cancels():
    own, other = (side.runs for side in sides_of(UNROUNDED, slower(UNROUNDED, 1.5)))
    common_R = np.exp(0.03 * np.random.default_rng(2).normal(size=25))
    pairs = [dataclasses.replace(runs, loss_R=runs.loss_R * common_R) for runs in (own, other)]
    stranger = dataclasses.replace(pairs[1], names=[f"other {name}" for name in other.names])

    def width(*both):
        sides = compare.make_sides([*zip(("ours", "theirs"), both)], HOFFMANN)
        found = compare.describe_comparison(compare.compare_sides(*sides), [])["multiplier"]
        assert found["low"] < 1.5 < found["high"]
        return np.log(found["high"] / found["low"])

    assert width(*pairs) < width(pairs[0], stranger) / 4


def test_sides_that_cannot_be_compared_are_refused():
    side, other = sides_of(UNROUNDED, UNROUNDED)
    strange = dataclasses.replace(other, runs=dataclasses.replace(other.runs,
                                                                  origin={"corpus": "d"}))
    with pytest.raises(UserError, match="differ in corpus: their losses cannot be compared: c, d"):
        compare.compare_sides(side, strange)
    far = make(1e4 * side.runs.params_R, 1e4 * side.runs.tokens_R, side.runs.loss_R)
    far = dataclasses.replace(far, loss_R=losses(HOFFMANN, UNROUNDED, far.params_R, far.tokens_R),
                              origin=side.runs.origin)
    with pytest.raises(UserError, match="have no loss in common: ours goes from"):
        compare.compare_sides(side, *compare.make_sides([("far", far)], HOFFMANN))
    with pytest.raises(UserError, match="have one budget only"):
        compare.make_sides([("one", valleys(UNROUNDED, 8, budgets=(1e18,)))], HOFFMANN)


# --- the command


def write_table(path, theta):
    runs = grid(HOFFMANN, theta)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss"])
        writer.writerows(zip(runs.params_R, runs.tokens_R, runs.loss_R))
    return str(path)


@pytest.fixture
def values(tmp_path):
    """The command's flags."""
    own = flags.FlagValues()
    for name in ("runs", "count", "law", "metric", "out"):
        flags.DEFINE_string(name, None, "", flag_values=own)
    flags.DEFINE_multi_string("against", None, "", flag_values=own)
    for name in ("columns", "only", "budgets"):
        flags.DEFINE_list(name, [], "", flag_values=own)
    flags.DEFINE_bool("figures", False, "", flag_values=own)
    own(["train.scaling", "--count=total", "--law=hoffmann", f"--out={tmp_path / 'out'}",
         f"--runs={write_table(tmp_path / 'ours.csv', UNROUNDED)}",
         f"--against={write_table(tmp_path / 'theirs.csv', slower(UNROUNDED, 2.0))}",
         f"--against={write_table(tmp_path / 'others.csv', slower(UNROUNDED, 0.5))}"])
    return own


def test_the_command_writes_the_comparison(values, tmp_path, capsys):
    result = commands.compare(values)
    saved = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert saved == result
    found = [each["multiplier"]["value"] for each in saved["comparisons"]]
    assert found == pytest.approx([2.0, 0.5], rel=1e-3), "each is against --runs"
    first = saved["comparisons"][0]
    assert first["sides"]["against"]["constants"].keys() == {"A", "B", "E", "alpha", "beta"}
    assert len(first["multipliers"]) == compare.NUM_LOSSES and first["count"] == "total"
    assert [Path(path).name for path in saved["left_out"]] == ["ours.csv", "theirs.csv",
                                                               "others.csv"]
    printed = capsys.readouterr().err
    assert "theirs.csv needs 2 times the compute of" in printed
    assert "others.csv needs 0.5 times the compute of" in printed
    assert "theirs.csv: not known whether all runs have the same tokenizer" in printed
    values.against = None
    with pytest.raises(UserError, match="--against: is missing"):
        commands.compare(values)


def test_a_flag_of_another_command_is_refused(monkeypatch):
    own = flags.FlagValues()
    for name in sorted({flag for _, names in commands.COMMANDS.values() for flag in names}):
        flags.DEFINE_string(name, None, "", flag_values=own)
    own(["train.scaling", "--runs=x", "--parallel=2"])
    monkeypatch.setattr(commands.flags, "FLAGS", own)
    with pytest.raises(UserError, match="--parallel: is no flag of compare: leave it out"):
        commands.main(["compare"])
    for words, shown in ((["fits"], "fits"), ([], "no command"), (["fit", "ladder"], "fit ladder")):
        with pytest.raises(UserError, match=f"{shown}: is not a command.*fit, ladder, compare"):
            commands.main(words)


def test_names_in_a_figure_are_what_differs():
    assert figures.shorten(["runs/a/lstm/runs", "runs/a/dense/runs"]) == ["lstm", "dense"]
    assert figures.shorten(["a/x.csv", "a/b/x.csv"]) == ["x.csv", "b/x.csv"]
    assert figures.shorten(["a", "a/b"]) == ["a", "a/b"]
    assert figures.shorten(["x.csv", "x.csv"]) == ["x.csv", "x.csv"]


@pytest.mark.full
def test_the_comparison_is_drawn(values):
    pytest.importorskip("matplotlib")
    values.figures = True
    path, = commands.compare(values)["figures"]
    assert Path(path).name == "compare.png"
    assert Path(path).read_bytes().startswith(b"\x89PNG")
