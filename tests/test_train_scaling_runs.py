"""Runs for scaling laws: unfit ones refused, tables and folders read, and the command."""

import csv
import dataclasses
import gzip
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scaling_runs import UNROUNDED, grid, valleys

from core.artifacts import ROOT, make_lineage, read_lineage, write_json
from core.errors import UserError
from model.config import ModelConfig
from train.reading import Phase, Reading, write_reading
from train.scaling.__main__ import drop_highest, read_runs
from train.scaling.checks import check_runs
from train.scaling.folders import count_by_convention, read_folders
from train.scaling.forms import FORMS, HOFFMANN
from train.scaling.report import Task, describe, fit_all, split_runs
from train.scaling.runs import COUNTS
from train.scaling.table import Point, make_runs, read_table

# --- unfit runs


@pytest.mark.parametrize("change, line", [
    (lambda runs: runs.choose(np.arange(25) < 6), "6 runs: are too few for the 5 parameters"),
    (lambda runs: valleys(UNROUNDED, 8, budgets=(1e18,)), "have one budget only"),
    (lambda runs: dataclasses.replace(runs, loss_R=1 / runs.loss_R), "losses that rise with"),
    (lambda runs: dataclasses.replace(runs, flops_R=runs.flops_R / 8.64e19), "are in PF-days"),
    (lambda runs: dataclasses.replace(runs, tokens_R=4 * runs.tokens_R), "tokens may be bytes"),
    (lambda runs: dataclasses.replace(runs, flops_R=runs.flops_R / 1e12), "is in another unit"),
    (lambda runs: dataclasses.replace(runs, tokens_R=runs.tokens_R / 1e9, flops_R=runs.flops_R
                                      / 1e9), "tokens per parameter: one of params"),
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
    ({"loss": "0"}, {}, "loss is '0'"), ({"loss": ""}, {}, "line 2: has no loss"),
    ({"tokens": "-5"}, {}, "tokens is '-5'"),
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
    write_run(tmp_path / "D=8" / "earlier", 8, bpb=(9.0,))
    fingerprint = read_lineage(tmp_path / "D=8" / "earlier")["fingerprint"]
    aside = tmp_path / "D=8" / f"base.{fingerprint[:8]}"
    (tmp_path / "D=8" / "earlier").rename(aside)
    again, left_out = read_folders(tmp_path, "total", "heldout_bpb")
    assert again.names == runs.names and left_out["set_aside"] == 1
    assert read_folders(aside, "total", "heldout_bpb")[0].loss_R.tolist() == [9.0], "by its name"
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


def test_the_command_fits_forecasts_and_names_its_conventions(tmp_path):
    runs = valleys(UNROUNDED, 8, num=6, budgets=(1e18, 1e19, 1e20, 1e21))
    path = write_csv(tmp_path / "runs.csv", [
        {"params": params, "tokens": tokens, "loss": loss} for params, tokens, loss in zip(
            runs.params_R, runs.tokens_R, runs.loss_R)])
    done = subprocess.run([sys.executable, "-m", "train.scaling", "fit", f"--runs={path}",
                           f"--out={tmp_path / 'law'}", "--holdout_flops=5e20",
                           "--count=non_embedding", "--budgets=5.76e23"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["runs"] == 18 and result["heldout"]["runs"] == 6
    assert result["heldout"]["max_relative_error"] < 1e-6
    assert result["counted"] == COUNTS["non_embedding"]
    assert result["forecast"][0]["params"] == pytest.approx(40.4e9, rel=0.002)
    saved = json.loads((tmp_path / "law" / "fit.json").read_text())
    assert saved["count"] == "non_embedding" and len(saved["samples"]) == 200
    rows = (tmp_path / "law" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(row)["part"] for row in rows].count("held_out") == 6


def test_the_count_must_be_named_and_some_run_must_be_left(tmp_path):
    path = write_csv(tmp_path / "runs.csv", [{"params": 1e8, "tokens": 1e9, "loss": 3.0}])
    values = SimpleNamespace(runs=str(path), count=None, columns=[], only=[])
    with pytest.raises(UserError, match=r"--count: is missing.*total, non_embedding, with_head"):
        read_runs(values, values.runs)
    values.count = "total"
    runs, _ = read_runs(values, values.runs)
    assert drop_highest(runs, 0) == (runs, 0)
    with pytest.raises(UserError, match="--drop_highest=1: leaves none of 1 runs"):
        drop_highest(runs, 1)


@pytest.mark.full
def test_the_figures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from train.scaling.figures import draw_all

    runs = valleys(UNROUNDED, 8, num=6)
    runs = dataclasses.replace(runs, accuracy_R=1 / runs.loss_R)
    fitted, held = split_runs(runs, 5e20)
    every = ["fit", "valleys", "residuals", "forecast", "accuracy"]
    for form in FORMS.values():
        report = fit_all(form, fitted, held, Task(1000, 0.0, "power"))
        paths = draw_all(tmp_path / form.name, report, "loss", [1e23])
        assert [path.stem for path in paths] == every
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    bare = dataclasses.replace(report, valleys=(), accuracy=None)
    paths = draw_all(tmp_path / "bare", bare, "loss")
    assert [path.stem for path in paths] == ["fit", "residuals", "forecast"]
