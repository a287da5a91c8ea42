"""Constitutional AI as a stage: with an endpoint, with a rule, killed and resumed, refused."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest
from chat_server import serve
from ml_collections import ConfigDict

from align.constitution import STAGE, build
from configs.constitution import get_config
from core.artifacts import LAYOUT, ROOT, read_jsonl, write_json
from core.errors import UserError
from data.chat import ask
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.tokenizers.bpe import BytePairTokenizer
from model.directory import save_model

NUM_PROMPTS = 12


def reply(prompt, number=0):
    """A model that answers, criticises and revises, and prefers the longer answer."""
    if "Options:" in prompt:
        first, second = prompt.partition("(A) ")[2].split("\n\nReply")[0].split("\n\n(B) ")
        return "(A)" if len(first) > len(second) else "(B)"
    if prompt.startswith("Write"):
        return f"Revision: better by {prompt[:30]}"
    if prompt.startswith("question"):
        return f"answer to {prompt}" + "!" * (number % 2)
    return f"I criticise by {prompt[:30]}"


@pytest.fixture
def server(monkeypatch):
    yield from serve(monkeypatch, reply)


@pytest.fixture
def make_config(server, tmp_path):
    """A function of changes: the section with one endpoint that answers and criticises."""
    (tmp_path / "prompts.jsonl").write_text("".join(
        json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(NUM_PROMPTS)))

    def answer_by_seed(prompt, number):
        _, body, _ = server.requests[number - 1]
        return server.completion(reply(prompt, body["seed"]),
                                 usage={"prompt_tokens": 10, "completion_tokens": 2})
    server.reply = answer_by_seed

    def make(**changes):
        config = get_config("endpoint")
        section = config.constitution
        section.update(inputs=str(tmp_path / "prompts.jsonl"), endpoint=server.url,
                       endpoint_model="tiny", critic_endpoint=server.url,
                       critic_endpoint_model="judge")
        section.run.update(timeout_secs=5.0, max_retries=1, backoff_secs=0.001, num_connections=3)
        for name, value in changes.items():
            (section.run if name in section.run else section)[name] = value
        return config
    return make


def run(config, folder, parents=None):
    folder.mkdir(exist_ok=True)
    return build(config, parents or {}, folder)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_endpoint_answers_criticises_revises_and_chooses(server, make_config, tmp_path):
    config = make_config(prompt_price=1.0, answer_price=5.0)
    metrics = run(config, tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "revisions.jsonl")
    assert metrics["prompts"] == metrics["revisions"] == metrics["changed"] == len(rows) == 12
    drawn = {part["principle"] for row in rows for part in row["meta"]["rounds"]}
    assert len(drawn) > 3 and all(len(row["meta"]["rounds"]) == 2 for row in rows)
    for number, row in enumerate(rows):
        meta, (first, second) = row["meta"], row["meta"]["rounds"]
        assert row["messages"][0] == {"role": "user", "content": f"question {number}"}
        assert row["messages"][1]["content"] == second["answer"].removeprefix("Revision: ")
        assert meta["initial"].startswith(f"answer to question {number}")
        assert first["critique"].startswith("I criticise by ")
        assert (meta["model"], meta["critic"], meta["origin"]) == ("tiny", "judge", "prompts")
    second_round = [body["messages"] for prompt, body, _ in server.requests
                    if prompt.startswith("Write") and body["messages"][-4]["content"].startswith(
                        "better by")]
    assert len(second_round) == 12, "the second round reads the first one's revision"
    equal = metrics["faults"].get("choice", {}).get("equal", 0)
    assert metrics["pairs"] == 12 - equal > 0 and metrics["disagreements"] == 0
    for pair in read_examples(tmp_path / "out" / "pairs.jsonl", "preferences",
                              faults=Faults("dpo", "fail")):
        assert len(pair.responses[0]) > len(pair.responses[1]) and pair.ranks == (1, 2)
    assert content(tmp_path / "out")["pairs.jsonl"] == content(tmp_path / "out")["rankings.jsonl"]
    requests = {"answers": 24, "critiques": 48, "choices": 2 * metrics["pairs"]}
    assert metrics["usage"] == {label: {
        "requests": num, "prompt_tokens": 10 * num, "answer_tokens": 2 * num, "uncounted": 0}
        for label, num in requests.items()}
    assert metrics["cost"] == pytest.approx(sum(requests.values()) * (10 * 1 + 2 * 5) / 1e6)
    assert not (tmp_path / "out" / "work").exists()


def test_revisions_are_conversations_for_sft(make_config, tmp_path):
    run(make_config(makes=("revisions",)), tmp_path / "out")
    found = list(read_examples(tmp_path / "out" / "revisions.jsonl", "conversations",
                               faults=Faults("sft", "fail")))
    assert len(found) == NUM_PROMPTS and found[0].messages[-1].role == "assistant"
    assert not (tmp_path / "out" / "pairs.jsonl").exists()


def test_a_killed_run_asks_for_no_reply_again(server, make_config, tmp_path):
    usual, config = server.reply, make_config()
    run(config, tmp_path / "whole")
    num_whole = len(server.requests)
    server.requests.clear()
    reached = threading.Event()

    def hang(prompt, number):
        if number > 40:     # in the first round of critiques or revisions
            reached.set()
            time.sleep(30 if server.reply is hang else 0)
        return usual(prompt, number)
    server.reply = hang
    folder = tmp_path / "killed"
    folder.mkdir()
    config.constitution.run.timeout_secs = 60.0
    code = ("import json, sys, pathlib; from ml_collections import ConfigDict\n"
            "from align.constitution import build\n"
            "build(ConfigDict(json.loads(sys.argv[1])), {}, pathlib.Path(sys.argv[2]))\n")
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(config.to_dict()),
                                str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert reached.wait(60)
    kept = folder / "work"
    deadline = time.monotonic() + 10
    while sum(len(path.read_text().splitlines()) for path in kept.rglob("*.jsonl")) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.reply = usual
    server.requests.clear()
    run(config, folder)
    assert len(server.requests) == num_whole - 40
    assert content(folder) == content(tmp_path / "whole")


def test_an_endpoint_that_times_out_is_one_line_and_what_was_answered_is_kept(
        server, make_config, tmp_path):
    usual, gate = server.reply, threading.Event()

    def hang(prompt, number):
        if prompt == "question 7":
            gate.wait(10)
        return usual(prompt, number)
    server.reply = hang
    config = make_config(timeout_secs=0.3, num_connections=1, makes=("revisions",))
    with pytest.raises(UserError, match=r"endpoint='http.* is silent for 0\.3 s, attempt 2 of 2"):
        run(config, tmp_path / "out")
    gate.set()
    num_asked = len(server.requests)
    server.reply = usual
    run(config, tmp_path / "out")
    again = [prompt for prompt, _, _ in server.requests[num_asked:]]
    assert not {f"question {number}" for number in range(7)} & set(again)
    assert {f"question {number}" for number in range(7, NUM_PROMPTS)} <= set(again)


def test_nonsense_of_a_judge_is_counted_and_leaves_no_pair(server, make_config, tmp_path):
    def babble(prompt, number):
        text = ("blue", "Both (A) and (B)", "", "I'm sorry, I cannot help.")[(number + 1) // 2 % 4]
        return (server.completion(text) if "Options:" in prompt
                else server.completion(f"{prompt} {server.requests[number - 1][1]['seed']}"))
    server.reply = babble
    metrics = run(make_config(num_connections=1), tmp_path / "out")
    assert metrics["pairs"] == 0 and metrics["revisions"] == NUM_PROMPTS
    assert metrics["faults"] == {"choice": {"no_letter": 6, "empty": 3, "refusal": 3}}
    removed = read_jsonl(tmp_path / "out" / "left_out.jsonl")
    assert len(removed) == NUM_PROMPTS and {row["step"] for row in removed} == {"choice"}
    config = make_config(num_connections=1, makes=("pairs",))
    with pytest.raises(UserError, match="nothing comes out of 12 prompts"):
        run(config, tmp_path / "none")


def test_every_faulty_reply_is_counted_by_its_step_and_the_rule_decides(
        server, make_config, tmp_path):
    usual = server.reply

    def faulty(prompt, number):
        messages = server.requests[number - 1][1]["messages"]
        asked = next(m["content"] for m in messages if m["content"].startswith("question"))
        is_answer, is_revision = prompt == asked, prompt.startswith("Write")
        if asked == "question 0" and is_answer:
            return 400, b"{}", {}
        if asked == "question 1" and is_answer:
            return server.completion("half an", "length")
        if asked == "question 2" and not is_revision and not is_answer:
            return server.completion(" ")
        if asked == "question 3" and is_revision:
            return server.completion("I'm sorry, I cannot rewrite this.")
        if asked == "question 4" and is_revision:
            return server.completion(messages[-4]["content"])
        return usual(prompt, number)
    server.reply = faulty
    config = make_config(makes=("revisions",), num_rounds=1, num_examples=0)
    metrics = run(config, tmp_path / "out")
    assert metrics["faults"] == {"answer": {"unanswered": 1, "truncated": 1},
                                 "critique": {"empty": 1},
                                 "revision": {"refusal": 1, "unchanged": 1}}
    assert (metrics["revisions"], metrics["changed"]) == (9, 8), "three dropped, two kept"
    removed = read_jsonl(tmp_path / "out" / "left_out.jsonl")
    assert [(row["step"], row["reason"], row["place"].rpartition(", ")[2]) for row in removed] == [
        ("answer", "unanswered", "line 1"), ("answer", "truncated", "line 2"),
        ("critique", "empty", "line 3")]
    config.constitution.rules.update(truncated="keep", empty="keep", unanswered="keep",
                                     unchanged="drop", refusal="drop")
    metrics = run(config, tmp_path / "other")
    assert metrics["revisions"] == 9, "without an answer nothing goes on"
    rows = read_jsonl(tmp_path / "other" / "revisions.jsonl")
    assert rows[1]["meta"]["initial"] == rows[1]["messages"][-1]["content"], "without a critique"
    config.constitution.rules.refusal = "fail"
    with pytest.raises(UserError, match="line 4: its revision is a refusal") as caught:
        run(config, tmp_path / "failed")
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_rejects_everything_ends_the_run(server, make_config, tmp_path):
    server.reply = lambda prompt, number: (422, b"no such field", {})
    with pytest.raises(UserError, match=r"tiny: rejects every prompt \(rejected_422\)"):
        run(make_config(chunk_prompts=4), tmp_path / "out")
    assert len(server.requests) == 4


def test_a_rule_revises_the_answers_of_the_inputs_without_any_model(tmp_path):
    rows = [ask("q0", "One two. Three four five six.").to_dict(), ask("q1", "One.").to_dict(),
            ask("q1", "Again.").to_dict(), {"prompt": "q2"}]
    (tmp_path / "chats.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken", ""]))
    config = get_config("rule")
    config.constitution.update(model="", corpus="", makes=("revisions",),
                               inputs=str(tmp_path / "chats.jsonl"))
    config.constitution.tasks = ConfigDict()
    config.constitution.rule.max_words = 3
    metrics = run(config, tmp_path / "out")
    assert [row["messages"][-1]["content"] for row in read_jsonl(
        tmp_path / "out" / "revisions.jsonl")] == ["One two.", "One."]
    assert metrics["left_out"] == {"repeated": 1, "no_answer": 1, "broken_line": 1}
    assert (metrics["initial_words_mean"], metrics["revised_words_mean"]) == (3.5, 1.5)
    assert metrics["faults"] == {"revision": {"unchanged": 3}} and metrics["cost"] == 0


@pytest.mark.parametrize("changes, message", [
    (dict(critic_rule="length"), "critic_endpoint, critic_rule: exactly one of"),
    (dict(critic_endpoint=""), "constitution: no critic: exactly one of"),
    (dict(model="sft"), "only one of them can answer"),
    (dict(labels="probability"), "needs the critic's probabilities"),
    (dict(labels="word"), "labels='word': is none of letter, probability"),
    (dict(disagreement="mean"), "disagreement='mean': is none of drop, tie, soft, fail"),
    (dict(makes=()), "must be one or more of revisions, pairs"),
    (dict(endpoint=""), "needs two answers to each prompt"),
    (dict(num_rounds=0), r"num_rounds=0: must be a whole number, at least 1"),
    (dict(principles="none.json"), "no such file"),
    (dict(inputs=""), r"tasks, inputs: give no prompt")])
def test_what_cannot_be_done_is_refused_in_one_line(server, make_config, tmp_path, changes,
                                                    message):
    with pytest.raises(UserError, match=message) as caught:
        run(make_config(**changes), tmp_path / "out")
    assert "\n" not in str(caught.value) and not server.requests


def test_principles_that_lack_what_is_asked_for_are_refused(make_config, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"preference": "Which is kinder?"}\n')
    with pytest.raises(UserError, match="holds no principle with critique and revision"):
        run(make_config(principles=str(path)), tmp_path / "out")
    path.write_text('{"critique": "c", "revision": "r"}\n')
    with pytest.raises(UserError, match="holds no principle with preference"):
        run(make_config(principles=str(path)), tmp_path / "out")


def test_the_files_of_principles_and_inputs_decide_the_fingerprint(make_config, tmp_path):
    path = tmp_path / "p.jsonl"
    config, marks = make_config(principles=str(path)), []
    for text in ("a", "b"):
        path.write_text(json.dumps({"preference": text}))
        marks.append(STAGE.inputs(config))
    assert marks[0] != marks[1] and set(marks[0]) == {
        str(tmp_path / "prompts.jsonl"), "principles p.jsonl"}


# --- a model directory ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def model_folder(params, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "chat"
    folder.mkdir()
    BytePairTokenizer({bytes([b]): i for i, b in enumerate((10, *range(32, 124)))}).save(
        folder.with_name("tokenizer"))
    save_model(folder, params, config, folder.with_name("tokenizer"), chat=True,
               context_tokens=512)
    write_json(folder / "lineage.json", {"layout": LAYOUT, "fingerprint": "f00d"})
    return folder


def ask_itself(model_folder, tmp_path, makes):
    """Runs the variant `self` on two prompts, with a short constitution and short answers."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "why?"}\n{"prompt": "how?"}\n')
    (tmp_path / "principles.jsonl").write_text(
        '{"critique": "c?", "revision": "r!"}\n{"preference": "Which?"}\n')
    config = get_config("self")
    section = config.constitution
    section.update(inputs=str(tmp_path / "prompts.jsonl"), num_rounds=1, makes=makes,
                   principles=str(tmp_path / "principles.jsonl"))
    section.rules.update(truncated="keep", empty="keep")
    section.answer.max_new_tokens = section.critique.max_new_tokens = 4
    return run(config, tmp_path / "out", {"model": model_folder, "critic": model_folder})


def test_a_local_model_chooses_by_its_probabilities(model_folder, tmp_path):
    metrics = ask_itself(model_folder, tmp_path, ("pairs",))
    assert metrics["pairs"] + metrics["faults"].get("choice", {}).get("equal", 0) == 2
    assert metrics["usage"]["answers"]["requests"] == 4 and metrics["cost"] == 0
    assert metrics["usage"]["answers"]["prompt_tokens"] > 4 * len("why?")
    for pair in read_jsonl(tmp_path / "out" / "pairs.jsonl"):
        shown_first, shown_second = pair["meta"]["p_first_by_order"]
        assert 0 < shown_first < 1 and sum(pair["scores"]) == pytest.approx(1)
        assert max(pair["scores"]) == pytest.approx(
            0.5 + abs((shown_first + 1 - shown_second) / 2 - 0.5))


@pytest.mark.full
def test_a_local_model_criticises_itself(model_folder, tmp_path):
    metrics = ask_itself(model_folder, tmp_path, ("revisions",))
    assert metrics["revisions"] == 2
    assert metrics["usage"]["critiques"]["requests"] >= 2
