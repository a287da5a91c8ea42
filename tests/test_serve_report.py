"""The run book of synthetic runs: any part of a run, safe, deterministic, and open about gaps."""

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from ml_collections import ConfigDict
from report_runs import (
    ARTIFACTS,
    ATTACK,
    PARENTS,
    answers,
    change,
    write,
    write_artifact,
    write_evaluation,
    write_rows,
    write_run,
    write_training,
)

from core.artifacts import ROOT
from core.errors import UserError
from eval.statistics import paired_difference
from serve.report import write as stage
from serve.report.__main__ import show_comparison, show_run, show_sweep
from serve.report.evaluations import Estimate, read_evaluations, share, unpaired
from serve.report.graph import BOXES, place
from serve.report.runs import Run, find_run
from serve.report.sweep import is_sweep

VOID = {"meta"}
EVALUATIONS = "eval_base eval_sft"
SECTIONS = {"Training": "base sft reward dpo rl", "The funnel of corpus": "corpus",
            **dict.fromkeys(("Evaluations", "Bits per byte", "Length of answers",
                             "Questions and answers"), EVALUATIONS)}


class _Page(HTMLParser):
    """All elements of a page, which must be properly nested, and its texts with theirs."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.texts, self.shown = [], [], [], []
        self.feed(page)
        assert not self.open
        self.text = " ".join(self.texts)
        self.headings = [text for (name, _), text in self.shown if name == "h2"]

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, data):
        self.texts.append(data)
        if self.open:
            self.shown.append((self.open[-1], data))


@pytest.fixture
def run(tmp_path):
    """A whole run, and in it what is unfinished, set aside or none of its artifacts."""
    folder = tmp_path / "run"
    write_run(folder)
    return folder


def _part(run, tmp_path, *names):
    for name in names:
        shutil.copytree(run / name, tmp_path / "part" / name)
    return tmp_path / "part"


@pytest.mark.parametrize("names", ["base", "base sft", "corpus", "eval_sft", "sft rl",
                                   "corpus tokenizer tokens", "eval_base eval_sft base sft"])
def test_a_part_of_a_run_gets_the_sections_that_it_has_something_for(run, tmp_path, names):
    page, result = show_run(_part(run, tmp_path, *names.split()))
    assert set(result["artifacts"]) == set(names.split()) and not result["left_out"]
    expected = {title for title, needed in SECTIONS.items() if set(needed.split()) & {
        *names.split()}}
    assert {*_Page(page).headings} == expected | {"Where everything comes from"}


def test_a_whole_run_has_every_section_and_names_what_it_leaves_out(run):
    write_training(run / "more" / "round1" / "dpo", mark="dpo1", stage="dpo")
    write_artifact(run / "late.partial", stage="rl")
    write_artifact(run / "old.print-of", mark="old", stage="sft")
    (run / "torn").mkdir()
    (run / "torn" / "lineage.json").write_text("[1]")
    write_artifact(run / "early", stage="sft")
    change(run / "early" / "lineage.json", layout=1)
    (run / "sft" / "metrics.jsonl").write_text('{"loss": 1}\n')
    (run / "eval_dpo" / "open.jsonl").write_text("{")
    (run / "corpus" / "removed" / "part-00000.parquet").write_text("{")
    page, result = show_run(run)
    assert set(result["artifacts"]) == {*ARTIFACTS, "more/round1/dpo"}
    reasons = {"late.partial": "not finished", "old.print-of": "set aside", "torn": "JSON object",
               "early": "layout 1", "sft": "step", "eval_dpo": "open.jsonl", "corpus": "parquet"}
    assert set(result["left_out"]) == set(reasons)
    text = _Page(page).text
    for name, reason in reasons.items():
        assert reason in result["left_out"][name] and str(run) not in result["left_out"][name]
        assert name in text
    assert {*_Page(page).headings} == {*SECTIONS, "Where everything comes from"} - {
        "The funnel of corpus"}


def test_a_folder_without_an_artifact_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        find_run(tmp_path / "nowhere")
    write_artifact(tmp_path / "base.partial", stage="pretrain")
    with pytest.raises(UserError, match=r"holds no finished artifact.*not finished"):
        find_run(tmp_path)


def test_texts_of_documents_answers_and_configs_are_escaped(run):
    change(run / "base" / "lineage.json", command=f"python -m {ATTACK}")
    page = _Page(show_run(run)[0])
    assert not {"script", "img", "link", "iframe"} & {name for name, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    shown = [text for text in page.texts if "<script>alert('x')</script>" in text]
    assert len(shown) >= 2 * 2 + 4 * 4  # samples with their sources, and the answers of four models
    assert "url(http" not in show_run(run)[0] and "@import" not in show_run(run)[0]


def test_equal_artifacts_give_equal_bytes_in_any_order_of_answers(run, tmp_path):
    first = show_run(run)[0]
    for path in run.glob("eval_*/*.jsonl"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert show_run(run)[0] == first
    shutil.copytree(run, tmp_path / "copy" / "run")
    assert show_run(tmp_path / "copy" / "run")[0] == first


def test_the_stage_writes_the_same_page_of_its_parents_and_the_key_numbers(run):
    (run / "report.partial").mkdir()
    config = ConfigDict({"report": {"out": "report"}})
    numbers = stage.build(config, {name: run / name for name in ARTIFACTS}, run / "report.partial")
    written = (run / "report.partial" / "report.html").read_text()
    shutil.rmtree(run / "report.partial")
    assert written == show_run(run)[0]
    assert numbers["report"] == str(run / "report" / "report.html")
    assert numbers["verifiable_acc"] == {"base": 1 / 8, "sft": 5 / 8, "dpo": 6 / 8, "rl": 7 / 8}
    assert numbers["reward_accuracy"] == 0.75 and numbers["bpb"]["sft"] == pytest.approx(1.56)
    assert numbers["minutes"] == pytest.approx(13 * 30 / 60, abs=0.01)
    (run / "report.partial").mkdir()
    part = stage.build(config, {"base": run / "base"}, run / "report.partial")
    assert part["mc_acc"] == {} and part["base_bpb"] is None


def test_numbers_that_were_not_measured_are_named_so(run):
    change(run / "eval_dpo" / "metrics.json", win_rate=None, win_rate_ci=[None, None], bpb=None,
           open_stderr=None)
    change(run / "eval_base" / "metrics.json", xz_bpb=None, unigram_bpb=math.nan)
    change(run / "base" / "metrics.json", heldout_bpb=None, secs=None)
    write_rows(run / "dpo" / "metrics.jsonl", [])
    write_rows(run / "sft" / "metrics.jsonl", [{"step": 1, "loss": math.nan}])
    page = _Page(show_run(run)[0])
    assert "n/a" in page.text and page.text.count("No finite value was logged") == 2
    assert not {"nan", "nan%", "inf", "None"} & set(page.text.split())
    assert not any("nan" in attributes.get("style", "") for _, attributes in page.elements)


def test_parents_are_found_by_their_marks_and_another_of_the_name_is_reported(run):
    found = find_run(run)
    assert set(found.edges()) == {(parent, child) for child, parents in PARENTS.items()
                                  for parent in parents.values()}
    assert found.replaced_parents() == []
    names = [artifact.name for artifact in found.artifacts]
    assert all(names.index(parent) < names.index(child) for parent, child in found.edges())
    assert found.root(found.artifacts[names.index("rl")]).name == "base"
    change(run / "sft" / "lineage.json", inputs={"model": "another"})
    assert find_run(run).replaced_parents() == [("sft", "model")]
    assert "sft was built from another model" in show_run(run)[0]


def test_a_graph_of_any_shape_has_its_parents_above_and_room_in_each_row():
    names = [f"n{i}" for i in range(30)]
    edges = [(f"n{i // 3}", f"n{i}") for i in range(1, 20)] + [("n0", "n19"), ("n2", "n29")]
    places = place(names, edges)
    assert all(places[parent].row < places[child].row for parent, child in edges)
    spots = {(spot.row, spot.column) for spot in places.values()}
    assert len(spots) == 30 and max(column for _, column in spots) == BOXES - 1


def test_the_alignment_tax_is_counted_from_the_base_of_each_model(run):
    page = _Page(show_run(run)[0])
    rows = [text for (name, _), text in page.shown if name == "td"]
    place = rows.index("rl")
    assert rows[place:place + 4] == ["rl", "1.590", "base", "+0.080"]
    assert "base" not in [rows[i] for i in range(0, len(rows), 4)]


def test_models_stand_together_only_where_they_were_asked_the_same(run):
    write_evaluation(run / "eval_odd", "odd", 0.5, config={"seed": 7}, inputs={}, mark="odd",
                     stage="eval")
    page = _Page(show_run(run)[0])
    assert page.text.count("Apart from those above, as eval.seed is 0 and 7") == 2
    assert page.text.count("8 answers, right by the task") == 2


def test_held_out_measures_and_other_numbers_are_shown(run):
    found = {"heldout_sums": 0.7, "heldout_sums_low": 0.6, "heldout_sums_high": 0.8}
    before = {f"untouched_{key}": value - 0.3 for key, value in found.items()}
    change(run / "rl" / "metrics.json", heldout_sums_items=50, **found, **before)
    write_training(run / "ppo", stage="rl", inputs={"corpus": "mark-of-corpus"}, metrics=found | {
        "heldout_sums_items": 50})
    write_training(run / "few", stage="rl", inputs={"corpus": "mark-of-corpus"}, metrics=found | {
        "heldout_sums_items": 9})
    change(run / "pairs" / "metrics.json", best_of_n={"4": {"reward": 0.25}}, win_rate=0.5,
           win_rate_low=0.4, win_rate_high=0.6)
    page = _Page(show_run(run)[0])
    assert {"Held out", "Other numbers"} <= set(page.headings)
    keys = [text for (name, attributes), text in page.shown if name == "span"
            and attributes.get("class", "").startswith("key")]
    assert [key for key in keys if key in ("rl, before", "ppo", "few")] == [
        "rl, before", "ppo", "few"]
    assert "Apart from those above, as heldout_sums_items is 50 and 9" in page.text
    cells = [text for (name, _), text in page.shown if name == "td"]
    assert cells[cells.index("best of n/4/reward") + 1] == "0.250"
    assert cells[cells.index("win rate") + 1] == "50.0 % (40.0 % to 60.0 %)"


def test_families_and_shares_have_textbook_intervals(run):
    assert [share([0.0] * 10).low, share([0.0] * 10).high] == pytest.approx([0, 0.27753], abs=1e-5)
    write_rows(run / "eval_sft" / "verifiable.jsonl", answers(
        "verifiable", 8, [float(i in (0, 2, 3)) for i in range(8)], "sft"))
    [sft] = [one for one in read_evaluations(find_run(run)) if one.model == "sft"]
    assert sft.families("verifiable") == {"verifiable0": share([1, 1, 0, 0]),
                                          "verifiable1": share([0, 1, 0, 0])}


def _two(tmp_path, ours, theirs, **theirs_options):
    for name, scores, options in (("a", ours, {}), ("b", theirs, theirs_options)):
        write_evaluation(tmp_path / name / "eval", "base", scores, mark=f"{name}1", stage="eval",
                         inputs={"tokens": "t", "corpus": "c"}, **options)
    return [tmp_path / "a", tmp_path / "b"]


def test_differences_are_paired_where_the_questions_are_the_same(tmp_path):
    ours, theirs = [1, 0, 1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]
    folders = _two(tmp_path, ours, theirs)
    page, result = show_comparison(folders)
    assert result["measures"]["eval: verifiable"] == {"a": 0.5, "b": 7 / 8}
    known = paired_difference(theirs, ours)
    text = f"{100 * known.low:.1f} to {100 * known.high:.1f}".replace("-", "−")
    assert f"+37.5 points  {text}  paired" in _Page(page).text
    assert result["left_out"] == []
    for folder in folders:
        (folder / "eval" / "verifiable.jsonl").unlink()
    page, result = show_comparison(folders)
    assert "eval: verifiable" in result["measures"] and "unpaired" in _Page(page).text


def test_an_unpaired_interval_is_newcombes():
    # Newcombe 1998, table II, example (a), method 10: 56/70 less 48/80 is 0.0524 to 0.3339.
    ours, theirs = share([1] * 48 + [0] * 32), share([1] * 56 + [0] * 14)
    found = unpaired(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert unpaired(Estimate(1.0), Estimate(2.0)).kind == ""


@pytest.mark.parametrize(("options", "reason"), [
    ({"config": {"seed": 7}}, "eval.seed is 0 and 7"),
    ({"config": {"tasks": {"verifiable": 9}}}, "eval.tasks.verifiable is 8 and 9"),
    ({"config": {"prompts": "turns"}}, "eval.prompts is literal and turns"),
    ({"config": {"max_new_tokens": 8}}, "eval.max_new_tokens is 32 and 8")])
def test_what_was_asked_in_another_way_is_listed_and_not_compared(tmp_path, options, reason):
    page, result = show_comparison(_two(tmp_path, 0.5, 0.7, **options))
    assert "eval: verifiable" not in result["measures"]
    assert [line for line in result["left_out"] if line.startswith("eval verifiable")
            and line.endswith(f": a and b: {reason}")]
    assert reason in _Page(page).text and result["measures"]["eval: bits per byte"]


def test_other_questions_under_the_same_settings_are_not_compared(tmp_path):
    folders = _two(tmp_path, 0.5, 0.7)
    write_rows(folders[1] / "eval" / "verifiable.jsonl",
               [row | {"reference": "x"} if row["id"] == "3" else row
                for row in answers("verifiable", 8, 0.7, "base")])
    [reason] = show_comparison(folders)[1]["left_out"]
    assert reason == ("eval verifiable: a and b: verifiable: the questions is 8 and 8, of which 7 "
                      "are the same")


def test_bits_per_byte_of_other_texts_are_not_compared(tmp_path):
    folders = _two(tmp_path, 0.5, 0.7)
    lineage = json.loads((folders[1] / "eval" / "lineage.json").read_text())
    change(folders[1] / "eval" / "lineage.json", inputs=lineage["inputs"] | {"tokens": "u"})
    result = show_comparison(folders)[1]
    assert result["left_out"] == ["eval bits per byte: a and b: inputs.tokens is t and u"]
    # Other tokens of the same corpus hold the same pages out.
    for folder, mark in zip(folders, "tu"):
        write_artifact(folder / "tokens", stage="pack", inputs={"corpus": "c", "tokenizer": mark})
        change(folder / "tokens" / "lineage.json", build=mark)
    assert show_comparison(folders)[1]["left_out"] == []


def test_curves_are_laid_over_each_other_where_they_mean_the_same(tmp_path):
    for name, tokens in (("a", "t"), ("b", "t"), ("c", "u")):
        write_training(tmp_path / name / "base", inputs={"tokens": tokens}, config={
            "seed": ord(name)}, metrics={"heldout_bpb": 1.5})
    page, result = show_comparison([tmp_path / name for name in "ab"])
    text = _Page(page).text
    assert result["left_out"] == [] and result["measures"]["base: heldout bpb"] == {"a": 1.5,
                                                                                  "b": 1.5}
    assert "pretrain.seed" in text and "pretrain.tokens" not in text
    assert result["curves"] == 7    # one of them the accuracy of a task
    change(tmp_path / "b" / "base" / "lineage.json", runs=[
        {"run": {"pretrain": {"tasks": {"turns": 9}}}, "command": "c"}])
    assert show_comparison([tmp_path / name for name in "ab"])[1]["left_out"] == [
        "base curve of turns_acc: a and b: run.tasks is not set and {'turns': 9}"]
    result = show_comparison([tmp_path / name for name in "ac"])[1]
    assert result["measures"] == {} and result["curves"] == 2   # learning rate and gradient norm
    assert all("inputs.tokens is t and u" in reason for reason in result["left_out"])


def test_artifacts_of_other_names_belong_together_where_each_run_has_one(tmp_path):
    for name, own in (("a", "first"), ("b", "second")):
        write_training(tmp_path / name / own, stage="dpo", inputs={"pairs": "p"}, mark=own)
        write_artifact(tmp_path / name / f"only{own}", stage=own)
    page, result = show_comparison([tmp_path / "a", tmp_path / "b"])
    assert "first / second" in _Page(page).text and result["curves"] > 4
    assert "only in a: onlyfirst" in _Page(page).text


def test_runs_that_share_nothing_are_refused(tmp_path):
    write_training(tmp_path / "a" / "base")
    write_training(tmp_path / "b" / "sft")
    with pytest.raises(UserError, match=r"nothing is comparable.*same stage"):
        show_comparison([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "sft" / "metrics.jsonl").unlink()
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    with pytest.raises(UserError, match="nothing is comparable"):
        show_comparison([tmp_path / "b", tmp_path / "c"])
    with pytest.raises(UserError, match="twice"):
        show_comparison([tmp_path / "b", tmp_path / "c" / ".." / "b"])


def _write_sweep(folder):
    for rate in ("0.02", "0.1", "3e-3"):
        point = {"point": f"learning_rate={rate}", "settings": {
            "pretrain.optimizer.learning_rate": rate}, "stages": ["train.pretrain"], "shared": []}
        place = folder / point["point"]
        if rate == "0.1":
            write(place / "result.json", point | {"status": "failed", "stage": "train.pretrain",
                                                  "error": f"error: loss is nan {ATTACK}"})
            continue
        write_training(place / "base", loss=5 + float(rate), inputs={"tokens": "t"},
                       metrics={"heldout_bpb": 1 + float(rate), "steps": 20})
        write(place / "result.json", point | {"status": "finished", "metrics": {"steps": 20}})
    write_rows(folder / "results.jsonl", [{"point": "learning_rate=1", "settings": {
        "pretrain.optimizer.learning_rate": "1"}, "status": "missing"}])


def test_a_sweep_shows_points_curves_and_failures(tmp_path):
    _write_sweep(tmp_path)
    assert is_sweep(tmp_path)
    html, result = show_sweep(tmp_path)
    page = _Page(html)
    assert {key: result[key] for key in ("points", "finished", "failed", "missing")} == {
        "points": 4, "finished": 2, "failed": 1, "missing": 1}
    assert result["curves"] >= 4 and "script" not in {name for name, _ in page.elements}
    cells = [text for (name, attributes), text in page.shown
             if name in ("td", "span", "b") and text in ("3e-3", "0.02", "0.1", "1", "1.0030",
                                                         "1.0200")]
    assert cells[:6] == ["3e-3", "1.0030", "0.02", "1.0200", "0.1", "1"]   # in numbers' order
    assert [text for (name, _), text in page.shown if name == "b" and text.startswith("1.0")] == [
        "1.0030"]
    assert f"error: loss is nan {ATTACK}" in page.text
    (tmp_path / "learning_rate=0.02" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="is no point"):
        show_sweep(tmp_path)


def test_the_command_prints_its_figures_last(run, tmp_path):
    done = subprocess.run([sys.executable, "-m", "serve.report", str(run),
                           f"--out={tmp_path / 'book'}"], cwd=ROOT, capture_output=True, text=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["page"] == str(tmp_path / "book" / "report.html")
    assert set(last["artifacts"]) == set(ARTIFACTS)
    assert (tmp_path / "book" / "report.html").read_text() == show_run(run)[0]


def test_damaged_lineages_that_form_a_ring_are_shown(tmp_path):
    for name, parent in (("x", "y"), ("y", "x")):
        write_artifact(tmp_path / name, inputs={"model": f"mark-of-{parent}"}, stage="sft")
    assert show_run(tmp_path)[1]["artifacts"] == ["y", "x"]
    assert Run("none", {}).artifacts == []
