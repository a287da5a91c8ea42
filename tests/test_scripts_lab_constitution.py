"""The experiment on a rule as the critic: its stages' fields, its table, and what is refused."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from core import points
from core.artifacts import write_json, write_jsonl
from core.errors import UserError
from scripts.lab import constitution

PLAN = constitution.Plan(Path("model"), Path("corpus"), num_prompts=4, num_rounds=1,
                         max_new_tokens=8, max_words=2)


def test_every_field_is_one_of_its_stages_config():
    stages = constitution.list_stages(PLAN, Path("out"))
    assert [stage.modules[0] for stage in stages] == [
        "align.constitution", "align.sft", "align.rounds", "align.rounds"]
    for stage in stages:
        chosen, *fields = stage.arguments
        path, _, variant = chosen.removeprefix("--config=").partition(":")
        config = import_module(path.removesuffix(".py").replace("/", ".")).get_config(variant)
        for field in fields:
            section = config
            *names, last = field.removeprefix("--config.").partition("=")[0].split(".")
            for name in names:
                section = section[name]
            # A task that a config does not name yet may be added.
            assert last in section or names[-1] == "tasks", field


def test_the_lines_start_from_the_model_and_from_its_revisions():
    *_, preferences, revisions = constitution.list_stages(PLAN, Path("out"))
    assert "--config.rounds.model=model" in preferences.arguments
    assert "--config.rounds.model=out/supervised/sft" in revisions.arguments
    assert preferences.folder != revisions.folder


def test_a_row_counts_words_of_the_measured_answers(tmp_path):
    rounds = tmp_path / "rounds"
    answers = ["one two", "one two three four", "one"]
    for number, kept in enumerate((3, 2)):
        (rounds / str(number) / "measured").mkdir(parents=True)
        write_jsonl(rounds / str(number) / "measured" / "answers.jsonl",
                    [{"answer": answer} for answer in answers[:kept]])
    write_jsonl(rounds / "rounds.jsonl", [
        {"round": 0, "ended_frac": 0.5, "kl": 0.0},
        {"round": 1, "ended_frac": 1.0, "kl": 0.25, "win_rate": 0.75}])
    rows = constitution.read_line(tmp_path, max_words=2)
    assert rows[0] == pytest.approx({"kept": 200 / 3, "words": 7 / 3, "ended": 50, "kl": 0})
    assert rows[1] == pytest.approx(
        {"kept": 50, "words": 3, "ended": 100, "kl": 0.25, "win_rate": 75})
    table = constitution.format_table({"preferences": rows}).splitlines()
    assert table[2] == "| preferences | 0 | 66.7 | 2.3 | 50.0 |  | 0.0 |"
    assert table[3] == "| preferences | 1 | 50.0 | 3.0 | 100.0 | 75.0 | 0.2 |"


@pytest.mark.parametrize("given, expected", [
    ({"model": ""}, "--model: is missing"), ({"parents": ""}, "--parents: is missing"),
    ({"out": ""}, "--out: is missing"), ({}, "has no folder `corpus`")])
def test_a_missing_flag_or_folder_is_refused(tmp_path, given, expected):
    flags = {"model": "m", "parents": str(tmp_path), "out": "o", "prompts": 1, "rounds": 1,
             "new_tokens": 1, "max_words": 1} | given
    with pytest.raises(UserError, match=expected):
        constitution.read_plan(SimpleNamespace(**flags))


def test_a_stage_that_failed_is_named(tmp_path, monkeypatch):
    class Failing:
        def __init__(self, label):
            del label

        def run(self, points, parallel):
            del parallel
            points[0].folder.mkdir(parents=True)
            write_json(points[0].folder / "result.json", {
                "status": "failed", "stage": "align.constitution", "error": "no such model"})

    (tmp_path / "corpus").mkdir()
    monkeypatch.setattr(points, "Runner", Failing)
    monkeypatch.setattr(constitution.flags, "FLAGS", SimpleNamespace(
        model="m", parents=str(tmp_path), out=str(tmp_path / "out"), prompts=1, rounds=1,
        new_tokens=1, max_words=1))
    with pytest.raises(UserError, match=r"align\.constitution: failed: no such model"):
        constitution.main()
