"""The labelling page: whole sessions, what is stored and who reads it, refusals, kill -9, disks."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from core.artifacts import ROOT, read_jsonl, write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import read_preferences
from eval.agreement import Bootstrap, measure_file
from eval.arena.votes import read_votes
from serve.label import label
from serve.labelling import store as store_module
from serve.labelling.items import WRITE, read_items
from serve.labelling.store import DEMONSTRATIONS, JOURNAL, PREFERENCES, Store
from serve.labelling.work import HOLD_SECS, Settings, Work

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the extra `dev`")
from starlette.testclient import TestClient  # noqa: E402 -- after the skip

from serve.labelling.app import make_app  # noqa: E402

SCRIPT = "<script>alert('x')</script> & \u202e\x1b[2J"
PAIRS = [{"prompt": f"What is {i}?" if i else f"Say {SCRIPT}",
          "rejected": f"no {i}" if i else SCRIPT,
          "chosen": f"yes, {i} is a number, and a longer answer to it"} for i in range(8)]
RANKING = {"messages": [{"role": "system", "content": "Be brief."},
                        {"role": "user", "content": "Name a colour."}],
           "responses": ["red", "blue", "a sky", "green"], "ranks": [1, 2, 3, 4],
           "scores": [4, 3, 2, 1], "finishes": ["stop", "stop", "length", "stop"],
           "source": "judge", "meta": {"models": ["r", "b", "s", "g"], "annotator": "judge",
                                       "id": "old", "topic": "art"}}
CLOCK = 1_000_000.0


class Server:
    """A labelling server in this process, and its clock."""

    def __init__(self, folder, rows, *, work=None, **settings):
        write_jsonl(folder / "inputs.jsonl", rows)
        self.out, self.faults, self.now = folder / "out", Faults("label"), CLOCK
        items = read_items(folder / "inputs.jsonl", work, self.faults)
        self.store = Store(self.out)
        self.work = Work(items, self.store, Settings(clock=lambda: self.now, **settings))
        self.client = TestClient(make_app(self.work), base_url="http://127.0.0.1:8001")

    def next(self, annotator):
        return self.ok(self.client.get("/api/next", params={"annotator": annotator}))

    def post(self, path, **body):
        return self.client.post(f"/api/{path}", json=body)

    def ok(self, reply):
        assert reply.status_code == 200, reply.text
        return reply.json()

    def label(self, shown, **body):
        """Labels what is shown; the reply."""
        self.now += 10
        return self.post("label", **head(shown), **body)

    def run(self, annotator, ranks_of):
        """A whole session: labels until nothing is left; what was shown."""
        seen, shown = [], self.next(annotator)
        while shown["item"]:
            seen.append(shown["item"])
            shown = self.ok(self.label(shown, ranks=ranks_of(shown["item"]["answers"])))
        return seen


def head(shown):
    return {"annotator": shown["annotator"], "item": shown["item"]["id"],
            "ticket": shown["item"]["ticket"]}


def by_length(answers):
    return [1, 2] if len(answers[0]) > len(answers[1]) else [2, 1]


def by_length_but_three(answers):
    return [1, 1] if "3" in answers[0] else by_length(answers)


@pytest.fixture
def serve(tmp_path):
    """Makes servers; closes them."""
    servers = []

    def make(rows=PAIRS, folder=tmp_path, **settings):
        servers.append(Server(folder, rows, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.client.close()
        server.store.close()


# --- sessions and what is read from them -----------------------------------------------------

def test_two_annotators_label_all_pairs_and_everyone_reads_them(serve):
    server = serve(labels_per_item=2)
    seen = {"ana": server.run("ana", by_length),
            "bo": server.run("bo", by_length_but_three)}
    assert [len(items) for items in seen.values()] == [8, 8]
    orders = [[item["answers"] for item in items] for items in seen.values()]
    assert orders[0] != orders[1] and [set(a) for a in orders[0]] == [set(a) for a in orders[1]]
    assert len({item["answers"][0].startswith("yes") for item in seen["ana"]}) == 2
    path = server.out / PREFERENCES
    rows = read_preferences(path)
    assert len(rows) == 16 and {row.source for row in rows} == {"person"}
    for row, item in zip(rows, seen["ana"] + seen["bo"]):
        if row.responses[0] != SCRIPT and row.responses[1] != SCRIPT:
            assert list(row.responses) == item["answers"], "the record has the order shown"
        shortest = min(row.responses, key=len)
        best = {text for text, rank in zip(row.responses, row.ranks) if rank == 1}
        assert best == (set(row.responses) if row.meta["annotator"] == "bo" and "3" in shortest
                        else set(row.responses) - {shortest})
        assert row.meta["secs"] == 10 and len(row.pairs()) == (len(best) == 1)
    assert sum(1 for _ in read_examples(path, "preferences", faults=Faults("dpo", "fail"))) == 16
    measured = measure_file(path, "choices", "category", Bootstrap(0, 20))
    assert measured["items"] == measured["items_with_several"] == 8
    assert measured["raw"]["value"] == pytest.approx(7 / 8)


def test_texts_of_models_arrive_as_data(serve):
    server = serve()
    item = server.next("ana")["item"]
    shown = SCRIPT.replace("\x1b", "\u241b")
    assert item["messages"] == [{"role": "user", "content": f"Say {shown}"}]
    assert shown in item["answers"]
    server.ok(server.label(server.next("ana"), ranks=[1, 2], reason=SCRIPT))
    [row] = read_preferences(server.out / PREFERENCES)
    assert row.prompt.messages[0].content == f"Say {SCRIPT}" and SCRIPT in row.responses
    assert row.meta["reason"] == SCRIPT.strip()


def test_a_ranking_keeps_who_said_what_and_drops_the_judges_label(serve):
    server = serve([RANKING])
    shown = server.next("ana")
    assert [message["role"] for message in shown["item"]["messages"]] == ["system", "user"]
    assert not re.search("judge|old|models", json.dumps(shown))
    want = {"blue": 1, "green": 1, "red": 3, "a sky": 4}
    answers = shown["item"]["answers"]
    flags = [["unsafe"] if text == "red" else [] for text in answers]
    server.ok(server.label(shown, ranks=[want[text] for text in answers], flags=flags))
    [row] = read_preferences(server.out / PREFERENCES)
    dense = {"blue": 1, "green": 1, "red": 2, "a sky": 3}
    assert dict(zip(row.responses, row.ranks)) == dense and list(row.responses) == answers
    assert [RANKING["responses"][number] for number in row.meta["order"]] == answers
    assert dict(zip(row.responses, row.meta["models"])) == dict(
        zip(RANKING["responses"], RANKING["meta"]["models"]))
    assert dict(zip(row.responses, row.finishes))["a sky"] == "length" and row.scores == ()
    assert row.meta["flags"] == flags and row.meta["topic"] == "art"
    assert row.meta["annotator"] == "ana" and row.source == "person"
    votes = read_votes(server.out / PREFERENCES, Faults("arena", "fail"))
    assert votes.models == ("b", "g", "r", "s") and votes.annotators == ("ana",)
    wins = {(votes.models[a], votes.models[b]): score for a, b, score in zip(
        votes.first, votes.second, votes.scores)}
    assert wins.get(("b", "g"), wins.get(("g", "b"))) == 0.5
    assert wins.get(("b", "s")) == 1 or wins[("s", "b")] == 0


def test_both_bad_is_a_tie_that_says_so(serve):
    server = serve()
    server.ok(server.label(server.next("ana"), ranks=[2, 2], both_bad=True))
    [row] = read_preferences(server.out / PREFERENCES)
    assert row.ranks == (1, 1) and row.meta["both_bad"] is True and row.pairs() == []


def test_written_answers_are_conversations(serve):
    server = serve([{"prompt": "Say hi."}, {"messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}]}])
    shown = server.next("ana")
    assert shown["item"]["kind"] == "write" and shown["item"]["answers"] == []
    shown = server.ok(server.label(shown, text=" Hi <b>you</b>\n", reason="short"))
    server.ok(server.label(shown, text="d"))
    rows = list(read_examples(server.out / DEMONSTRATIONS, "conversations",
                              faults=Faults("sft", "fail")))
    assert [[m.content for m in row.messages] for row in rows] == [
        ["Say hi.", "Hi <b>you</b>"], ["a", "b", "c", "d"]]
    assert rows[0].meta["annotator"] == "ana" and rows[0].meta["reason"] == "short"
    assert not (server.out / PREFERENCES).exists()


def test_the_prompts_of_pairs_can_be_answered(serve):
    assert serve(work=WRITE).next("ana")["item"]["kind"] == "write"


# --- who gets what ---------------------------------------------------------------------------

def test_an_item_goes_to_as_many_annotators_as_are_asked_for(serve):
    server = serve()
    one, other = server.next("ana"), server.next("bo")
    assert one["item"]["id"] != other["item"]["id"] and other["left"] == 7
    assert server.next("ana")["item"] == one["item"], "until it is labelled, it stays"
    server.now += HOLD_SECS + 1
    late = server.next("cy")
    assert late["item"]["id"] == one["item"]["id"], "it is kept for a while only"
    server.ok(server.label(late, ranks=[1, 2]))
    server.ok(server.label(one, ranks=[2, 1]))      # nobody's work is lost
    assert [len(server.run(name, by_length)) for name in ("dee", "ana", "cy")] == [5, 1, 1]
    items = Counter(row.meta["item"] for row in read_preferences(server.out / PREFERENCES))
    assert items.pop(one["item"]["id"]) == 2 and list(items.values()) == [1] * 7


def test_after_a_restart_an_item_that_another_labelled_is_full(serve):
    server = serve(PAIRS[:1])
    shown = server.next("ana")
    server.store.close()
    server = serve(PAIRS[:1])
    server.ok(server.label(server.next("bo"), ranks=[1, 2]))
    assert server.label(shown, ranks=[1, 2]).json()["error"]["code"] == "full"


def test_a_skipped_item_goes_to_others(serve):
    server = serve(PAIRS[:1])
    shown = server.next("ana")
    after = server.ok(server.post("skip", **head(shown), reason="unclear"))
    assert after["item"] is None and after["done"] == 1
    assert server.label(shown, ranks=[1, 2]).json()["error"]["code"] == "done_already"
    assert server.next("bo")["item"]["id"] == shown["item"]["id"]
    assert "unclear 1" in server.client.get("/progress").text


def test_undo_gives_the_item_back_and_only_adds_to_the_journal(serve):
    server = serve()
    server.ok(server.label(server.next("bo"), ranks=[1, 2]))
    first = server.next("ana")
    said = {"ranks": [2, 1], "flags": [["unsafe"], []], "reason": "r"}
    server.ok(server.label(first, **said))
    before = (server.out / JOURNAL).read_bytes()
    back = server.ok(server.post("undo", annotator="ana"))
    assert back["item"] == first["item"] and back["given"] == said | {"both_bad": False}
    assert (server.out / JOURNAL).read_bytes().startswith(before)
    assert [row.meta["annotator"] for row in read_preferences(server.out / PREFERENCES)] == ["bo"]
    server.ok(server.label(back, ranks=[1, 1]))
    assert [row.ranks for row in read_preferences(server.out / PREFERENCES)] == [(1, 2), (1, 1)]
    server.ok(server.post("undo", annotator="ana"))
    assert server.post("undo", annotator="ana").json()["error"]["code"] == "nothing_to_undo"


# --- what is refused -------------------------------------------------------------------------

@pytest.mark.parametrize("change, status, code", [
    ({"item": "0" * 16}, 404, "unknown_item"), ({"item": "../etc/passwd"}, 400, "invalid_value"),
    ({"ticket": "0" * 16}, 409, "other_order"), ({"ticket": None}, 400, "invalid_value"),
    ({"annotator": "<b>"}, 400, "no_name"), ({"annotator": "x" * 41}, 400, "no_name"),
    ({"annotator": 3}, 400, "no_name"), ({"annotator": "cy"}, 409, "other_order"),
    ({"ranks": [1]}, 400, "invalid_value"), ({"ranks": [0, 1]}, 400, "invalid_value"),
    ({"ranks": [True, 1]}, 400, "invalid_value"), ({"ranks": None}, 400, "invalid_value"),
    ({"both_bad": True}, 400, "invalid_value"), ({"text": "x"}, 400, "invalid_value"),
    ({"reason": "x" * 2001}, 400, "invalid_value"), ({"reason": "\ud800"}, 400, "invalid_value"),
    ({"flags": [["rude"], []]}, 400, "invalid_value"), ({"flags": [[]]}, 400, "invalid_value"),
    ({"more": 1}, 400, "invalid_value")], ids=lambda value: str(value)[:30])
def test_a_label_that_does_not_fit_is_refused_and_not_stored(serve, change, status, code):
    server = serve()
    body = {**head(server.next("ana")), "ranks": [1, 2]} | change
    reply = server.client.post("/api/label", content=json.dumps(body),
                               headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert "\n" not in reply.json()["error"]["message"]
    assert (server.out / JOURNAL).read_bytes() == b"" and not (server.out / PREFERENCES).exists()


def test_the_same_label_twice_is_refused(serve):
    server = serve(labels_per_item=3)
    shown = server.next("ana")
    server.ok(server.label(shown, ranks=[1, 2]))
    reply = server.label(shown, ranks=[2, 1])
    assert reply.status_code == 409 and reply.json()["error"]["code"] == "done_already"
    assert [row.ranks for row in read_preferences(server.out / PREFERENCES)] == [(1, 2)]


OWN = {"content-type": "application/json"}


@pytest.mark.parametrize("headers, content, status, code", [
    (OWN | {"origin": "https://evil.example"}, None, 403, "foreign_origin"),
    (OWN | {"origin": "null"}, None, 403, "foreign_origin"),
    (OWN | {"origin": "http://127.0.0.1:9999"}, None, 403, "foreign_origin"),
    (OWN | {"sec-fetch-site": "cross-site"}, None, 403, "foreign_origin"),
    (OWN | {"host": "evil.example"}, None, 403, "unknown_host"),
    (OWN | {"host": "10.0.0.1"}, None, 403, "unknown_host"),
    (OWN | {"host": ""}, None, 403, "unknown_host"),
    ({"content-type": "text/plain"}, None, 415, "invalid_type"),
    (OWN, b"x" * ((1 << 20) + 1), 413, "body_too_large"),
    (OWN, b"{", 400, "invalid_json"), (OWN, b"\xff", 400, "invalid_json"),
    (OWN, b"[1]", 400, "invalid_json"), (OWN, b'{"ranks": NaN}', 400, "invalid_json"),
    (OWN, b"[" * 100_000, 400, "invalid_json")], ids=lambda value: str(value)[-24:])
def test_a_request_from_elsewhere_or_of_another_form_is_refused(serve, headers, content, status,
                                                                code):
    server = serve()
    body = json.dumps({**head(server.next("ana")), "ranks": [1, 2]}).encode()
    reply = server.client.post("/api/label", content=content or body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code), reply.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert (server.out / JOURNAL).read_bytes() == b""


def test_own_pages_and_links_to_them_pass(serve):
    server = serve()
    shown = server.next("ana")
    own = {"origin": "http://127.0.0.1:8001", "sec-fetch-site": "same-origin"}
    assert server.client.post("/api/label", headers=own, json={
        **head(shown), "ranks": [1, 2]}).status_code == 200
    link = {"sec-fetch-site": "cross-site"}
    assert server.client.get("/?annotator=ana", headers=link).status_code == 200
    for path in ("/api/next?annotator=ana", "/label.js"):
        assert server.client.get(path, headers=link).status_code == 403
    named = TestClient(make_app(server.work, hosts=["labels.example"]),
                       base_url="https://labels.example")
    assert named.get("/").status_code == 200


def test_only_the_files_of_the_table_are_sent_and_none_runs_what_is_not_its_own(serve):
    client = serve().client
    for path in ("/../setup.py", "/%2e%2e/setup.py", "/label.html", "/static/label.js"):
        assert client.get(path).status_code == 404
    assert client.put("/api/label").status_code == 405
    page = client.get("/").text
    for path in ("/", "/label.js", "/label.css", "/page.css", "/progress", "/nothing"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?! src=)|<style|\son\w+=|\sstyle=|https?:", page)
    script = client.get("/label.js").text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|http", script)
    assert not re.search(r"<style|\sstyle=|<script", client.get("/progress").text)
    for name in re.findall(r'\$\("([\w-]+)"\)', script):
        assert f'id="{name}"' in page, f"label.js names #{name}"


def test_one_annotator_alone_may_label(serve):
    server = serve(annotator="ana")
    assert server.ok(server.client.get("/api/next"))["annotator"] == "ana"
    reply = server.client.get("/api/next", params={"annotator": "bo"})
    assert reply.status_code == 403 and "only ana" in reply.json()["error"]["message"]


# --- the disk --------------------------------------------------------------------------------

@contextlib.contextmanager
def running(folder):
    """A server in a process of its own, and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.label", f"--inputs={folder / 'inputs.jsonl'}",
         f"--out={folder / 'out'}", "--port=0"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    with process:
        try:
            url = next(found[0] for line in process.stderr
                       if (found := re.search(r"http://[\d.:]+", line)))
            with httpx.Client(base_url=url, trust_env=False) as client:
                yield process, client
        finally:
            process.kill()


def test_kill_between_two_labels_loses_none_and_the_same_command_goes_on(tmp_path):
    write_jsonl(tmp_path / "inputs.jsonl", PAIRS)
    with running(tmp_path) as (process, client):
        shown = client.get("/api/next", params={"annotator": "ana"}).json()
        for _ in range(2):
            shown = client.post("/api/label", json={**head(shown), "ranks": [1, 2]}).json()
        process.kill()
    rows = read_jsonl(tmp_path / "out" / PREFERENCES)
    assert len(rows) == len(read_jsonl(tmp_path / "out" / JOURNAL)) == 2
    with running(tmp_path) as (process, client):
        back = client.get("/api/next", params={"annotator": "ana"}).json()
        assert back["item"] == shown["item"], "in the same order, too"
        client.post("/api/label", json={**head(back), "ranks": [2, 1]}).raise_for_status()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and json.loads(out.splitlines()[-1]) == {
        "out": str(tmp_path / "out"), "items": 8, "items_done": 3, "preferences": 3,
        "demonstrations": 0, "annotators": {"ana": 3}, "left_out": {}}
    assert read_jsonl(tmp_path / "out" / PREFERENCES)[:2] == rows


def test_a_torn_line_is_moved_aside_and_what_follows_from_the_journal_is_made_anew(
        tmp_path, serve, capsys):
    server = serve()
    server.run("ana", by_length)
    server.store.close()
    out, journal = server.out, server.out / JOURNAL
    whole, exported = journal.read_bytes(), (out / PREFERENCES).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 1):
        journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        (out / PREFERENCES).write_bytes(exported[:-7])
        store = Store(out)
        store.close()
        assert "its last line was not finished" in capsys.readouterr().err
        assert journal.read_bytes() == b"".join(lines[:-1]) and len(store.live) == 7
        assert (out / PREFERENCES).read_bytes() == b"".join(
            exported.splitlines(keepends=True)[:-1])
    assert sorted(path.name for path in out.glob("*.torn*")) == [
        f"{JOURNAL}.torn", f"{JOURNAL}.torn.1", f"{JOURNAL}.torn.2"]
    assert (out / f"{JOURNAL}.torn").read_bytes() == lines[-1][:1]


def test_a_full_disk_stores_nothing_and_says_so(serve, monkeypatch):
    server = serve()
    shown = server.next("ana")
    server.ok(server.label(server.next("bo"), ranks=[1, 2]))
    before = (server.out / JOURNAL).read_bytes()
    error = OSError(errno.ENOSPC, "No space left on device")

    def full(_descriptor):
        raise error

    monkeypatch.setattr(store_module.os, "fsync", full)
    reply = server.label(shown, ranks=[1, 2])
    assert reply.status_code == 507 and "No space left" in reply.json()["error"]["message"]
    assert (server.out / JOURNAL).read_bytes() == before
    monkeypatch.undo()
    server.ok(server.label(shown, ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 2


def test_a_label_in_the_journal_is_stored_though_its_file_cannot_be_written(serve, monkeypatch):
    server = serve()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    append = store_module._append

    def refuse(file, row):
        if "event" not in row:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        append(file, row)

    monkeypatch.setattr(store_module, "_append", refuse)
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 1
    monkeypatch.undo()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 3


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out=.*: cannot be used \(not a directory\)"):
        Store(tmp_path / "file" / "out")


def test_a_folder_of_others_and_a_damaged_journal_are_refused(tmp_path, serve):
    server = serve()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    with pytest.raises(UserError, match="another server stores its labels there"):
        Store(server.out)
    server.store.close()
    line = (server.out / JOURNAL).read_text()
    (server.out / JOURNAL).write_text("{}\n" + line)
    with pytest.raises(UserError, match=r"journal\.log, line 1: is damaged"):
        Store(server.out)
    (server.out / JOURNAL).unlink()
    with pytest.raises(UserError, match=r"holds preferences\.jsonl but no journal"):
        Store(server.out)


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "serve.labelling.app")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"labelling page: needs the package uvicorn: pip install"):
        label()


# --- inputs and progress ---------------------------------------------------------------------

def test_rows_that_hold_no_item_are_counted(serve):
    asked = {"messages": [{"role": "user", "content": "?"}]}
    server = serve([asked | {"responses": ["a", "b", "c"]}, asked | {"responses": ["c", "a", "b"]},
                    asked | {"responses": list("abcdefghij")}, asked | {"responses": ["a"]},
                    asked, asked | {"responses": ["a", "d"], "models": ["x"]}])
    assert [item.kind for item in server.work.items.values()] == ["rank"]
    assert server.faults.counts == {"repeated": 1, "too_many_answers": 1, "group_of_one": 1,
                                    "other_layout": 1, "broken_models": 1}


def test_progress_has_counts_speed_and_agreement(serve):
    server = serve(labels_per_item=2)
    assert "no two have labelled the same answers" in server.client.get("/progress").text
    server.run("ana", by_length)
    server.run("bo", by_length)
    page = server.client.get("/progress").text
    assert "16" in page and "100.0 %" in page and "8 of 8" in page and "Krippendorff" in page
    for name in ("ana", "bo"):
        assert f"<td>{name}</td><td>8</td><td>0</td><td>10.0</td><td>360</td>" in page
    back = server.client.get("/progress", params={"annotator": '"><script>'}).text
    assert 'href="/?annotator=%22%3E%3Cscript%3E"' in back and "<script" not in back
    server.ok(server.post("undo", annotator="bo"))
    assert "on 7 comparisons" in server.client.get("/progress").text, "measured anew"
