"""Traces of documents, documents removed by a rule, and differences of two corpora."""

import json
import subprocess
import sys

import pytest
from planted_corpus import (
    ALIKE,
    KEPT,
    SHORT,
    STAGES,
    document,
    removal,
    write_corpus,
    write_planted,
)

from core.artifacts import ROOT
from core.errors import UserError
from data import inspect
from data.corpus import Corpus
from data.inspection import diff as inspect_diff
from data.inspection.diff import compare
from data.inspection.trace import trace


@pytest.fixture
def corpus(tmp_path):
    return Corpus(write_planted(tmp_path / "corpus"))


def test_trace_of_a_kept_document_has_every_stage(corpus, capsys):
    report = trace(corpus, KEPT[:6])
    shown = capsys.readouterr().out
    assert report["verdict"] == "kept"
    assert report["thresholds"] == {"gopher_words": {"min": 10, "max": None}}
    assert [hit["item"] for hit in report["meta"]["hits"]] == [7]
    stages = [line.split()[1] for line in shown.splitlines() if line[:4].strip().isdigit()]
    assert stages == STAGES
    for line in ("cut 70 bytes of repeated_block", "redacted 3 × email",
                 f"kept from cluster {KEPT} of 3 documents", "bad_words 2",
                 "quality 0.7 (threshold 0.4)", "arc item 7 (ngram, 0.90 of it): </pre>",
                 "kept for training"):
        assert line in shown, line
    assert "\x1b" not in shown and "␛[31mred" in shown  # control characters are not printed


def test_trace_of_a_removed_document_ends_at_its_stage(corpus, capsys):
    report = trace(corpus, SHORT)
    shown = capsys.readouterr().out
    removal = report["verdict"], report["reason"], report["score"]
    assert removal == ("removed", "gopher_min_words", 3)
    assert "REMOVED: gopher_min_words = 3, the threshold is 10" in shown
    assert ">>  gopher_words" in shown and "near_dedup" not in shown
    trace(corpus, ALIKE)
    shown = capsys.readouterr().out
    assert f"near_duplicate = 0.91, resembles {KEPT}" in shown
    assert shown.index("it resembles") < shown.index("kept\n")  # its representative's beginning


@pytest.mark.parametrize(("beginning", "number"), [("nothing", 0), ("", 5)])
def test_ambiguous_and_unknown_ids_are_refused(corpus, beginning, number):
    with pytest.raises(UserError, match=f"{number} documents have such an id"):
        trace(corpus, beginning)


def test_rule_shows_removed_documents_with_score_and_threshold(corpus, capsys):
    shown = inspect.rule(corpus, "gopher_min_words", 5)
    assert shown == {"rule": "gopher_min_words", "stage": "rules", "documents": 1, "bytes": 85,
                     "shown": [{"id": SHORT, "score": 3.0, "threshold": 10}]}
    assert f"{SHORT}  gopher_min_words = 3  threshold 10" in capsys.readouterr().out
    assert inspect.rule(corpus, "near_duplicate", 1)["shown"][0]["threshold"] is None
    other = {"reason": "lines_min_words", "stage": "lines", "domain": "web"}
    assert corpus.threshold(other) is None  # 10 words are what the stage of the rules asks for
    listed = inspect.rules(corpus)
    assert listed["removed"] == {"gopher_min_words": 1, "near_duplicate": 1}
    assert listed["lost"]["empty"] == 5
    assert inspect.rule(corpus, "empty", 1)["shown"] == ["a.warc@9"]
    with pytest.raises(UserError, match=r"choose one of .*empty, gopher_min_words, near_duplicate"):
        inspect.rule(corpus, "nonsense", 5)


def _pair(folder):
    """Two corpora: b's threshold is higher, it cuts more, and one page is not in both."""
    same = [document(f"same{i:028d}", f"same {i}") for i in range(20)]
    a = write_corpus(folder / "a", [
        *same, document("11" * 16, "now short"), document("22" * 16, "one\ntwo\nthree"),
        document("33" * 16, "only here")])
    b = write_corpus(
        folder / "b", [*same, document("22" * 16, "one\nthree"), document("44" * 16, "came")],
        removed=[removal("11" * 16, "now", "rules", "gopher_min_words", 2.0),
                 removal("22" * 16, "one\ntwo\nthree", "rules", "exact_duplicate", 1.0),
                 removal("55" * 16, "came and went", "rules", "gopher_min_words", 3.0)])
    return Corpus(a), Corpus(b)


@pytest.mark.parametrize("partition_documents", [1 << 20, 4])
def test_diff_finds_every_difference_once(tmp_path, capsys, monkeypatch, partition_documents):
    monkeypatch.setattr(inspect_diff, "PARTITION_DOCUMENTS", partition_documents)
    a, b = _pair(tmp_path)
    result = compare(a, b, 2)
    assert {name: result[name] for name in (
        "documents_a", "documents_b", "same", "only_a", "only_b", "verdict_changed",
        "text_changed")} == {
            "documents_a": 23, "documents_b": 24, "same": 20, "only_a": {"kept": 1},
            "only_b": {"kept": 1, "gopher_min_words": 1},
            "verdict_changed": {"kept -> gopher_min_words": 1}, "text_changed": {"kept": 1}}
    shown = capsys.readouterr().out
    assert "line 2\n    A two\n    B three" in shown and "gopher_min_words = 2" in shown
    rows = {line[:44].strip(): line[44:].split() for line in shown.splitlines()[1:12]}
    assert list(rows) == ["read", *STAGES[:2], "exact_duplicate", "gopher_min_words", *STAGES[2:]]
    assert rows["rules"] == ["23", "22", "-1"] and rows["gopher_min_words"] == ["0", "2", "+2"]


def test_diff_of_a_corpus_with_itself_is_empty(corpus, capsys):
    result = compare(corpus, corpus, 2)
    assert result["same"] == 5 and not any(result[change] for change in inspect_diff.CHANGES)
    assert capsys.readouterr().out.count("+0") >= 7


def test_command_line_ends_in_json_and_bad_input_in_one_line(corpus):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "data.inspect", *words], cwd=ROOT,
                              capture_output=True, text=True)

    done = run("card", f"--corpus={corpus.folder}")
    page = corpus.folder / "report.html"
    assert json.loads(done.stdout.splitlines()[-1]) == {"card": str(page)} and page.exists()
    for words, text in ((("frob",), "`rules`, `rule NAME`"), (("rules",), "--corpus: is missing"),
                        (("diff", "nowhere", str(corpus.folder)), "nowhere: holds no corpus")):
        done = run(*words)
        assert done.returncode == 2 and text in done.stderr and done.stderr.count("\n") == 1
