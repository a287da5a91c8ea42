"""Fields of rows: which one is the text, what stays with the document, how turns are rendered."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import make_curate
from core.errors import UserError
from data.passes.reading import check_fields
from data.readers import conversations
from data.readers.fields import USUAL, Fields, from_config, make_record
from data.readers.metadata import MAX_META_BYTES, as_json, keep, lookup
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord, RowNotes
from data.readers.units import Unit


def record_of(row, fields=USUAL):
    return make_record(row, "rows.jsonl@0", "jsonl", fields)


def section_of(**changes):
    section = make_curate()
    section.update(changes)
    return section.to_dict()


def test_the_first_usual_field_with_a_text_is_taken_and_noted():
    for row, text, field in (
            ({"content": "a", "text": "b"}, "b", "text"),
            ({"content": "a", "text": ""}, "a", "content"),
            ({"body": "a", "raw_content": "b"}, "b", "raw_content"),
            ({"text": None, "code": "a"}, "a", "code"), ({"text": ["a", "b"]}, "a\n\nb", "text"),
            ({"content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "a", "content"),
            ({"text": b"a\xe9"}, b"a\xe9", "text")):
        record = record_of(row)
        assert (record.content, record.notes.text) == (text, field), row
    assert record_of({"html": "<p>a"}).content_type == "text/html"
    assert record_of({"title": "a"}).reason == "jsonl: no field `text` or `messages`"
    assert record_of({"title": "a"}).fields == ("title",)
    assert record_of({"text": 5}) == Corrupt("rows.jsonl@0", "jsonl: `text` is not a string")
    assert record_of({"text": 5, "body": "a"}).content == "a"


def test_configured_fields_lead_into_objects_and_replace_the_usual_ones():
    fields = Fields(text="doc.parts", id="doc.key", url="doc.at", domain="kind", meta=("doc.year",))
    row = {"text": "b", "id": 1, "url": "u", "kind": "letters",
           "doc": {"parts": ["a"], "key": 7, "at": "v", "year": 1900}}
    assert record_of(row, fields) == RawRecord("v", "a", "text/plain", "letters", "7", meta={
        "doc.year": 1900}, notes=RowNotes("doc.parts"))
    bare = record_of({"doc": {"parts": "a"}, "text": "b"}, fields)
    assert (bare.source, bare.id, bare.domain) == ("rows.jsonl@0", None, None)
    assert bare.notes.missing == ("doc.key", "doc.at", "kind", "doc.year")
    assert record_of({"text": "b"}, fields).reason == "jsonl: no field `doc.parts`"


def test_names_with_dots_are_looked_up_whole_then_in_objects_and_in_their_json():
    assert lookup({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert lookup({"a": {"b": {"c": 2}}}, "a.b.c") == 2
    assert lookup({"a": '{"b": 2}'}, "a.b") == 2
    assert lookup({"a": "{b"}, "a.b") is lookup({"a": [1]}, "a.b") is lookup({}, "a") is None
    assert record_of({"text": "a", "meta": '{"url": "https://b.org"}'}).source == "https://b.org"


def test_the_fields_of_a_row_stay_with_it_up_to_a_size_and_named_ones_whatever_it_is():
    row = {"text": "a", "id": "k", "license": "cc0", "note": None, "inner": {"text": "b", "n": [1]},
           "large": "x" * MAX_META_BYTES, "image": b"\xff"}
    meta = {"id": "k", "license": "cc0", "inner": {"text": "b", "n": [1]}}
    assert keep(row, ["text"], ["*"]) == (meta, ["image", "large"])
    assert keep(row, ["text"], ["*", "large"]) == (meta | {"large": row["large"]}, ["image"])
    assert keep(row, ["inner.text"], ["*"])[0]["inner"] == {"n": [1]}
    assert keep(row, ["text"], ["license", "inner.n"]) == ({"license": "cc0", "inner.n": [1]}, [])
    assert keep(row, ["text"], ["*", "inner.n"])[0] == meta
    assert keep(row, ["text"], []) == ({}, [])


def test_values_become_strict_json():
    value = {"day": datetime.date(2024, 5, 1), "price": decimal.Decimal("1.50"),
             "nan": float("nan"), "half": "a\ud800", "bytes": b"a", 5: (True, None)}
    assert as_json(value) == {"day": "2024-05-01", "price": "1.50", "nan": None,
                              "half": "a\ufffd", "bytes": "a", "5": [True, None]}


def test_every_configured_name_is_checked():
    fields = from_config(section_of(meta_fields=("license, year",), text_field="body",
                                    columns=dict(domain="kind", licence="license", by="author")))
    assert fields == Fields("body", domain="kind", meta=("license", "year", "author"))
    assert from_config(section_of()) == USUAL
    for wrong in (dict(columns=dict(text="body")), dict(columns=dict(reason="why")),
                  dict(columns=dict(year=3)), dict(columns=dict(year="")),
                  dict(meta_fields=(3,))):
        with pytest.raises(UserError, match=r"curate\.(columns|meta_fields)"):
            from_config(section_of(**wrong))


def result_of(documents=0, textless=0, names=(), **counts):
    return {"documents": documents, "textless": {"rows": textless, "fields": names},
            "text_fields": {}, "missing_fields": {}, "cut_fields": {}} | counts


def test_a_field_that_no_row_has_is_one_line_and_a_choice_is_announced(capsys):
    read_ten = result_of(10, text_fields={"content": 9, "text": 1})
    assert check_fields(section_of(), [read_ten, read_ten])["text_fields"] == {
        "content": 18, "text": 2}
    assert "the text of rows is read from content 18;" in capsys.readouterr().err
    check_fields(section_of(text_field="content"), [read_ten])
    assert "the text of rows" not in capsys.readouterr().err
    for section, results, message in (
            (section_of(text_field="bdy"), [result_of(0, 3, ("body", "id"))],
             r"curate.text_field='bdy': 3 of 3 rows have no such field \(the first has body, id\)"),
            (section_of(), [read_ten, result_of(0, 3, ("title",))], "3 of 13 rows have no usual"),
            (section_of(id_field="key"), [read_ten | {"missing_fields": {"key": 10}}],
             r"curate.id_field='key': has a value in no row"),
            (section_of(columns=dict(a="key")), [read_ten | {"missing_fields": {"key": 10}}],
             r"curate.columns='key': has a value in no row"),
            (section_of(meta_fields=("key",)), [read_ten | {"missing_fields": {"key": 10}}],
             r"curate.meta_fields='key': has a value in no row")):
        with pytest.raises(UserError, match=message):
            check_fields(section, results)
    check_fields(section_of(id_field="key"), [
        read_ten | {"missing_fields": {"key": 2}, "cut_fields": {"image": 10}}])
    logged = capsys.readouterr().err
    assert "2 of 10 rows have no field `key` (curate.id_field='key')" in logged
    assert "not kept in `meta`: image 10" in logged


def test_parquet_reads_the_columns_that_are_needed(tmp_path, monkeypatch):
    path, asked = tmp_path / "rows.parquet", []
    table = pa.table({
        "raw": pa.array([b"caf\xc3\xa9"], pa.binary()), "long": pa.array(["a"], pa.large_string()),
        "parts": [["a", "b"]], "image": pa.array([{"bytes": b"\xff", "path": "p"}]),
        "meta": [{"url": "https://b.org", "size": 3}],
        "at": pa.array([{"all": [1_700_000_000_123_456_789]}],
                       pa.struct([("all", pa.list_(pa.timestamp("ns")))])),
        "far": pa.array([2**62], pa.timestamp("us"))})
    pq.write_table(table, path)
    read_columns = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda file, *args, columns, **options: (
        asked.append(columns) or read_columns(file, *args, columns=columns, **options)))
    for field, text in (("raw", "café".encode()), ("long", "a"), ("parts", "a\n\nb")):
        record, = read(Unit(str(path), 0, 1 << 20), Fields(text=field))
        assert (record.content, record.source) == (text, "https://b.org")
        assert record.meta["at"] == {"all": ["2023-11-14 22:13:20.123456789"]}
        assert record.notes.cut == (("image",) if field == "raw" else ("raw", "image"))
    record, = read(Unit(str(path), 0, 1 << 20), Fields(text="long", meta=("meta.size",)))
    assert record.meta == {"meta.size": 3} and record.source == "https://b.org"
    assert asked[-1] == ["long", "meta.size", "meta.url"]


TURNS = [{"role": "user", "content": "When is high tide?"},
         {"role": "assistant", "content": None, "tool_calls": [
             {"type": "function", "function": {"name": "tides", "arguments": '{"port": "B"}'}}]},
         {"role": "tool", "content": "16:10"},
         {"role": "assistant", "content": "At ten past four."}]


def test_calls_of_tools_are_rendered_and_turns_without_content_left_out():
    text = ('User: When is high tide?\n\nAssistant: tides({"port": "B"})\n\nTool: 16:10\n\n'
            "Assistant: At ten past four.")
    assert conversations.render(TURNS) == conversations.render(json.dumps(TURNS)) == text
    legacy = TURNS[1] | {"tool_calls": None, "function_call": {"name": "tides",
                                                               "arguments": {"port": "B"}}}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "I look."}, {
        "type": "tool_use", "name": "tides", "input": {"port": "B"}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "content": [{"text": "16:10"}]}]}
    assert conversations.render([legacy]) == 'Assistant: tides({"port": "B"})'
    assert conversations.render([parts, result]) == (
        'Assistant: I look.\ntides({"port": "B"})\n\nUser: 16:10')
    assert conversations.render([TURNS[0], {"from": "gpt", "value": None},
                                 {"role": "user", "content": [{"type": "image"}]}]) == text[:24]
    assert conversations.render({"from": ["human", "gpt"], "value": ["Why?", "So."]}) == (
        "User: Why?\n\nAssistant: So.")
    for wrong in ([3], [{"content": "a"}], [{"role": "user", "content": 3}], "text", None):
        assert conversations.render(wrong) is None, wrong


def test_pairs_and_bare_strings_are_turns():
    text = "User: Why?\n\nAssistant: So."
    assert conversations.render([{"user": "Why?", "assistant": "So."}]) == text
    assert conversations.render(["Why?", "So."]) == text
    assert conversations.render([{"prompt": "Why?", "response": "So."}], "Be brief.") == (
        f"System: Be brief.\n\n{text}")
    for row in ({"prompt": "Why?", "completion": "So."}, {"question": "Why?", "answer": "So."},
                {"instruction": "Why?", "input": "", "output": "So."},
                {"prompt": TURNS[:1], "completion": TURNS[3:]}):
        record = record_of({**row, "id": 1})
        assert record.domain == "conversations" and record.meta == {"id": 1}
        assert record.content in (text, "User: When is high tide?\n\nAssistant: At ten past four.")
    asked = record_of({"instruction": "Why?", "context": "A rope.", "response": "So."})
    assert asked.content == "User: Why?\n\nA rope.\n\nAssistant: So."
    assert asked.notes.text == "instruction, context, response"
    chosen = record_of({"chosen": TURNS[:1], "rejected": TURNS}, Fields(text="chosen"))
    assert (chosen.domain, chosen.content) == ("conversations", "User: When is high tide?")
    assert record_of({"messages": TURNS[:1], "system": "Be brief."}).content == (
        "System: Be brief.\n\nUser: When is high tide?")
