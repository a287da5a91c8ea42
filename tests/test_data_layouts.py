"""Layouts: what each gives, what is recognised, and that no row is lost without being counted."""

import csv
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_rows import (
    ANSWER,
    ASKED,
    CALL,
    CHATS,
    ORDERS,
    ROWS,
    SYSTEM,
    TOOLS,
    USER,
    WRITERS,
    read,
    write,
)

from core.errors import UserError
from data.chat import Conversation, Message
from data.layouts.table import LAYOUTS, find_layout
from data.preferences import Labelled, Preference, write_preferences


@pytest.mark.parametrize("layout, row, messages", [
    (layout, *case) for layout, cases in CHATS.items() for case in cases])
def test_conversations_of_every_layout(tmp_path, layout, row, messages):
    assert find_layout(row) == layout
    (found,), faults = read(write(tmp_path / "chats.jsonl", row), "conversations")
    assert found.messages == messages and not faults.counts
    assert found.meta == {"place": f"{tmp_path}/chats.jsonl, line 1", "source": "chats"}


@pytest.mark.parametrize("layout, row, item", [
    (layout, *case) for layout, cases in ORDERS.items() for case in cases])
def test_preferences_and_labels_of_every_layout(tmp_path, layout, row, item):
    assert find_layout(row) == layout
    kind = "labels" if isinstance(item, Labelled) else "preferences"
    (found,), faults = read(write(tmp_path / "votes.jsonl", row), kind)
    place = {"place": f"{tmp_path}/votes.jsonl, line 1"}
    assert found == type(item)(**vars(item) | {"source": "votes", "meta": place})
    assert not faults.counts


def test_every_layout_is_shown():
    assert CHATS.keys() | ORDERS.keys() == LAYOUTS.keys()


def test_our_own_preferences_keep_all_that_they_hold(tmp_path):
    own = Preference(Conversation(TOOLS[:3]), ("a", "b", "a"), (1, 2, 1), "a person", {"k": [1]},
                     ("stop", "length", "stop"), (0.5, -1.0, 0.5))
    write_preferences(tmp_path / "own.jsonl", [own])
    (found,), _ = read(tmp_path / "own.jsonl", "preferences")
    assert found.meta.pop("place") and found == own


def test_labels_of_preferences(tmp_path):
    path = write(tmp_path / "r.jsonl", {"prompt": "1+1?", "responses": ["3", "2", "two"],
                                        "ranks": [2, 1, 1]},
                 {"prompt": "1+1?", "responses": ["3", "2"], "ranks": [1, 1]})
    found, faults = read(path, "labels")
    assert [(item.response, item.is_good) for item in found] == [
        ("3", False), ("2", True), ("two", True)]
    assert faults.counts == {"all_tied": 1}, "a tie labels nothing"


@pytest.mark.parametrize("name", WRITERS)
def test_formats_of_files(tmp_path, name):
    WRITERS[name](tmp_path / name, *ROWS)
    found, faults = read(tmp_path / name, "labels")
    assert [(item.prompt, item.response, item.is_good) for item in found] == [
        (ASKED, "2", True), (ASKED, "3", False)] and not faults.counts
    assert {item.source for item in found} == {"a"}
    first = {"a.csv": "line 2", "a.tsv": "line 2"}.get(name, "line 1" if ".jsonl" in name
                                                       else "row 1")
    assert found[0].meta["place"] == f"{tmp_path / name}, {first}"


def test_a_table_gives_messages_and_calls_no_fields_of_others(tmp_path):
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    named = called | {"tool_calls": [CALL | {"id": "c"}]}
    rows = [{"messages": [USER, call, {"role": "tool", "content": "2"},
                          {"role": "assistant", "content": "It is 2"}]} for call in (called, named)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "calls.parquet")
    (first, second), _ = read(tmp_path / "calls.parquet", "conversations")
    assert first.messages == TOOLS and [m.tool_calls for m in first.messages if m.tool_calls] == [
        (CALL,)]
    assert second.messages[1].tool_calls == (CALL | {"id": "c"},)


def test_a_line_of_csv_is_that_where_its_row_begins(tmp_path):
    (tmp_path / "q.csv").write_text('question,answer\n"one\ntwo",2\n\nx,""\ny\nz,3\n')
    found, faults = read(tmp_path / "q.csv", "conversations")
    assert [item.meta["place"].rpartition(", ")[2] for item in found] == ["line 2", "line 7"]
    assert faults.counts == {"empty_answer": 1, "broken_line": 1}


def test_a_folder_is_read_file_by_file(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    write(tmp_path / "b.jsonl", {"question": "b", "answer": "2"})
    write(tmp_path / "more" / "a.jsonl", {"messages": [USER, ANSWER]})
    (tmp_path / "README.md").write_text("text")
    (tmp_path / "info.json").write_text('{"description": "of the files"}')
    (tmp_path / "empty.jsonl").touch()
    found, faults = read(tmp_path, "conversations")
    assert [item.meta["source"] for item in found] == ["b", "a"] and not faults.counts
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}: not read, as they hold no rows: README.md",
        f"{tmp_path}/b.jsonl: its layout is question",
        f"{tmp_path}/info.json: describes the other files and is not read",
        f"{tmp_path}/more/a.jsonl: its layout is messages"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
CALLS = st.lists(st.builds(lambda name: {"id": "c", "type": "function", "function": {
    "name": name, "arguments": "{}"}}, TEXT), max_size=2).map(tuple)
SOLVING = st.one_of(
    st.tuples(st.builds(Message, st.just("assistant"), TEXT, CALLS)),
    st.builds(lambda result, text: (Message("assistant", "", (CALL,)), Message("tool", result),
                                    Message("assistant", text)),
              st.text(st.characters(exclude_categories=["Cs"])), TEXT))
TURNS = st.builds(lambda question, solved: (Message("user", question), *solved), TEXT, SOLVING)
DIALOGUES = st.builds(lambda system, *parts: (*system, *(m for part in parts[0] for m in part)),
                      st.sampled_from([(), (SYSTEM,)]), st.lists(TURNS, min_size=1, max_size=3))


def as_sharegpt(message):
    """A message in ShareGPT's form, where a call of a tool is a turn of its own."""
    if message.tool_calls:
        return {"from": "function_call", "value": json.dumps(message.tool_calls[0]["function"])}
    names = {"user": "human", "assistant": "gpt", "tool": "observation", "system": "system"}
    return {"from": names[message.role], "value": message.content}


@settings(max_examples=60)
@given(messages=DIALOGUES)
def test_a_conversation_comes_back_from_the_file_it_is_written_to(tmp_path_factory, messages):
    conversation, folder = Conversation(messages, {"k": 1}), tmp_path_factory.mktemp("w")
    rows = {"messages": conversation.to_dict()}
    if not any(message.content and message.tool_calls for message in messages):
        rows["sharegpt"] = {"conversations": [as_sharegpt(message) for message in messages]}
    plain = [message.to_dict() for message in messages]
    rows["completion"] = {"prompt": plain[:-1], "completion": plain[-1:]}
    for layout, row in rows.items():
        (found,), _ = read(write(folder / "a.jsonl", row), "conversations", layout)
        assert found.messages == messages
        assert layout != "messages" or found.meta["k"] == 1


@settings(max_examples=60)
@given(messages=DIALOGUES, question=TEXT, data=st.data(),
       texts=st.lists(TEXT, min_size=2, max_size=5, unique=True))
def test_a_preference_comes_back_from_the_file_it_is_written_to(tmp_path_factory, messages,
                                                                question, data, texts):
    ranks = data.draw(st.lists(st.integers(1, 4), min_size=len(texts), max_size=len(texts)))
    folder = tmp_path_factory.mktemp("w")
    prompt = Conversation((*messages, Message("user", question)))
    own = Preference(prompt, tuple(texts), tuple(ranks), "s")
    plain = [message.to_dict() for message in prompt.messages]
    sides = [{"role": "assistant", "content": text} for text in texts[:2]]
    pair = Preference(prompt, tuple(texts[:2]), (1, 2), "a")
    for layout, row, wanted in (
            ("ranking", own.to_dict(), own),
            ("pair", {"prompt": plain, "chosen": texts[0], "rejected": texts[1]}, pair),
            ("pair", {"chosen": [*plain, sides[0]], "rejected": [*plain, sides[1]]}, pair),
            ("scores", {"prompt": plain, "responses": texts, "scores": [-rank for rank in ranks]},
             own)):
        (found,), _ = read(write(folder / "a.jsonl", row), "preferences")
        assert find_layout(row) == layout
        assert (found.prompt, found.responses) == (wanted.prompt, wanted.responses)
        assert found.pairs() == wanted.pairs()


DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))


@pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
@pytest.mark.parametrize("name, kind, layout, num_items, counts", [
    ("sft_pref_demo/alpaca_en_demo.json.gz", "conversations", "alpaca", 999, {}),
    ("sft_pref_demo/dolly_hhrlhf_train_small.jsonl.gz", "conversations", "completion", 1000, {}),
    ("sft_pref_demo/dpo_en_demo.json.gz", "preferences", "pair", 300, {}),
    ("sft_pref_demo/dpo_en_demo.json.gz", "labels", "pair", 600, {}),
    ("sft_pref_demo/kto_en_demo.json.gz", "labels", "label", 300, {}),
    ("hh_rlhf", "preferences", "hh", 2303, {"empty_answer": 4, "several_turns": 5}),
    ("constitutional_ai/438HHHEvaluations.jsonl.gz", "preferences", "hh", 438, {}),
    ("constitutional_ai/RLMadisonFewShotPrompts.json", "preferences", "corrects", 5, {}),
    ("stanford_alpaca", "conversations", "alpaca", 175, {}),
])
def test_public_files_are_read_whole(name, kind, layout, num_items, counts):
    found, faults = read(DATASETS / name, kind, layout)
    assert (len(found), faults.counts) == (num_items, counts)
    if name.endswith("dpo_en_demo.json.gz") and kind == "preferences":
        assert sum(len(item.prompt.messages) > 1 for item in found) == 186
    if name == "hh_rlhf":       # the longer answer is chosen in 44.3 %
        longer = [len(a) > len(b) for a, b in (item.responses for item in found)]
        assert sum(longer) / len(longer) == pytest.approx(0.443, abs=0.001)
    if kind == "labels":
        assert sum(item.is_good for item in found) == num_items // 2


@pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
@pytest.mark.parametrize("name", ["mt_bench", "judge_battles"])
def test_public_files_without_answers_to_questions_are_refused(name):
    with pytest.raises(UserError, match="its rows are in no known layout"):
        read(DATASETS / name, "preferences")


@pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
def test_public_votes_are_kept_or_counted(tmp_path):
    """4,480 verdicts over two answers each: 3 is a tie, -1 a verdict that could not be parsed."""
    folder = DATASETS / "judge_battles"
    asked = {row["question_id"]: row["text"] for row in map(
        json.loads, (folder / "vicuna_questions.jsonl").read_text().splitlines())}
    with gzip.open(folder / "vicuna_answers.jsonl.gz", "rt") as file:
        answers = {(row["model"], row["question_id"]): row["answer"]
                   for row in map(json.loads, file)}
    with gzip.open(folder / "battles_vicuna.csv.gz", "rt") as file:
        battles = list(csv.DictReader(file))
    winners = {"1": "model_a", "2": "model_b", "3": "tie"}
    rows = [{**{f"conversation_{side}": [
        {"role": "user", "content": asked[int(battle["question_id"])]},
        {"role": "assistant", "content": answers[battle[f"model_{side}"],
                                                 int(battle["question_id"])]}] for side in "ab"},
             "winner": winners.get(battle["score"])} for battle in battles]
    found, faults = read(write(tmp_path / "battles.jsonl", *rows), "preferences")
    assert len(found) + sum(faults.counts.values()) == len(battles) == 4480
    assert faults.counts["unknown_vote"] == sum(battle["score"] == "-1" for battle in battles)
    counts = Counter(item.ranks for item in found)
    assert (counts[1, 2], counts[2, 1]) == (2512, 1355), (counts, faults.counts)
