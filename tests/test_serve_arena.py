"""The arena: nothing names a model before the vote, each vote counts once and is on the disk."""

import contextlib
import errno
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from core.artifacts import ROOT, read_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from eval.arena.__main__ import rate_file
from eval.arena.report import Settings
from eval.arena.votes import read_votes

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the extra `dev`")
from api_server import await_idle, make_model, make_worker, serving  # noqa: E402 -- after the skip
from arena_server import (  # noqa: E402
    BYTES,
    NAMES,
    arena_of,
    ask,
    code_of,
    events_of,
    scripted,
    texts_of,
    vote,
)

from serve.api.metrics import Metrics  # noqa: E402
from serve.arena import arena as arena_module  # noqa: E402
from serve.arena import battles as battles_module  # noqa: E402
from serve.arena.arena import check_models  # noqa: E402
from serve.arena.store import FILE, VoteStore  # noqa: E402
from serve.web import journal  # noqa: E402
from serve.web.errors import WebError  # noqa: E402

UNKNOWN = "0" * 32


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena_module, "TICK_SECS", 0.002)
        yield


@pytest.fixture(scope="module")
def shared(config, execution, tmp_path_factory):
    """A client of an arena of three models, the arena, and the models."""
    workers = scripted(config, execution)
    with arena_of(workers, tmp_path_factory.mktemp("votes"), seed=1) as (client, arena):
        yield client, arena, workers


@pytest.fixture
def arena(shared):
    """See `shared`; the models as they were."""
    client, arena, workers = shared
    before = {name: (worker.text, worker.capacity) for name, worker in workers.items()}
    yield client, arena, workers
    for name, worker in workers.items():
        worker.end()
        (worker.text, worker.capacity), worker.error = before[name], None


def _last(arena):
    return read_jsonl(arena.store.path)[-1]


def _until(is_so, secs=20.0):
    limit = time.monotonic() + secs
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.002)


def _two(config, execution, **how):
    return scripted(config, execution, NAMES[:2], **how)


def test_nothing_before_the_vote_names_a_model_and_all_pairs_come_on_both_sides(arena):
    client, _arena, workers = arena
    seen, pairs = [], Counter()

    def keep(reply):
        seen.append(reply.read() + repr((reply.headers.raw, str(reply.url))).encode())

    client.event_hooks["response"].append(keep)
    for number in range(30):
        workers["quartz"].error = WebError(500, "quartz failed") if number % 5 == 4 else None
        workers["gneiss"].capacity = 20 if number % 5 == 3 else 4096    # too small for any prompt
        reply = client.post("/arena/ask", json={"prompt": f"{number}?"})
        if reply.status_code != 200:
            assert reply.json()["error"]["message"].endswith(
                ("the battle counts no vote", "begin one with less text"))
            continue
        battle = json.loads(reply.text.split("\n\n")[0].removeprefix("data: "))["battle"]
        client.get("/arena/battle", params={"id": battle})
        vote(client, battle, "neither")
        client.event_hooks["response"].clear()
        pairs[tuple(vote(client, battle).json()["models"])] += 1
        client.event_hooks["response"].append(keep)
    client.event_hooks["response"].clear()
    everything = b"".join(seen).lower()
    assert len(seen) > 60 and not re.search(b"quartz|basalt|gneiss|folder|fingerprint", everything)
    assert set(pairs) == {(a, b) for a in NAMES for b in NAMES if a != b}


def test_a_stream_shows_both_sides_in_step(arena):
    client, _arena, workers = arena
    for worker in workers.values():
        worker.text = None
    with client.stream("POST", "/arena/ask", json={"prompt": "Race."}) as reply:
        events = events_of(reply)
        assert set(next(events)) == {"battle"}
        _until(lambda: sum(worker.num_open for worker in workers.values()) == 2)
        fast, slow = (worker for worker in workers.values() if worker.num_open)
        fast.say("f" * 500)
        fast.end()
        lengths = [0, 0]
        for _ in range(5):
            slow.say("s" * 32)
            goal = lengths[0] + 32
            while lengths[0] < goal:
                change = next(events)
                assert change["finishes"] == ["", ""]
                lengths = [num + len(text) for num, text in zip(lengths, change["texts"])]
                assert lengths[0] == lengths[1]
        slow.end("length")
        *_, change, state = events
    assert sorted(change["finishes"]) == ["length", "stop"] and state == {"state": "ready"}


@pytest.mark.parametrize(("verdict", "ranks"), [("a", [1, 2]), ("b", [2, 1]), ("tie", [1, 1]),
                                                ("both_bad", [1, 1])])
def test_verdicts_are_stored_as_preferences(arena, verdict, ranks):
    client, server, workers = arena
    workers["quartz"].text, workers["basalt"].text = "Of quartz.", "Of basalt."
    events = ask(client, "Which stone?")
    shown = vote(client, events[0]["battle"], verdict, annotator=" ana ").json()
    row = _last(server)
    assert row["messages"] == [{"role": "user", "content": "Which stone?"}]
    assert row["responses"] == texts_of(events) == [workers[name].text for name in shown["models"]]
    assert row["ranks"] == ranks and row["finishes"] == ["stop", "stop"]
    meta = row["meta"]
    assert meta["models"] == shown["models"] and meta["annotator"] == "ana"
    assert meta["id"] == events[0]["battle"] and meta.get("both_bad", False) == (
        verdict == "both_bad") and meta["category"] == "one turn"
    assert meta["fingerprints"] == [workers[name].model.name for name in shown["models"]]
    assert meta["settings"]["temperature"] == 0.7 and meta["secs"] >= 0
    first, second = (workers[name].answers[-1].request for name in shown["models"])
    assert first.sampling == second.sampling
    assert meta["settings"]["seeds"] == [first.seed, second.seed] and first.seed != second.seed
    again = client.get("/arena/battle", params={"id": events[0]["battle"]}).json()
    assert again == shown


def test_histories_stay_apart_and_training_leaves_out_what_is_no_common_conversation(
        config, execution, tmp_path):
    workers = _two(config, execution)
    workers["quartz"].text, workers["basalt"].text = "I am one.", "I am two."
    with arena_of(workers, tmp_path) as (client, server):
        battle = ask(client, "First?")[0]["battle"]
        assert ask(client, "Second?", battle)[0]["battle"] == battle
        for worker in workers.values():
            prompt = BYTES.decode(worker.answers[-1].request.prompt)
            assert re.search(f"First.*{worker.text}.*Second", prompt, re.DOTALL)
        found = client.get("/arena/battle", params={"id": battle}).json()
        assert [turn["prompt"] for turn in found["turns"]] == ["First?", "Second?"]
        models = vote(client, battle, "b").json()["models"]
        row = _last(server)
        assert [turn["content"] for turn in row["messages"]] == ["First?", "Second?"]
        assert [side[1]["content"] for side in row["meta"]["conversations"]] == [
            workers[name].text for name in models]
        vote(client, ask(client, "Alone?")[0]["battle"])
    assert read_votes(tmp_path / FILE, Faults("arena")).categories == ("one turn", "several turns")
    faults = Faults("dpo")
    kept = [*read_examples(tmp_path / FILE, "preferences", faults=faults)]
    assert [one.prompt.messages[0].content for one in kept] == ["Alone?"]
    assert faults.counts == {"no_answer": 1}


def test_a_vote_counts_once_and_only_for_a_finished_battle(arena):
    client, server, workers = arena
    num = server.store.num_votes
    assert code_of(vote(client, UNKNOWN)) == (404, "unknown_battle")
    for worker in workers.values():
        worker.text = None
    with client.stream("POST", "/arena/ask", json={"prompt": "Slow."}) as reply:
        events = events_of(reply)
        battle = next(events)["battle"]
        assert code_of(vote(client, battle)) == (409, "unfinished")
        assert code_of(client.post("/arena/ask", json={"prompt": "More.", "battle": battle})) == (
            409, "not_ready")
        assert "models" not in client.get("/arena/battle", params={"id": battle}).json()
        _until(lambda: sum(worker.num_open for worker in workers.values()) == 2)
        for worker in workers.values():
            worker.end()
        assert [*events][-1] == {"state": "ready"}
    assert vote(client, battle).status_code == 200
    assert code_of(vote(client, battle)) == code_of(vote(client, battle, "b")) == (409, "voted")
    assert code_of(client.post("/arena/ask", json={"prompt": "More.", "battle": battle})) == (
        409, "not_ready")
    assert server.store.num_votes == num + 1


@pytest.mark.parametrize(("how", "expected"), [
    (dict(json={"prompt": "x"}, headers={"Origin": "http://evil.example"}),
     (403, "foreign_origin")),
    (dict(json={"prompt": "x"}, headers={"Sec-Fetch-Site": "cross-site"}), (403, "foreign_origin")),
    (dict(content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"}),
     (415, "invalid_type")),
    (dict(data={"prompt": "x"}), (415, "invalid_type")),
    (dict(json={"prompt": "x" * (1 << 20)}), (413, "body_too_large")),
    (dict(content=b'{"prompt": "\xff"}', headers={"Content-Type": "application/json"}),
     (400, "invalid_utf8")),
    (dict(json={"prompt": " \n"}), (400, "invalid_value")),
    (dict(json={"prompt": "x" * 16_001}), (400, "invalid_value")),
    (dict(content=br'{"prompt": "\ud800"}', headers={"Content-Type": "application/json"}),
     (400, "invalid_value")),
    (dict(json={"prompt": "x", "model": "quartz"}), (400, "unsupported_field")),
    (dict(json={"prompt": "x", "battle": "../x"}), (400, "invalid_value"))])
def test_wrong_requests_are_refused(arena, how, expected):
    client, _server, workers = arena
    before = sum(len(worker.answers) for worker in workers.values())
    assert code_of(client.post("/arena/ask", **how)) == expected
    assert sum(len(worker.answers) for worker in workers.values()) == before


def test_wrong_votes_are_refused_and_change_nothing(arena):
    client, server, _workers = arena
    battle = ask(client)[0]["battle"]
    for fields in ({"verdict": "c"}, {"verdict": "a", "annotator": "<b>"},
                   {"verdict": "a", "x": 1}):
        assert client.post("/arena/vote", json={"battle": battle, **fields}).status_code == 400
    assert client.post("/arena/vote", data={"battle": battle, "verdict": "a"}).status_code == 415
    assert client.post("/arena/vote", json={"battle": battle, "verdict": "a"}, headers={
        "Origin": "http://evil.example"}).status_code == 403
    assert battle not in server.store and vote(client, battle).status_code == 200


def test_a_battle_whose_side_fails_says_so_and_frees_the_other(arena):
    client, _server, workers = arena
    for worker in workers.values():
        worker.text = None
    with client.stream("POST", "/arena/ask", json={"prompt": "Fail."}) as reply:
        events = events_of(reply)
        battle = next(events)["battle"]
        _until(lambda: sum(worker.num_open for worker in workers.values()) == 2)
        broken, other = (worker for worker in workers.values() if worker.num_open)
        broken.end(error=WebError(500, "the answer failed (quartz)", "internal_error"))
        [error] = events
    assert error["error"]["message"] == (
        "one of the two answers failed: the battle counts no vote")
    _until(lambda: not other.num_open)
    assert code_of(vote(client, battle)) == (409, "no_vote")


def test_a_full_queue_keeps_the_battle(arena):
    client, _server, workers = arena
    battle = ask(client)[0]["battle"]
    for worker in workers.values():
        worker.error = WebError(429, "the queue is full: try again", "queue_full")
    assert code_of(client.post("/arena/ask", json={"prompt": "More.", "battle": battle})) == (
        429, "queue_full")
    for worker in workers.values():
        worker.error = None
    assert len(texts_of(ask(client, "More.", battle))) == 2
    assert len(vote(client, battle).json()["turns"]) == 2


def test_a_client_that_leaves_ends_both_sides(arena):
    client, server, workers = arena
    for worker in workers.values():
        worker.text = None
    with client.stream("POST", "/arena/ask", json={"prompt": "Leave."}) as reply:
        events = events_of(reply)       # closes the connection when it is forgotten
        battle = next(events)["battle"]
        _until(lambda: sum(worker.num_open for worker in workers.values()) == 2)
        for worker in workers.values():
            worker.say("x" * 100)
    _until(lambda: not any(worker.num_open for worker in workers.values()))
    _until(lambda: server.find(battle).state == "over")
    assert code_of(vote(client, battle)) == (409, "no_vote")


def test_a_client_that_leaves_while_whole_answers_are_shown_finds_them_again(arena, monkeypatch):
    client, server, workers = arena
    monkeypatch.setattr(arena_module, "TICK_SECS", 0.2)
    for worker in workers.values():
        worker.text = "x" * 5000
    with client.stream("POST", "/arena/ask", json={"prompt": "Leave."}) as reply:
        events = events_of(reply)       # closes the connection when it is forgotten
        battle = next(events)["battle"]
    _until(lambda: server.find(battle).state == "ready")
    assert [len(text) for text in server.find(battle).turns[0].texts] == [5000, 5000]


def test_engines_are_free_after_an_answer_and_after_a_client_that_leaves(
        config, execution, tmp_path):
    metrics, model = Metrics(), make_model(config, execution)
    workers = {name: make_worker(model, metrics, name, num_slots=2, capacity=128, max_queue=4)
               for name in NAMES[:2]}
    for worker in workers.values():
        worker.start()
    with arena_of(workers, tmp_path, metrics=metrics) as (client, server):
        served = type("Served", (), {"metrics": metrics, "num_open": property(
            lambda _self: sum(worker.num_open for worker in workers.values()))})()
        with client.stream("POST", "/arena/ask", json={"prompt": "Leave."}) as reply:
            events = events_of(reply)
            battle = next(events)["battle"]
        assert await_idle(served)
        _until(lambda: server.find(battle).state != "drawing")
        whole = ask(client, "Stay.")
        assert whole[-1] == {"state": "ready"}
        assert vote(client, whole[0]["battle"]).status_code == 200
        assert {name for name in _last(server)["finishes"]} <= {"stop", "length"}


def test_battles_are_bounded_in_number_and_time(arena, monkeypatch):
    client, server, _workers = arena
    now = time.time() + 10 * battles_module.KEEP_SECS       # forgets those of other tests
    monkeypatch.setattr(server.battles, "clock", lambda: now)
    monkeypatch.setattr(battles_module, "MAX_BATTLES", 2)
    first, second = (ask(client)[0]["battle"] for _ in range(2))
    assert code_of(client.post("/arena/ask", json={"prompt": "x"})) == (429, "too_many_battles")
    vote(client, first)
    third = ask(client)[0]["battle"]        # in the place of the one that has its vote
    now += battles_module.KEEP_SECS + 1
    assert code_of(vote(client, second)) == code_of(vote(client, third)) == (404, "unknown_battle")
    assert code_of(vote(client, first)) == (409, "voted")


def test_turns_are_bounded(arena, monkeypatch):
    client, _server, _workers = arena
    monkeypatch.setattr(arena_module, "MAX_TURNS", 1)
    battle = ask(client)[0]["battle"]
    assert code_of(client.post("/arena/ask", json={"prompt": "x", "battle": battle})) == (
        409, "too_many_turns")
    assert vote(client, battle).status_code == 200


def test_a_full_disk_stores_no_vote_names_no_model_and_leaves_the_battle(arena, monkeypatch):
    client, server, _workers = arena
    battle = ask(client)[0]["battle"]
    before = server.store.path.read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.os, "fsync", full)
    reply = vote(client, battle)
    assert code_of(reply) == (507, "not_stored") and not re.search("|".join(NAMES), reply.text)
    assert server.store.path.read_bytes() == before
    monkeypatch.undo()
    assert vote(client, battle).status_code == 200


def test_the_leaderboard_of_none_one_and_many_votes(config, execution, tmp_path):
    with arena_of(scripted(config, execution), tmp_path) as (client, server):
        reply = client.get("/leaderboard")
        assert "No votes yet" in reply.text and "script-src" not in reply.headers[
            "content-security-policy"]
        models = vote(client, ask(client)[0]["battle"], annotator="ana").json()["models"]
        [other] = {*NAMES} - {*models}
        page = client.get("/leaderboard").text
        assert f"No vote yet on {other}." in page and all(name in page for name in models)
        for number in range(12):
            vote(client, ask(client)[0]["battle"], ("a", "b", "tie", "both_bad")[number % 4])
        page = client.get("/leaderboard").text
        assert ">13<" in page and "No vote yet" not in page and "ana" not in re.sub(
            "<style>.*?</style>", "", page, flags=re.DOTALL)
        shared = server.store.path
    found = rate_file(shared, tmp_path / "report", Settings(num_samples=20))
    assert found["votes"] == 13 and not found["left_out"] and set(found["ratings"]) == {*NAMES}


def test_with_keys_the_pages_are_open_and_the_rest_is_not(config, execution, tmp_path):
    with arena_of(_two(config, execution), tmp_path, keys=["k1"]) as (client, _server):
        for path in ("/arena", "/arena.js", "/arena.css", "/page.css", "/leaderboard"):
            assert client.get(path).status_code == 200
        link = client.get("/arena", headers={"Sec-Fetch-Site": "cross-site"})
        assert link.status_code == 200 and link.headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'")
        for reply in (client.post("/arena/ask", json={"prompt": "x"}), vote(client, UNKNOWN),
                      client.get("/arena/battle", params={"id": UNKNOWN})):
            assert code_of(reply) == (401, "invalid_api_key")
        client.headers["Authorization"] = "Bearer k1"
        assert vote(client, ask(client)[0]["battle"]).status_code == 200


def test_without_votes_there_is_no_arena():
    with serving({}, {}, Metrics()) as (url, _served), httpx.Client(base_url=url) as client:
        for path in ("/arena", "/leaderboard"):
            reply = client.get(path)
            assert code_of(reply) == (404, "no_arena") and "--votes" in reply.text
    with pytest.raises(UserError, match="--votes: needs at least two chat models"):
        check_models(1)


def _serve(folder):
    """A server of scripted models, in a process of its own."""
    code = f"""
import signal, sys, pathlib
sys.path.insert(0, "tests")
from model.config import ModelConfig
from model.execution import Execution
from arena_server import NAMES, arena_of, scripted
config = ModelConfig(V=256, D=32, N=2, H=4, G=2, K=8, F=64)
with arena_of(scripted(config, Execution("float32"), NAMES[:2]), pathlib.Path({str(folder)!r})) as (
        client, _arena):
    print(client.base_url, flush=True)
    signal.pause()
"""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE)


def test_kill_right_after_a_vote_loses_nothing_and_a_torn_line_is_moved_aside(
        config, execution, tmp_path, capsys):
    with _serve(tmp_path) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        with httpx.Client(base_url=process.stdout.readline().strip(), timeout=60.0) as client:
            battle = ask(client)[0]["battle"]
            with pytest.raises(UserError, match="another server stores its votes there"):
                VoteStore(tmp_path)
            assert vote(client, battle, "b").status_code == 200
            process.send_signal(signal.SIGKILL)
    path = tmp_path / FILE
    whole = path.read_bytes()
    assert [row["meta"]["id"] for row in read_jsonl(path)] == [battle]
    path.write_bytes(whole + whole[:50])
    with arena_of(_two(config, execution), tmp_path) as (client, server):
        assert server.store.num_votes == 1 and path.read_bytes() == whole
        assert code_of(vote(client, battle)) == (409, "voted")
        assert code_of(client.get("/arena/battle", params={"id": battle})) == (409, "voted")
    assert "its last line was not finished" in capsys.readouterr().err
    assert (tmp_path / f"{FILE}.torn").read_bytes() == whole[:50]
    path.write_bytes(b'{"messages": []}\n' + whole)
    with pytest.raises(UserError, match=r"votes\.jsonl, line 1: is damaged"):
        VoteStore(tmp_path)
    path.write_bytes(whole)
    VoteStore(tmp_path).close()


def test_a_server_that_closes_ends_its_battles_and_lets_the_folder_go(config, execution, tmp_path):
    workers = _two(config, execution)
    with arena_of(workers, tmp_path) as (client, server):
        battle = ask(client)[0]["battle"]
    VoteStore(tmp_path).close()
    assert server.find(battle).state == "ready"
