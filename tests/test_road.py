"""The quickstart command at smoke size, and names that the docs refer to."""

import json
import os
import re
import subprocess

import pytest

from core.artifacts import ROOT

LAST_LINE_KEYS = {"run_dir", "report", "minutes", "corpus_documents", "corpus_bytes", "base_bpb",
                  "unigram_bpb", "xz_bpb", "mc_acc", "verifiable_acc", "dpo_win_rate",
                  "dpo_win_rate_ci", "rl_win_rate", "rl_win_rate_ci"}


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A finished smoke-sized quickstart: its folder, and the JSON lines that its stages printed."""
    workdir = tmp_path_factory.mktemp("quickstart") / "run"
    done = subprocess.run(["bash", "scripts/quickstart.sh", "smoke", str(workdir)], cwd=ROOT,
                          env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_last_line_summarises_the_run(quickstart):
    workdir, lines = quickstart
    last = lines[-1]
    assert set(last) >= LAST_LINE_KEYS
    assert set(last["mc_acc"]) == set(last["verifiable_acc"]) == {"base", "sft", "dpo", "rl"}
    assert last["run_dir"] == str(workdir)
    assert os.path.getsize(last["report"]) > 10_000
    assert last["dpo_win_rate_ci"][0] <= last["dpo_win_rate"] <= last["dpo_win_rate_ci"][1]


def test_every_artifact_names_its_parents(quickstart):
    workdir, lines = quickstart
    folders = {line["path"] for line in lines}
    assert len(folders) == len(lines) == 14
    marks = {}
    for line in lines:
        lineage = json.loads((ROOT / line["path"] / "lineage.json").read_text())
        assert lineage["command"].startswith("python -m ") and "__" not in lineage["command"]
        marks[lineage["build"]] = line["stage"]
        own = {"embedded", "style", "page"}  # inputs that are no artifacts
        parents = {mark for field, mark in lineage["inputs"].items() if field not in own}
        assert parents <= set(marks), f"{line['stage']} was built before its parent"
    assert not list(workdir.glob("*.partial*"))


def test_finished_stages_are_skipped(quickstart):
    workdir, _ = quickstart
    again = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-m", "data.pack",
         "--config=configs/quickstart.py:smoke", f"--workdir={workdir}"],
        cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["skipped"] is True


def _inspect(*arguments):
    done = subprocess.run([str(ROOT / ".venv/bin/python"), "-m", "data.inspect", *arguments],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    return "\n".join(shown), json.loads(last)


def test_the_artifacts_can_be_inspected(quickstart):
    corpus, tokens = (f"--{name}={quickstart[0] / name}" for name in ("corpus", "tokens"))
    shown, result = _inspect("row", "pages", "0", tokens, "--row_length=128")
    assert result["row"] == 0 < result["rows"]
    assert "document 1" in shown and "weight 1" in shown
    _, result = _inspect("rules", corpus)
    assert result["removed"] == quickstart[1][0]["removed"]
    reason = next(iter(result["removed"]))
    shown, result = _inspect("rule", reason, corpus, "--num=1")
    history, _ = _inspect("doc", result["shown"][0]["id"], corpus)
    assert reason in shown and reason in history


@pytest.mark.parametrize("name", ["README.md", "docs/curation.md"])
def test_docs_name_modules_configs_and_files_that_exist(name):
    text = (ROOT / name).read_text()
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert modules
    for module in modules:
        place = ROOT / module.replace(".", "/")
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), module
    for path in re.findall(r"(?:bash |--config=|\]\()((?:scripts|configs|docs)/[\w./]+)", text):
        assert (ROOT / path).exists(), path
