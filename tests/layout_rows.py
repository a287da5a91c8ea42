"""Rows in every layout, with what they give; and writers of files of rows."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.chat import Conversation, Message, ask
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import Labelled, Preference

USER, ANSWER = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
WRONG = {"role": "assistant", "content": "3"}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
PLAIN = {"name": "add", "arguments": '{"a": 1}'}
ASKED, SOLVED = ask("1+1?"), ask("1+1?", "2")
HUMAN = "\n\nHuman: 1+1?\n\nAssistant:"
SYSTEM = Message("system", "Be brief.")
TOOLS = (Message("user", "1+1?"), Message("assistant", "", (CALL,)), Message("tool", "2"),
         Message("assistant", "It is 2"))


def write(path: Path, *rows) -> Path:
    """A file of JSON lines; rows that are texts are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path, kind, layout=""):
    """The items, and the faults."""
    faults = Faults("test")
    return list(read_examples(path, kind, layout=layout, faults=faults)), faults


def turns(*pairs) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


CHATS = {
    "answered": [
        ({"messages": [USER], "prompt": "<|user|>1+1?", "completion": "2"}, SOLVED.messages),
        ({"messages": [USER, WRONG, USER], "completion": "2"},
         (*SOLVED.messages[:1], Message("assistant", "3"), *SOLVED.messages))],
    "messages": [
        ({"messages": [USER, ANSWER]}, SOLVED.messages),
        ({"messages": [USER, ANSWER], "system": "Be brief."}, (SYSTEM, *SOLVED.messages)),
        ({"messages": [{"role": "developer", "content": "Be brief."}, USER, ANSWER, USER, ANSWER]},
         (SYSTEM, *SOLVED.messages, *SOLVED.messages)),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "1+1"},
                                                    {"type": "text", "text": "=?"}]}, ANSWER]},
         turns(("user", "1+1\n=?"), ("assistant", "2"))),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                       {"role": "tool", "content": "2", "tool_call_id": "x"},
                       {"role": "assistant", "content": "It is 2"}]}, TOOLS),
        ({"messages": [USER, {"role": "assistant", "content": None, "function_call": PLAIN},
                       {"role": "function", "name": "add", "content": "2"},
                       {"role": "assistant", "content": "It is 2"}]}, TOOLS),
        ({"messages": json.dumps([USER, ANSWER])}, SOLVED.messages),
        ({"messages": {"role": ["user", "assistant"], "content": ["1+1?", "2"]}}, SOLVED.messages)],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
         SOLVED.messages),
        ({"system": "Be brief.", "conversations": [
            {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
         (SYSTEM, *SOLVED.messages)),
        ({"conversations": [
            {"from": "human", "value": "1+1?"}, {"from": "function_call",
                                                 "value": json.dumps(PLAIN)},
            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "It is 2"}]}, TOOLS)],
    "alpaca": [
        ({"instruction": "1+1?", "input": "", "output": "2"}, SOLVED.messages),
        ({"instruction": "Add.", "input": "1 1", "output": "2"},
         ask("Add.\n\n1 1", "2").messages),
        ({"instruction": "1+1?", "output": "2", "system": "Be brief.", "history": [["a", "b"]]},
         (SYSTEM, *ask("a", "b").messages, *SOLVED.messages)),
        ({"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}]},
         ask("Add.\n\n1 1", "2").messages)],
    "completion": [
        ({"prompt": "1+1?", "completion": "2"}, SOLVED.messages),
        ({"prompt": "1+1?", "response": '[{"a": 1}]'}, ask("1+1?", '[{"a": 1}]').messages),
        ({"prompt": [USER], "completion": [ANSWER]}, SOLVED.messages),
        ({"prompt": HUMAN, "response": " 2"}, SOLVED.messages)],
    "question": [({"question": "1+1?", "answer": "2"}, SOLVED.messages),
                 ({"query": "1+1?", "response": "2"}, SOLVED.messages)],
    "transcript": [
        ({"text": f"{HUMAN} 2\n\nHuman: And 2+2?\n\nAssistant: 4"},
         (*SOLVED.messages, *ask("And 2+2?", "4").messages)),
        ({"text": "### Human: 1+1?### Assistant: 2"}, SOLVED.messages)],
}
PAIR = Preference(ASKED, ("2", "3"), (1, 2))
SCORED = Preference(ASKED, ("2", "3"), (1, 2), scores=(8.0, 1.5))
RANKED = Preference(ASKED, ("3", "2", "two"), (2, 1, 1))
ORDERS = {
    "hh": [({"chosen": f"{HUMAN} 2", "rejected": f"{HUMAN} 3"}, PAIR),
           ({"text_correct": f"{HUMAN} 2", "text_incorrect": f"{HUMAN} 3"}, PAIR)],
    "pair": [
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, PAIR),
        ({"question": "1+1?", "chosen": "2", "rejected": "3", "system": "Be brief."},
         Preference(Conversation((SYSTEM, *ASKED.messages)), ("2", "3"), (1, 2))),
        ({"prompt": HUMAN, "chosen": " 2", "rejected": " 3"}, PAIR),
        ({"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3"}, PAIR),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [WRONG]}, PAIR),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG]}, PAIR),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WRONG], "system": "Be brief."},
         Preference(Conversation((SYSTEM, *ASKED.messages)), ("2", "3"), (1, 2))),
        ({"prompt": "1+1?", "chosen": [USER, ANSWER], "rejected": [USER, WRONG],
          "messages": [USER, ANSWER], "score_chosen": 8, "score_rejected": 1.5}, SCORED),
        ({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, WRONG]},
         Preference(Conversation((*SOLVED.messages, *ASKED.messages)), ("2", "3"), (1, 2))),
        ({"conversations": [{"from": "human", "value": "1+1?"}],
          "chosen": {"from": "gpt", "value": "2"}, "rejected": {"from": "gpt", "value": "3"}},
         PAIR)],
    "scores": [
        ({"prompt": "1+1?", "responses": ["2", "3"], "scores": [8, "1.5"]}, SCORED),
        ({"instruction": "1+1?", "completions": [{"response": "2", "overall_score": 8.0},
                                                 {"response": "3", "overall_score": 1.5}]}, SCORED),
        ({"prompt": "1+1?", "completions": {"text": ["2", "3"], "rating": [8, 1.5]}}, SCORED),
        ({"prompt": "1+1?", "completions": ["3", "2", "two"], "ratings": [1, 5, 5]},
         Preference(ASKED, ("3", "2", "two"), (2, 1, 1), scores=(1.0, 5.0, 5.0)))],
    "ranking": [
        ({"prompt": "1+1?", "responses": ["3", "2", "two"], "ranks": [2, 1, 1]}, RANKED),
        ({"prompt": [USER], "responses": ["3", "2", "two"], "ranking": [2.0, 1.0, 1.0]}, RANKED),
        ({"prompt": HUMAN, "answers": [{"answer": "3", "rank": 2}, {"answer": "2", "rank": 1},
                                       {"answer": "two", "rank": 1}]}, RANKED)],
    "corrects": [({"prompt": HUMAN, "corrects": [" 2"], "incorrects": ["3"]}, PAIR)],
    "vote": [({"conversation_a": [USER, WRONG], "conversation_b": [USER, ANSWER],
               "winner": winner}, Preference(ASKED, ("3", "2"), ranks))
             for winner, ranks in (("model_b", (2, 1)), ("tie", (1, 1)))],
    "label": [
        ({"messages": [USER, ANSWER], "label": True}, Labelled(ASKED, "2", True)),
        ({"prompt": "1+1?", "completion": "3", "label": 0}, Labelled(ASKED, "3", False)),
        ({"prompt": [USER], "completion": [WRONG], "label": False}, Labelled(ASKED, "3", False)),
        ({"prompt": "1+1?", "completion": "2", "label": "1"}, Labelled(ASKED, "2", True))],
}


def as_csv(path, rows, delimiter):
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], delimiter=delimiter)
        table.writeheader()
        table.writerows({name: value if isinstance(value, str) else json.dumps(value)
                         for name, value in row.items()} for row in rows)


ROWS = [{"messages": [USER, ANSWER], "label": True}, {"messages": [USER, WRONG], "label": False}]
WRITERS = {
    "a.jsonl": write, "a.json": lambda path, *rows: path.write_text(json.dumps(rows, indent=1)),
    "a.jsonl.gz": lambda path, *rows: path.write_bytes(
        gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    "a.json.zst": lambda path, *rows: path.write_bytes(
        pa.compress(json.dumps(rows).encode(), "zstd", asbytes=True)),
    "a.parquet": lambda path, *rows: pq.write_table(pa.Table.from_pylist(list(rows)), path),
    "a.csv": lambda path, *rows: as_csv(path, rows, ","),
    "a.tsv": lambda path, *rows: as_csv(path, rows, "\t")}
