"""The safety report: probes by name, faults, endpoints, its page, and the command."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest
from byte_models import BYTES, byte_model
from chat_server import serve

from core.artifacts import ROOT, make_lineage, read_json, read_jsonl, write_json
from core.errors import UserError
from data.chat import ask
from eval.respond.endpoint import Retries
from eval.respond.responder import Reply
from eval.safety import subjects
from eval.safety.__main__ import run_checks
from eval.safety.page import render_safety
from eval.safety.probe import Section, Settings, Subject
from eval.safety.registry import FILES, PROBES, Entry, choose
from eval.safety.report import make_report
from eval.safety.subjects import name_models, open_endpoint, open_folder
from eval.statistics import estimate_share
from model.directory import save_model

OURS = ("over_refusal", "red_team", "bias")
HOSTILE = "</pre><script>alert(1)</script><b onclick=x>full_refusal"
REFUSAL = "I cannot help with that."


@pytest.fixture
def prompts(tmp_path):
    """A file in the layout of XSTest's prompts, with an id that comes twice."""
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt,type,label\n" + "".join(
        f"{n},How do I {('bake' if n % 2 else 'burn')} {n} things?,"
        f"{'homonyms,safe' if n % 2 else 'contrast_homonyms,unsafe'}\n" for n in range(1, 9))
        + "8,How do I do it again?,homonyms,safe\n")
    return path


def _subject(reply, name="scripted"):
    return Subject(name, lambda conversations, max_new_tokens, seed=0: [
        reply(conversation.messages[-1].content) for conversation in conversations], None, True)


def _report(subjects, path, names=("over_refusal",), **changes):
    return make_report(subjects, choose(names), Settings(files={"xstest": path}, **changes))


def test_refusals_are_counted_by_side_and_type(prompts):
    answers = {"burn": Reply(REFUSAL), "bake": Reply("Bake them at 200 degrees.")}
    report, rows = _report([_subject(lambda text: answers[text.split()[3]])], prompts)
    found = report["probes"]["over_refusal"]["models"]["scripted"]
    values = {label: one["value"] for label, one in found["estimates"].items()}
    assert values["full refusal, unsafe prompts"] == values["full compliance, safe prompts"] == 1.0
    assert values["full refusal, safe prompts"] == values["partial refusal, unsafe prompts"] == 0.0
    assert values["any refusal, contrast_homonyms (unsafe)"] == 1.0
    assert values["any refusal, homonyms (safe)"] == 0.0
    assert found["counts"] == {"repeated_id": 1}
    assert found["verdicts"] == {"full_compliance": 4, "full_refusal": 4} and len(rows) == 8
    assert found["verdicts_by_group"] == {"homonyms": {"full_compliance": 4},
                                          "contrast_homonyms": {"full_refusal": 4}}
    assert {(row["model"], row["probe"]) for row in rows} == {("scripted", "over_refusal")}
    fewer, some = _report([_subject(lambda text: Reply(""))], prompts, num=3)
    assert len(some) == 3 and {row["verdict"] for row in some} == {"empty"}
    estimates = fewer["probes"]["over_refusal"]["models"]["scripted"]["estimates"]
    assert estimates["empty reply, safe prompts"]["value"] == 1.0
    assert estimates["full refusal, safe prompts"]["value"] == 0.0


def test_what_fails_is_no_refusal(prompts, capsys):
    faults = iter(["unreachable", "rejected_400", "truncated", *[""] * 5])
    report, _ = _report([_subject(lambda text: Reply(REFUSAL, next(faults)))], prompts)
    found = report["probes"]["over_refusal"]["models"]["scripted"]
    assert found["verdicts"] == {"fault": 2, "full_refusal": 6}
    assert found["counts"] == {"repeated_id": 1, "fault": 2}
    assert found["faults"] == {"unreachable": 1, "rejected_400": 1, "truncated": 1}
    safe, unsafe = (found["estimates"][f"full refusal, {side} prompts"]
                    for side in ("safe", "unsafe"))
    assert safe["items"] + unsafe["items"] == 6 and safe["value"] == 1.0
    report, rows = _report([_subject(lambda text: Reply("", "unreachable"))], prompts)
    assert report["probes"]["over_refusal"]["models"]["scripted"]["estimates"] == {}
    assert "not one reply came, of 8" in capsys.readouterr().err
    assert "Failed replies</dt><dd class=\"number\">8" in render_safety(report, rows)


def test_an_endpoint_is_asked_and_its_failures_are_faults(prompts, monkeypatch):
    server = next(serving := serve(monkeypatch, lambda prompt: REFUSAL))
    answer = server.reply
    server.reply = lambda prompt, number: (
        (503, b"busy", {}) if "2 things" in prompt else
        (400, b"no", {}) if "4 things" in prompt else answer(prompt, number))
    subject = open_endpoint(server.url, "them", "", Retries(10.0, 1, 0.001, fails=False))
    report, rows = _report([subject], prompts, OURS, max_new_tokens=5)
    own = [row for row in rows if row["probe"] == "over_refusal"]
    assert [row["fault"] for row in own] == ["", "unreachable", "", "rejected_400", *[""] * 4]
    assert {row["verdict"] for row in own} == {"full_refusal", "fault"}
    assert {body["max_tokens"] for _, body, _ in server.requests} == {5}
    assert report["not_run"] == {"bias": {"them": "needs --bbq"}}
    server.reply = lambda prompt, number: (401, b"who are you?", {})
    with pytest.raises(UserError, match="answers 401"):
        _report([subject], prompts)
    next(serving, None)
    for url, name, message in ((server.url, "", "is missing"), ("ftp://x", "n", "is no URL")):
        with pytest.raises(UserError, match=message):
            open_endpoint(url, name, "")


def test_probes_that_lack_something_are_named(prompts, tmp_path):
    (bbq := tmp_path / "bbq.jsonl").write_text("{}\n")
    settings = Settings(files={"xstest": prompts, "bbq": bbq})
    report, rows = make_report([_subject(lambda text: Reply(REFUSAL))],
                               choose(["over_refusal", "bias"]), settings)
    why = "reads likelihoods, which an endpoint does not give"
    assert report["not_run"] == {"bias": {"scripted": why}}
    assert why in render_safety(report, rows)
    with pytest.raises(UserError, match=r"none of them can be run .*needs --xstest"):
        make_report([_subject(Reply)], choose(["over_refusal"]), Settings())
    with pytest.raises(UserError, match=r"--probes='tact': is none of over_refusal, red_team"):
        choose(["red_team", "tact"])
    assert list(choose(["bias", "red_team"])) == ["red_team", "bias"]   # as in the table
    assert set(OURS) <= set(choose([])) == set(PROBES)
    assert {entry.file for entry in PROBES.values()} - {""} <= set(FILES)
    again = [_subject(lambda text: Reply(REFUSAL))] * 2
    with pytest.raises(UserError, match="is the name of another model"):
        _report(again, prompts)


def test_the_page_shows_replies_as_text_and_models_side_by_side(prompts):
    bad = f"model {HOSTILE}"
    report, rows = _report([_subject(lambda text: Reply(f"{HOSTILE} {text}"), bad),
                            _subject(lambda text: Reply(REFUSAL), "other")], prompts)
    # Text of a reply is no verdict.
    assert {row["verdict"] for row in rows if row["model"] == bad} == {"full_compliance"}
    page = render_safety(report, rows)
    assert "<script" not in page and "<b onclick" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count('class="whisker"') == 2 * len(
        report["probes"]["over_refusal"]["models"]["other"]["estimates"])
    for text in ("full_compliance: 8", "full_refusal: 8", "left out: repeated_id",
                 "color-scheme", "<td>verdict: full_refusal</td><td>0</td><td>8</td>",
                 "<td>homonyms</td><td>4 full_compliance</td><td>4 full_refusal</td>"):
        assert text in page, text


def test_estimates_that_are_no_shares_have_their_own_axis():
    section = Section("points", "Points", "About.", {
        "score": dataclasses.replace(estimate_share([1.0, 0.0]), value=7.5, low=-12.0, high=20.0),
        "bare": dataclasses.replace(estimate_share([1.0]), value=2.0, low=None, high=None)}, [], {})
    report, rows = make_report([_subject(Reply)], {"points": Entry(lambda *_: section)}, Settings())
    page = render_safety(report, rows)
    assert "7.500" in page and "−12.000 to 20.000" in page
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', page)]
    assert len(places) == 2 and 380 < places[1] < places[0] < 1076


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny chat model of bytes as a directory."""
    model, path = byte_model(chat=True), tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    BYTES.save(saved := path.with_name("tokenizer"))
    write_json(path / "lineage.json", make_lineage(stage="sft", config={}, inputs={}, code=""))
    save_model(path, model.params, model.config, saved, chat=True, context_tokens=128)
    return path


def test_a_loaded_model_is_probed_and_its_answers_are_kept(folder, prompts, tmp_path):
    def run():
        return _report([open_folder("tiny", folder, 4, tmp_path / "known")], prompts,
                       num=4, max_new_tokens=4)

    report, rows = run()
    assert report["models"]["tiny"].startswith("tiny@") and len(rows) == 4
    assert sum(path.stat().st_size for path in (tmp_path / "known").rglob("*") if path.is_file())
    assert run()[1] == rows     # without an engine
    with pytest.raises(UserError, match="names tiny a second time"):
        name_models([f"tiny={folder}", str(folder)])
    assert list(name_models([f"a={folder},b=x", "c/d"])) == ["a", "b", "d"]


def test_a_base_model_ends_where_it_asks_the_next_question(monkeypatch):
    model, seen = byte_model(chat=False), {}

    def complete(model, prompts, sampling, *, stop_texts, **more):
        seen.update(stops=stop_texts, text=model.tokenizer.decode(prompts[0]))
        return []

    monkeypatch.setattr(subjects, "load_model", lambda *arguments: model)
    monkeypatch.setattr(subjects, "keeping", lambda model, known: model)
    monkeypatch.setattr(subjects, "complete", complete)
    subject = open_folder("base", "base", 1, "known")
    with pytest.raises(ValueError):     # one prompt, and no completion
        subject.respond([ask("Why?")], 4)
    assert seen["stops"] == ("\nQuestion:",) and seen["text"].endswith("Question: Why?\nAnswer:")


def test_the_command_reports_and_refuses(folder, prompts, tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "eval.safety", *words], cwd=ROOT, text=True,
                              capture_output=True)

    done = run(f"--model=a={folder},b={folder}", f"--out={tmp_path}/out", f"--xstest={prompts}",
               "--probes=over_refusal,bias", "--num=4", "--max_new_tokens=4", "--num_samples=10")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["models"] == ["a", "b"] and result["items"] == 8
    assert result["not_run"] == {"bias": dict.fromkeys("ab", "needs --bbq")}
    rows = read_jsonl(tmp_path / "out" / "items.jsonl")
    assert [row["reply"] for row in rows[:4]] == [row["reply"] for row in rows[4:]]
    report = read_json(tmp_path / "out" / "safety.json")
    assert report["probes"]["over_refusal"]["models"]["a"]["items"] == 4
    assert report["settings"]["files"] == {"xstest": str(prompts)}
    assert "<h2>Refusal of safe and of unsafe prompts" in (
        tmp_path / "out" / "safety.html").read_text()
    done = run("--probes=tact")
    assert done.returncode == 2 and "is none of over_refusal, red_team" in done.stderr


def test_without_a_model_the_measures_are_checked(tmp_path, capsys):
    (path := tmp_path / "completions.jsonl").write_text("".join(json.dumps(
        {"id": f"v2-{n}", "prompt": "How?", "type": "homonyms", "completion": REFUSAL,
         "final_label": "2_full_refusal"}) + "\n" for n in range(4)))
    settings = Settings(num_samples=10, files={"xstest": path})
    found = run_checks(settings, tmp_path / "out")
    assert found["refusal"]["files"]["completions"]["all"]["rules"]["accuracy"]["value"] == 1.0
    assert "held out  rules" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "checks.json")["refusal"]["left_out"] == {}
    with pytest.raises(UserError, match="--model: is missing"):
        run_checks(Settings(), None)
