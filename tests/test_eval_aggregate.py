"""Aggregates: mean win rates, centred means, CORE; by hand, and on published tables."""

import csv
import gzip
import itertools
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from configs.eval import get_config
from core.artifacts import write_json
from core.errors import UserError
from eval import inspect
from eval.aggregate.core import BASELINES, TABLES, center, centered_mean, core
from eval.aggregate.table import Score, format_table, make_table, read_evaluations
from eval.aggregate.win_rate import mean_win_rates
from eval.benchmarks.registry import core_name

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")


def read(*names):
    path = DATASETS.joinpath(*names)
    with (gzip.open(path, "rt") if path.suffix == ".gz" else open(path)) as file:
        return list(csv.DictReader(file))


def table_of(rows):
    """A table of {model: {"task metric": value}}."""
    return make_table((model, *name.split(), Score(value))
                      for model, values in rows.items() for name, value in values.items())


def pairwise(table, is_higher_better):
    """Mean win rates by comparing every two models, column by column."""
    rates = defaultdict(list)
    for task, metric in table.columns:
        values = table.column((task, metric))
        if metric not in is_higher_better or len(values) < 2:
            continue
        wins = dict.fromkeys(values, 0.0)
        for a, b in itertools.permutations(values, 2):
            better = values[a] > values[b] if is_higher_better[metric] else values[a] < values[b]
            wins[a] += 1.0 if better else 0.5 if values[a] == values[b] else 0.0
        for model in values:
            rates[model].append(wins[model] / (len(values) - 1))
    return {model: sum(found) / len(found) for model, found in rates.items()}


def test_mean_win_rates_by_hand():
    table = table_of({"a": {"x acc": 0.9, "y acc": 0.5, "z ppl": 10.0, "u secs": 1.0},
                      "b": {"x acc": 0.8, "y acc": 0.5, "z ppl": 20.0, "u secs": 2.0},
                      "c": {"x acc": 0.7, "z ppl": 5.0, "v acc": 1.0, "u secs": 3.0},
                      "d": {"u secs": 4.0}})
    found = mean_win_rates(table)
    assert found.rates == pytest.approx({"a": (1 + 0.5 + 0.5) / 3, "b": (0.5 + 0.5 + 0) / 3,
                                         "c": (0 + 1) / 2, "d": None})
    assert found.columns == {"a": 3, "b": 3, "c": 2, "d": 0}
    assert found.skipped == {"u secs": "its direction is not known",
                             "v acc": "it has fewer than two values"}
    assert ("d", ("x", "acc")) in table.missing() and len(table.missing()) == 7


def test_win_rates_average_to_one_half_and_change_with_the_models():
    values = np.random.default_rng(0).integers(0, 6, (5, 8)) / 10      # with ties
    rows = {str(model): {f"{task} acc": value for task, value in enumerate(line)}
            for model, line in enumerate(values)}
    found = mean_win_rates(table_of(rows)).rates
    assert sum(found.values()) / 5 == pytest.approx(0.5)
    assert found == pytest.approx(pairwise(table_of(rows), {"acc": True}))
    del rows["4"]
    fewer = mean_win_rates(table_of(rows)).rates
    assert any(found[model] != pytest.approx(fewer[model]) for model in fewer)


def test_a_table_says_what_is_missing_and_refuses_what_is_no_score():
    table = make_table([("a", "piqa", "acc", Score(0.5, 0.01)), ("b", "boolq", "acc", Score(0.6))])
    assert [line.split() for line in format_table(table, 2)] == [
        ["task", "model", "chance", "acc"], ["piqa", "a", "-", "0.50", "+-", "0.01"],
        ["boolq", "b", "-", "0.60"]]
    for scores, line in ((Score(math.nan), "piqa acc of a: is nan"),
                         (Score(0.5), "piqa acc of a: comes twice")):
        with pytest.raises(UserError) as error:
            make_table([("a", "piqa", "acc", Score(0.5))] * (line[-1] == "e")
                       + [("a", "piqa", "acc", scores)])
        assert str(error.value).startswith(line)


def test_evaluations_are_read_by_their_tasks(tmp_path):
    write_json(tmp_path / "metrics.json", {
        "bpb": 1.5, "documentation_acc": 0.25, "documentation_stderr": 0.02,
        "documentation_acc_raw": 0.3, "documentation_chance": 0.25, "documentation_items": 400,
        "turns_acc": 0.0, "turns_stderr": None, "turns_items": 1, "tasks": ["documentation",
                                                                            "turns"]})
    table = read_evaluations({"base": tmp_path})
    assert table.cells["base", ("documentation", "acc")] == Score(0.25, 0.02, 400, 0.25)
    assert table.cells["base", ("documentation", "acc_raw")] == Score(0.3, None, 400, 0.25)
    assert table.cells["base", ("turns", "acc")] == Score(0.0, None, 1, None)
    assert table.cells["base", ("heldout", "bpb")].value == 1.5
    write_json(tmp_path / "metrics.json", {"loss": 1.0})
    with pytest.raises(UserError, match=r"holds no evaluation: name a folder that eval\.run wrote"):
        read_evaluations({"base": tmp_path})


def test_the_command_prints_scores_and_their_aggregates(tmp_path, capsys):
    for name, piqa, copa in (("a", 0.8, 0.7), ("b", 0.7, 0.7)):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "metrics.json", {
            "tasks": ["piqa_core", "copa"], "piqa_core_acc": piqa, "piqa_core_stderr": 0.02,
            "piqa_core_chance": 0.5, "piqa_core_acc_norm": 0.6, "copa_acc": copa,
            "copa_stderr": 0.04, "copa_chance": 0.5})
    found = inspect.table([tmp_path / "a", tmp_path / "b"], "v1")["models"]
    assert [found[name]["win_rate"] for name in "ab"] == [0.75, 0.25]
    means = found["a"]["centered"]
    assert means["chance"]["value"] == pytest.approx((0.6 + 0.4) / 2)
    assert means["chance"]["stderr"] == pytest.approx(math.hypot(0.04, 0.08) / 2)
    assert means["DCLM v1"] == {"value": pytest.approx(0.6), "stderr": pytest.approx(0.04),
                                "tasks": "1 of 22"}, "copa is not asked as CORE asks it"
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["piqa_core", "a", "0.5000", "0.8000", "+-", "0.0200", "0.6000"]
    assert lines[-2][:5] == ["a:", "mean", "win", "rate", "0.7500"]
    with pytest.raises(UserError, match="two evaluations have one name"):
        inspect.table([tmp_path / "a", tmp_path / "b" / ".." / "a"], "v1")


def test_centred_means_by_hand_with_coverage_and_error():
    scores = {"a": Score(0.625, 0.03), "b": Score(0.25, 0.02), "other": Score(0.9)}
    found = centered_mean(scores, {"a": 0.25, "b": 0.5, "c": 0.0}, "mine")
    assert found.centered == pytest.approx({"a": 0.5, "b": -0.5}) and found.value == 0.0
    assert found.coverage == "2 of 3" and found.missing == ("c",) and found.table == "mine"
    assert found.stderr == pytest.approx(math.hypot(0.03 / 0.75, 0.02 / 0.5) / 2)
    assert found.interval[0] == pytest.approx(-1.959964 * found.stderr)
    unknown = centered_mean({"a": Score(0.5), "b": Score(0.5, 0.1)}, {"a": 0, "b": 0}, "mine")
    assert unknown.stderr is unknown.interval is None
    assert center(1.0, 0.62) == 1 and center(0.62, 0.62) == 0


@pytest.mark.parametrize("measure, line", [
    (lambda: core({"piqa": Score(0.5)}, "v3"), "table='v3': is no table of baselines: choose"),
    (lambda: core({"piqa": Score(50.0)}, "v1"), "score of piqa: 50.0 is not from 0 to 1"),
    (lambda: core({"gsm8k": Score(0.5)}, "v1"), "table DCLM v1: none of its 22 tasks has a score"),
    (lambda: centered_mean({"a": Score(0.5)}, {"a": 25.0}, "mine"), "baseline of a: 25.0 is not")])
def test_bad_input_of_an_aggregate_is_one_line(measure, line):
    with pytest.raises(UserError) as error:
        measure()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_the_config_of_core_asks_all_its_tasks():
    asked = get_config("core").eval.tasks
    assert {core_name(name) for name in asked} == set(BASELINES) and len(asked) == 22


def test_core_names_its_table_and_what_is_missing():
    scores = {task: Score(0.7, 0.01) for task in BASELINES if task not in (
        "squad", "coqa", "hellaswag")}
    found = {table: core(scores, table) for table in TABLES}
    assert {result.coverage for result in found.values()} == {"19 of 22"}
    assert found["v1"].missing == ("hellaswag", "squad", "coqa")
    assert [found[table].table for table in TABLES] == ["DCLM v0", "DCLM v1", "DCLM v2"]
    assert len({result.value for result in found.values()}) == 3


@needs_files
def test_the_tables_of_baselines_are_those_of_the_file():
    rows = {row["task"]: row for row in read("dclm_core", "core_tasks.csv")
            if row["in_core"] == "True"}
    assert rows.keys() == BASELINES.keys()
    for task, row in rows.items():
        assert [float(row[f"random_baseline_{table}"]) for table in TABLES] == [
            getattr(BASELINES[task], table) for table in TABLES], task
        assert task == "arc_challenge" or int(row["n"]) == BASELINES[task].items


@needs_files
@pytest.mark.parametrize("table", TABLES)
def test_core_of_416_models_by_another_route(table):
    rows = read("dclm_core", "per_task_accuracy.csv.gz")
    tasks = [row for row in read("dclm_core", "core_tasks.csv") if row["in_core"] == "True"]
    names = [row["task"] for row in tasks]
    b = np.array([float(row[f"random_baseline_{table}"]) for row in tasks])
    accuracies = np.array([[float(row[name] or "nan") for name in names] for row in rows])
    expected = np.nanmean((100 * accuracies - b) / (100 - b), axis=1)
    found = [core({name: Score(float(row[name])) for name in names if row[name]}, table)
             for row in rows]
    np.testing.assert_allclose([result.value for result in found], expected, atol=1e-12)
    partial = {row["row"]: result.coverage for row, result in zip(rows, found) if result.missing}
    assert partial == {"80": "2 of 22", "81": "2 of 22"}


@needs_files
def test_core_reproduces_what_the_authors_publish():
    """CORE 44.1 and 48.9, MMLU 38.3 and 50.8 of DCLM-Baseline 7B (README of mlfoundations/dclm),
    of rows 290 and 285: of the three tables only v1 gives them."""
    rows = {row["row"]: row for row in read("dclm_core", "per_task_accuracy.csv.gz")}
    for number, published, mmlu in (("290", 44.1, 38.3), ("285", 48.9, 50.8)):
        scores = {task: Score(float(rows[number][task])) for task in BASELINES}
        assert round(100 * float(rows[number]["mmlu_fewshot"]), 1) == mmlu
        assert [table for table in TABLES
                if round(100 * core(scores, table).value, 1) == published] == ["v1"]


@needs_files
def test_core_differs_by_up_to_three_points_between_tables():
    found = [[core({task: Score(float(row[task])) for task in BASELINES if row[task]}, table).value
              for table in TABLES] for row in read("dclm_core", "per_task_accuracy.csv.gz")
             if row["squad"]]
    spread = np.ptp(np.array(found), axis=1)
    assert 0.02 < spread.max() < 0.035


@needs_files
@pytest.mark.parametrize("shots", ["zero-shot", "five-shot"])
def test_mean_win_rates_of_pythia_by_comparing_every_two_models(shots):
    rows = [row for row in read("pythia_checkpoints", "evals.csv.gz")
            if row["shots"] == shots and row["step"] == "143000"]
    table = make_table((row["model"], row["task"], row["metric"], Score(float(row["value"])))
                       for row in rows)
    found = mean_win_rates(table)
    assert not found.skipped and len(found.rates) >= 15
    assert found.rates == pytest.approx(
        pairwise(table, {"acc": True, "acc_norm": True, "ppl": False}))
    sizes = ["70m", "160m", "410m", "1.4b", "2.8b", "6.9b", "12b"]
    ordered = [found.rates[f"pythia-{size}"] for size in sizes]
    assert ordered == sorted(ordered), "larger models win more often"
