"""Sweeps: axes and their points, the table, skipping of finished points, reports of failures."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from small_tokens import write_corpus

from core.artifacts import ROOT
from core.errors import UserError
from core.points import point_name
from scripts.sweep.axes import grid_axis, make_points, random_axis, zip_axis
from scripts.sweep.figure import draw
from scripts.sweep.table import average_seeds, fill_settings, find_ties, show_table


def test_points_are_the_product_of_grids_and_zips():
    axes = [grid_axis("a.lr=0.1,0.2"), zip_axis("a.D=64,128;a.H=2,4")]
    assert make_points(axes) == [
        {"a.lr": lr, "a.D": width, "a.H": heads} for lr in ("0.1", "0.2")
        for width, heads in (("64", "2"), ("128", "4"))]
    assert make_points([grid_axis("a.lr=1,1,2")]) == [{"a.lr": "1"}, {"a.lr": "2"}]
    assert grid_axis("a.writers=(),('x','y')") == [{"a.writers": "()"}, {"a.writers": "('x','y')"}]


def test_random_draws_are_in_range_and_unchanged_by_more_trials():
    texts = ["a.lr=loguniform(1e-4,1e-1)", "a.N=randint(2,4)", "a.name=choice(muon, adamw)",
             "a.frac=uniform(0.5,1)"]
    few, many = (random_axis(texts, trials=trials, seed=0) for trials in (5, 200))
    assert many[:5] == few and random_axis(texts, trials=5, seed=1) != few
    rates = sorted(float(point["a.lr"]) for point in many)
    assert 1e-4 <= rates[0] < 2e-4 and 5e-2 < rates[-1] <= 1e-1
    assert 1e-3 < rates[100] < 1e-2, "half of a log-uniform draw lies below the geometric mean"
    assert {point["a.N"] for point in many} == {"2", "3", "4"}
    assert {point["a.name"] for point in many} == {"muon", "adamw"}
    assert all(0.5 <= float(point["a.frac"]) <= 1 for point in many)


@pytest.mark.parametrize("make, line", [
    (lambda: grid_axis("a.lr"), "--grid=a.lr: is not section.field=value,value"),
    (lambda: grid_axis("lr=1"), "--grid=lr=1: is not section.field"),
    (lambda: grid_axis("a.lr=1,,2"), "--grid=a.lr=1,,2: is not"),
    (lambda: zip_axis("a.b=1,2;a.c=1"), "has fields with unequal numbers of values"),
    (lambda: random_axis(["a.b=normal(0,1)"], trials=1, seed=0), "is no distribution"),
    (lambda: random_axis(["a.b=loguniform(0,1)"], trials=1, seed=0), "and above 0"),
    (lambda: random_axis(["a.b=uniform(2,1)"], trials=1, seed=0), "needs two numbers"),
    (lambda: random_axis(["a.b=randint(0.5,1)"], trials=1, seed=0), "needs two numbers"),
    (lambda: make_points([grid_axis("a.b=1"), grid_axis("a.b=2")]), "a.b: is set by two axes"),
])
def test_invalid_axes_are_one_line(make, line):
    with pytest.raises(UserError) as error:
        make()
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_points_name_lists_its_settings_and_is_a_folders_name():
    assert point_name({"a.lr": "0.1", "a.seed": "0"}) == "lr=0.1,seed=0"
    assert point_name({"a.lr": "0.1", "b.lr": "0.2"}) == "a.lr=0.1,b.lr=0.2"
    odd = {point_name({"a.file": value}) for value in ("x/y", "x y", "x" * 300)}
    assert len(odd) == 3 and all("/" not in name and len(name) < 200 for name in odd)


def _row(metric, stderr=None, **settings):
    metrics = {"bpb": metric, "acc": {"sft": -(metric or 0)}}
    if stderr is not None:
        metrics["bpb_stderr"] = stderr
    return {"point": "p", "settings": {f"a.{name}": value for name, value in settings.items()},
            "status": "finished", "metrics": metrics}


def test_seeds_are_averaged_and_the_best_setting_comes_first():
    rows = [_row(2.0, lr="1", seed="0"), _row(4.0, lr="1", seed="1"), _row(1.0, lr="2", seed="0"),
            {"point": "q", "settings": {"a.lr": "2", "a.seed": "1"}, "status": "failed",
             "error": "error: no"}]
    averaged = average_seeds(rows, "bpb", lowest=True)
    assert [(group["mean"], group["num"]) for group in averaged] == [(1.0, 1), (3.0, 2)]
    assert averaged[1]["std"] == pytest.approx(2 ** 0.5)
    assert averaged[1]["stderr"] == pytest.approx(1.0), "the sample's deviation over sqrt 2"
    assert averaged[0]["std"] is averaged[0]["stderr"] is None, "of one point nothing is known"
    assert average_seeds(rows, "acc.sft", lowest=False)[0]["mean"] == -1.0
    assert show_table(rows, averaged, "bpb").splitlines() == [
        "lr  bpb              points", "2   1.0000           1", "1   3.0000 ± 1.0000  2",
        "best: lr=2: 1.0000 (one point, whose error is not known: add seeds)",
        "failed: q: error: no"]
    with pytest.raises(UserError, match=r"--metric=loss: is no result .*acc, bpb"):
        average_seeds(rows, "loss", lowest=True)


def test_a_best_that_cannot_be_told_from_others_is_a_tie():
    def ties(*rows):
        return [group["settings"]["a.lr"] for group in
                find_ties(average_seeds(rows, "bpb", lowest=True))]

    def seeds(lr, *values):
        return [_row(value, lr=lr, seed=str(seed)) for seed, value in enumerate(values)]

    near, far = seeds("2", 1.05, 1.15, 1.25), seeds("3", 2.0, 2.1, 2.2)
    assert ties(*seeds("1", 1.0, 1.1, 1.2), *near, *far) == ["2"]
    # Welch's test of these two by hand: t = 0.9 / sqrt(0.01/3 + 0.01/3) = 11.0.
    assert ties(*seeds("1", 1.0, 1.1, 1.2), *far) == []
    assert ties(*seeds("1", 1.0, 1.0), *seeds("2", 1.0, 1.0), *seeds("3", 1.1, 1.1)) == ["2"]
    # By the errors of the evaluation: a difference of 0.1 against 1.96 * sqrt(2) * stderr.
    for stderr, expected in ((0.037, ["2"]), (0.035, [])):
        assert ties(_row(1.0, stderr, lr="1"), _row(1.1, stderr, lr="2")) == expected
    assert ties(_row(1.0, lr="1"), _row(1.0, lr="2"), _row(1.001, lr="3")) == ["2"]
    assert ties(_row(math.nan, lr="1"), _row(None, lr="2")) == []


def test_the_best_is_named_with_its_error_and_its_ties():
    averaged = average_seeds([_row(1.0, 0.05, lr="1"), _row(1.1, 0.05, lr="2")], "bpb", lowest=True)
    assert show_table([], averaged, "bpb").splitlines()[-2:] == [
        "best: lr=1: 1.0000 ± 0.0500 (± the standard error of the evaluation)",
        "tied with it, as the difference is within the errors: lr=2"]


@pytest.mark.full
def test_a_figure_is_of_one_field_with_numbers(tmp_path):
    pytest.importorskip("matplotlib")
    groups = average_seeds([_row(1.0, 0.05, lr="1"), _row(1.1, 0.05, lr="20")], "bpb", lowest=True)
    draw(tmp_path / "figure.png", groups, "bpb")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    for settings in (dict(lr="1", decay="2"), dict(name="muon")):
        groups = average_seeds([_row(1.0, 0.05, **settings)], "bpb", lowest=True)
        with pytest.raises(UserError, match="needs one field with numbers as values"):
            draw(tmp_path / "figure.png", groups, "bpb")


def test_points_of_two_grids_have_the_same_fields():
    config = ConfigDict({"a": {"lr": 0.1, "D": 64}})
    rows = [_row(1.0, lr="0.1"), _row(2.0, lr="0.2"), _row(3.0, D="64"), _row(4.0, D="128")]
    filled = fill_settings(rows, config)
    assert [tuple(row["settings"].values()) for row in filled] == [
        ("0.2", "64"), ("0.1", "64"), ("0.1", "128")], "the same run in both grids is one"
    assert filled[1]["metrics"]["bpb"] == 3.0, "the later one"


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A workdir with a corpus, which all points share."""
    folder = tmp_path_factory.mktemp("parents")
    write_corpus(folder)
    return folder


def _command(parents, workdir, *arguments):
    return [sys.executable, "-m", "scripts.sweep.run", "--config=configs/quickstart.py:smoke",
            f"--workdir={workdir}", f"--parents={parents}", "--stages=data.train_tokenizer",
            "--metric=bytes_per_token", "--best=highest", *arguments]


def _sweep(parents, workdir, *arguments):
    return subprocess.run(_command(parents, workdir, *arguments), cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})


def test_a_sweep_reports_its_best_and_retries_only_failed_points(parents, tmp_path):
    grid = "--grid=tokenizer.vocab_size=280,90000,320"   # more than the text yields
    first = _sweep(parents, tmp_path, grid, "--parallel=2")
    *table, last = first.stdout.splitlines()
    result = json.loads(last)
    assert first.returncode == 1 and result["finished"] == 2 and result["failed"] == 1
    assert result["best"]["settings"] == {"tokenizer.vocab_size": "320"}
    assert [line.split()[0] for line in table] == ["vocab_size", "320", "280", "best:",
                                                   "failed:"]
    assert "vocab_size=90000: error: " in table[-1], "with the reason"
    rows = [json.loads(line) for line in Path(result["results"]).read_text().splitlines()]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    assert rows[0]["metrics"]["skipped"] is False
    assert (tmp_path / "vocab_size=280" / "tokenizer" / "tokenizer.json").exists()

    second = _sweep(parents, tmp_path, grid)
    rows = [json.loads(line) for line in Path(result["results"]).read_text().splitlines()]
    assert second.returncode == 1 and rows[0]["metrics"]["skipped"] is True


def test_a_second_grid_adds_to_the_results(parents, tmp_path):
    def sweep(*arguments):
        done = _sweep(parents, tmp_path, *arguments)
        result = json.loads(done.stdout.splitlines()[-1])
        rows = [json.loads(line) for line in Path(result["results"]).read_text().splitlines()]
        return done, result, [row["point"] for row in rows]

    sweep("--grid=tokenizer.vocab_size=280,300")
    done, result, names = sweep("--grid=tokenizer.vocab_size=290",
                                "--grid=tokenizer.max_bytes=300000")
    assert (result["points"], result["finished"], result["earlier"]) == (1, 1, 2)
    assert sorted(names) == [
        "vocab_size=280", "vocab_size=290,max_bytes=300000", "vocab_size=300"]
    assert done.stdout.splitlines()[0].split() == ["vocab_size", "max_bytes", "bytes_per_token",
                                                   "points"]
    assert len(done.stdout.splitlines()) >= 5 and "best: " in done.stdout
    done, result, names = sweep("--grid=tokenizer.vocab_size=290",
                                "--config.tokenizer.max_bytes=200000")
    assert result["earlier"] == 0 and len(names) == 4
    assert "3 earlier points had other stages or another config" in done.stderr


@pytest.mark.parametrize("arguments, line", [
    ([], "--grid, --zip, --random: are all missing"),
    (["--grid=tokenizer.vocabsize=1"], "point vocabsize=1: --config: no such field: 'vocabsize'"),
    (["--grid=tokenizer.vocab_size=300,x"], "point vocab_size=x: flag --config.tokenizer.vocab_s"),
    (["--grid=tokenizer.vocab_size=-1"], "point vocab_size=-1: tokenizer.vocab_size=-1: must be"),
    (["--grid=tokenizer.vocab_size=300", "--parents="], "--parents: is missing, and none of"),
    (["--grid=tokenizer.vocab_size=300", "--parents=/nowhere"], "no finished artifact at /nowhere"),
    (["--grid=tokenizer.vocab_size=300", "--point=1"], "--point=1: is not among 0 to 0"),
])
def test_a_sweep_that_cannot_run_is_one_line_and_runs_nothing(parents, tmp_path, arguments, line):
    done = _sweep(parents, tmp_path / "none", *arguments)
    assert done.returncode == 2 and not done.stdout, done.stderr
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and line in errors[0], done.stderr
    assert not (tmp_path / "none").exists()


def test_a_job_array_runs_one_point_in_each_task(parents, tmp_path):
    grid = "--grid=tokenizer.vocab_size=280,90000"
    done = _sweep(parents, tmp_path, grid, "--launcher=slurm", "--parallel=2",
                  f"--out={tmp_path / 'sweep.sbatch'}", "--sbatch=--partition=cpu")
    assert done.returncode == 0, done.stderr
    script = (tmp_path / "sweep.sbatch").read_text()
    assert "#SBATCH --array=0-1%2\n" in script and "#SBATCH --partition=cpu\n" in script
    codes = [subprocess.run(
        ["bash", str(tmp_path / "sweep.sbatch")], capture_output=True,
        env=os.environ | {"SLURM_ARRAY_TASK_ID": str(task), "JAX_NUM_CPU_DEVICES": "1"}
        ).returncode for task in range(2)]
    assert codes == [0, 1]
    table = _sweep(parents, tmp_path, grid, "--launcher=none")
    assert table.returncode == 1 and json.loads(table.stdout.splitlines()[-1])["failed"] == 1


def test_an_interrupted_sweep_ends_its_processes_and_starts_no_more(parents, tmp_path):
    process = subprocess.Popen(
        _command(parents, tmp_path, "--grid=tokenizer.vocab_size=" + ",".join(
            str(size) for size in range(280, 300))), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and not stdout, stderr
    assert 1 <= len(list(tmp_path.iterdir())) < 20
