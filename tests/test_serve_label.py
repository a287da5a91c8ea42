"""The labelling page: whole sessions, who reads what is stored, and what is refused."""

import json
import re
from collections import Counter

import pytest

from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import read_preferences
from eval.agreement import Bootstrap, measure_file
from eval.arena.votes import read_votes
from serve.labelling.items import WRITE
from serve.labelling.store import DEMONSTRATIONS, JOURNAL, PREFERENCES
from serve.labelling.work import HOLD_SECS

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `dev`")
from label_server import PAIRS, SCRIPT, by_length, head, servers
from starlette.testclient import TestClient

from serve.labelling.app import make_app

RANKING = {"messages": [{"role": "system", "content": "Be brief."},
                        {"role": "user", "content": "Name a colour."}],
           "responses": ["red", "blue", "a sky", "green"], "ranks": [1, 2, 3, 4],
           "scores": [4, 3, 2, 1], "finishes": ["stop", "stop", "length", "stop"],
           "source": "judge", "meta": {"models": ["r", "b", "s", "g"], "annotator": "judge",
                                       "id": "old", "topic": "art"}}


def by_length_but_three(answers):
    return [1, 1] if "3" in answers[0] else by_length(answers)


@pytest.fixture
def serve(tmp_path):
    with servers(tmp_path) as make:
        yield make


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
    shown = SCRIPT.replace("\x1b", "\u241b").replace("\u202e", "\u27e8U+202E\u27e9")
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
    ({"more": 1}, 400, "unsupported_field")], ids=lambda value: str(value)[:30])
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
    (OWN | {"host": "evil.example:8001"}, None, 403, "unknown_host"),
    (OWN | {"host": ""}, None, 403, "unknown_host"),
    ({"content-type": "text/plain"}, None, 415, "invalid_type"),
    (OWN, b"x" * ((1 << 20) + 1), 413, "body_too_large"),
    (OWN, b"{", 400, "invalid_json"), (OWN, b"\xff", 400, "invalid_utf8"),
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
