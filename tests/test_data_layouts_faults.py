"""Rows that teach nothing or cannot be read: each is counted with its line."""

import contextlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_rows import (
    ANSWER,
    CALL,
    CHATS,
    HUMAN,
    ORDERS,
    USER,
    WRITERS,
    WRONG,
    read,
    write,
)

from core.errors import UserError
from data.layouts.faults import Faults
from data.layouts.read import HEAD_ROWS, read_examples
from data.layouts.rows import read_rows
from data.layouts.table import LAYOUTS, find_layout
from data.layouts.turns import Fault


def bad(reason, layout, row, **changes):
    """A case: a good row of a layout, and the same with changes, which is left out for a reason."""
    return pytest.param(reason, row, json.loads(json.dumps(row)) | changes, id=f"{layout}-{reason}")


CHAT, PAIRED = CHATS["messages"][0][0], ORDERS["pair"][0][0]
TALKS = ORDERS["pair"][5][0]
ORDERED, RATED = ORDERS["ranking"][0][0], ORDERS["scores"][0][0]
VOTED, TAGGED = ORDERS["vote"][0][0], ORDERS["label"][0][0]
PARTS = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "what?"}]
BAD = [
    bad("unknown_role", "messages", CHAT, messages=[USER, {"role": "critic", "content": "2"}]),
    bad("no_answer", "messages", CHAT, messages=[USER]),
    bad("no_answer", "messages", CHAT, messages=[USER, ANSWER, USER]),
    bad("no_answer", "messages", CHAT, messages=[USER, USER, ANSWER]),
    bad("no_question", "messages", CHAT, messages=[ANSWER]),
    bad("empty_answer", "messages", CHAT, messages=[USER, {"role": "assistant", "content": " "}]),
    bad("empty_answer", "messages", CHAT, messages=[USER, {"role": "assistant", "content": []}]),
    bad("no_text", "messages", CHAT, messages=[USER, {"role": "assistant", "content": None}]),
    bad("no_text", "messages", CHAT, messages=[{"role": "user", "content": PARTS}, ANSWER]),
    bad("broken_text", "messages", CHAT, messages=[{"role": "user", "content": "\ud800"}, ANSWER]),
    bad("weight_zero", "messages", CHAT, messages=[USER, {**ANSWER, "weight": 0}]),
    bad("broken_call", "messages", CHAT, messages=[
        USER, {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}]),
    bad("other_layout", "messages", CHAT, messages=[]),
    bad("no_question", "question", {"question": "1?", "answer": "2"}, question=None),
    bad("no_text", "question", {"question": "1?", "answer": "2"}, answer=2),
    bad("no_answer", "question", {"question": "1?", "answer": "2"}, answer=None),
    bad("empty_answer", "alpaca", {"instruction": "1?", "output": "2"}, output=""),
    bad("equal_pair", "pair", PAIRED, rejected="2"),
    bad("equal_pair", "pair", TALKS, rejected=[USER, ANSWER]),
    bad("empty_answer", "pair", PAIRED, rejected=" \n"),
    bad("no_answer", "pair", PAIRED, chosen=None),
    bad("no_question", "pair", PAIRED, prompt=None),
    bad("several_turns", "pair", TALKS, rejected=[USER, WRONG, USER, ANSWER]),
    bad("other_prompt", "pair", TALKS, prompt="Something else?"),
    bad("tool_answer", "pair", TALKS, chosen=[USER, {"role": "assistant", "tool_calls": [CALL]}]),
    bad("not_finite_score", "pair", ORDERS["pair"][7][0], score_chosen=float("nan")),
    bad("empty_answer", "hh", ORDERS["hh"][0][0], chosen=HUMAN),
    bad("several_turns", "hh", ORDERS["hh"][0][0], chosen=f"{HUMAN} no\n\nAssistant: 2"),
    bad("not_finite_score", "scores", RATED, scores=[float("inf"), 1]),
    bad("not_finite_score", "scores", RATED, scores=[None, 1]),
    bad("not_finite_score", "scores", RATED, scores=["N/A", 1]),
    bad("broken_scores", "scores", RATED, scores=[1]),
    bad("group_of_one", "scores", RATED, responses=["2"], scores=[1]),
    bad("group_of_one", "ranking", ORDERED, responses=["2"], ranks=[1]),
    bad("equal_pair", "ranking", ORDERED, responses=["2", "2", "2"]),
    bad("broken_ranks", "ranking", ORDERED, ranks=[0, 1, 2]),
    bad("broken_ranks", "ranking", ORDERED, ranks=[1, 2]),
    bad("broken_scores", "ranking", ORDERED, finishes=["stop"]),
    bad("unknown_vote", "vote", VOTED, winner="nobody"),
    bad("unknown_label", "label", TAGGED, label=7),
    bad("no_answer", "label", TAGGED, messages=[USER]),
    bad("empty_answer", "label", TAGGED, messages=[USER, {"role": "assistant", "content": ""}]),
]


@pytest.mark.parametrize("reason, row, broken", BAD)
def test_a_faulty_row_is_counted_with_its_line(tmp_path, capsys, reason, row, broken):
    path = write(tmp_path / "rows.jsonl", row, row, broken, row)
    kind = LAYOUTS[find_layout(row)].kinds[0]
    found, faults = read(path, kind)
    assert [item.meta["place"].rpartition(" ")[2] for item in found] == ["1", "2", "4"]
    assert faults.counts == {reason: 1}
    capsys.readouterr()
    faults.report()
    assert capsys.readouterr().err.startswith(
        f"test: left out 1 ({reason}), the first: {path}, line 3: ")
    with pytest.raises(UserError, match=r"rows.jsonl, line 3: .*: mend it, or set test.faulty to"):
        list(read_examples(path, kind, faults=Faults("test", "fail")))


def test_damaged_lines_are_counted_wherever_they_stand(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(CHAT).encode()] * 8
    lines[0], lines[2], lines[3] = b"\xef\xbb\xbf" + lines[0], b'{"messages": [{"ro', b'"\xff"'
    lines[4], lines[5] = b"", b"[1, 2]"
    path.write_bytes(b"\r\n".join([*lines, b'{"messages": ']))
    found, faults = read(path, "conversations")
    assert [item.meta["place"].rpartition(" ")[2] for item in found] == ["1", "2", "7", "8"]
    assert faults.counts == {"broken_line": 4}
    assert f"{path}, line 5: skipped as blank\n" in capsys.readouterr().err


@pytest.mark.parametrize("first", ['{"messages": [{', '{"messages": [', "{"])
def test_a_first_line_that_breaks_off_leaves_the_others(tmp_path, first):
    found, faults = read(write(tmp_path / "rows.jsonl", first, CHAT, CHAT), "conversations")
    assert len(found) == 2 and faults.counts == {"broken_line": 1}


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst", "a.parquet"])
def test_a_file_that_breaks_off_gives_what_stands_before(tmp_path, name):
    rows = [{"question": f"{number}?" * 50, "answer": os.urandom(200).hex()}
            for number in range(3000)]
    WRITERS[name](tmp_path / name, *rows)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:len(whole) * 2 // 3])
    if name == "a.parquet":     # whose index is at its end
        with pytest.raises(UserError, match=r"a\.parquet: not one of its 1 rows could be read"):
            read(tmp_path / name, "conversations")
        return
    found, faults = read(tmp_path / name, "conversations")
    assert 1000 < len(found) < 2500
    assert sum(faults.counts.values()) in (1, 2) and faults.counts.keys() <= {
        "broken_file", "broken_line"}


def test_a_row_of_another_layout_is_a_fault_unless_most_are(tmp_path):
    other = {"question": "1?", "answer": "2"}
    path = write(tmp_path / "mixed.jsonl", other, CHAT, CHAT, PAIRED, {"n": 1}, CHAT)
    found, faults = read(path, "conversations")
    assert len(found) == 3 and faults.counts == {"other_layout": 3}
    with pytest.raises(UserError, match=r"line 1: is not in the file's layout messages but"):
        list(read_examples(path, "conversations", faults=Faults("test", "fail")))
    found, faults = read(path, "conversations", "question")
    assert len(found) == 1 and faults.counts == {"other_layout": 5}


@pytest.mark.parametrize("rows, kind, layout, message", [
    ([], "conversations", "", "rows.jsonl: holds no row"),
    ([{"n": 1, "m": 2}], "conversations", "",
     r"rows.jsonl: its rows are in no known layout \(fields: n, m\): bring them into one of vote,"),
    ([CHAT], "conversations", "alpaca", r"not in the layout alpaca \(fields: messages\): name the "
     "layout messages"),
    ([CHAT], "conversations", "chatml", "layout='chatml': is none of vote, hh"),
    ([CHAT], "preferences", "", r"holds conversations \(layout messages\), not preferences: use"),
    ([CHAT], "labels", "messages", r"holds conversations \(layout messages\), not labels"),
    ([PAIRED], "conversations", "", r"holds preferences \(layout pair\), not conversations: use it "
     r"for preference losses \(align.dpo\) and reward models$"),
    ([ORDERS["pair"][7][0]], "conversations", "", "or name the layout messages to read that part"),
    ([TAGGED], "conversations", "", r"holds labels \(layout label\), not con.*the layout messages"),
    (["[", "{"], "conversations", "", "not one of its 1 rows could be read, as row 1 is damaged"),
    (["{", "{"], "conversations", "", "not one of its 2 rows could be read, as line 1 is not"),
    ([{"messages": [USER]}], "conversations", "", r"not one of its 1 rows could be read, as line 1 "
     r"does not end with an answer of the assistant \(fields: messages\)"),
], ids=str)
def test_a_file_of_which_nothing_can_be_read_is_refused(tmp_path, rows, kind, layout, message):
    path = write(tmp_path / "rows.jsonl", *rows)
    if not rows:
        path.write_text("")
    with pytest.raises(UserError, match=message) as caught:
        read(path, kind, layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, message", [
    ("none.jsonl", "no such file"), ("a.docx", "ends in none of the formats of rows"),
    ("pages", "holds no file of rows: name files of .jsonl")])
def test_what_holds_no_rows_is_refused(tmp_path, name, message):
    (tmp_path / "a.docx").touch()
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.txt").touch()
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, "conversations")


def test_reading_is_a_stream(tmp_path, monkeypatch):
    path, taken = write(tmp_path / "rows.jsonl", *[CHAT] * 999, "{", CHAT), []

    def count(path):
        for row in read_rows(path):
            taken.append(row)
            yield row

    monkeypatch.setattr("data.layouts.read.read_rows", count)
    faults = Faults("test")
    found = read_examples(path, "conversations", faults=faults)
    next(found)
    assert len(taken) == HEAD_ROWS and not faults.counts
    assert len(list(found)) == 999 and faults.counts == {"broken_line": 1}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(
        ["", "x", "[", '[{"role": "user"}]', HUMAN, "assistant", "nan"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "text", "tool_calls", "function", "name", "rank"]),
        inner, max_size=3), max_leaves=5)
GOOD = [case[0] for cases in (*CHATS.values(), *ORDERS.values()) for case in cases]


def replace(value, data):
    """The value with some part of it replaced."""
    if not isinstance(value, dict | list) or not value or data.draw(st.integers(0, 3)) == 0:
        return data.draw(VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = data.draw(st.sampled_from(keys))
    changed = value.copy()
    changed[key] = replace(value[key], data)
    return changed


@settings(max_examples=1500)
@given(row=st.sampled_from(GOOD), data=st.data())
def test_whatever_stands_in_a_row_it_is_read_or_a_fault(row, data):
    key = data.draw(st.sampled_from(sorted(row)))
    broken = row | {key: replace(row[key], data)}
    for layout in LAYOUTS.values():
        if layout.recognise(broken):
            with contextlib.suppress(Fault):
                layout.read(broken)


def test_of_several_answers_an_empty_one_leaves_the_others(tmp_path):
    path = write(tmp_path / "rows.jsonl", {**ORDERED, "responses": ["2", "", "3"]})
    [item], faults = read(path, "preferences")
    assert item.responses == ("2", "", "3") and not faults.counts
