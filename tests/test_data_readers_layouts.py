"""Layouts of files and of inputs: CSV, arrays, Arrow, compression, lists, links, commas."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from data.passes.reading import find_first
from data.readers import arrays, rows, storage
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord, Skipped
from data.readers.units import LeftOut, find_inputs, format_of, plan, search

ROWS = [{"text": f"row {i}, \"quoted\"\nand 'more' é{'x' * i}", "id": str(i)} for i in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read_all(path, unit_bytes=1 << 40):
    return [item for unit in plan([str(path)], unit_bytes) for item in read(unit)]


def texts(items):
    return [item.content for item in items if isinstance(item, RawRecord)]


def reasons(items):
    return [item.reason for item in items if not isinstance(item, RawRecord)]


def delimited_lines(delimiter):
    """The rows, with every value quoted."""
    quoted = [[json.dumps(name) for name in ROWS[0]]] + [
        [f'"{value}"' for value in (row["text"].replace('"', '""'), row["id"])] for row in ROWS]
    return "".join(delimiter.join(values) + "\r\n" for values in quoted).encode()


def arrow_bytes(make_writer):
    file, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with make_writer(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return file.getvalue()


def test_every_layout_gives_the_same_rows(tmp_path):
    files = {
        "a.JSONL": LINES, "a.ndjson": LINES, "a.json": LINES, "b.json": json.dumps(ROWS).encode(),
        "c.json": json.dumps(ROWS, indent=2).encode(), "d.jsonl": json.dumps(ROWS).encode(),
        "e.json": json.dumps({"version": 1, "data": ROWS}, indent=2).encode(),
        "f.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "h.jsonl": LINES.decode().encode("utf-16"),
        "g.json": b"\xef\xbb\xbf[\n" + LINES.rstrip().replace(b"\n", b",\n") + b"\n]\n",
        "a.csv": delimited_lines(","), "b.csv": b"\xef\xbb\xbf" + delimited_lines(";"),
        "c.csv": delimited_lines(",").decode().encode("utf-16"), "a.tsv": delimited_lines("\t"),
        "a.arrow": arrow_bytes(pa.ipc.new_stream), "a.feather": arrow_bytes(pa.ipc.new_file),
        "a.jsonl.bz2": bz2.compress(LINES[:99]) + bz2.compress(LINES[99:]),
        "a.jsonl.xz": lzma.compress(LINES[:99]) + lzma.compress(LINES[99:]),
        "a.csv.gz": gzip.compress(delimited_lines(",")), "a.json.xz": lzma.compress(
            json.dumps(ROWS).encode()),
        "a.jsonl.lz4": pa.compress(LINES, "lz4", asbytes=True)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    paths = find_inputs(str(tmp_path))
    assert len(paths) == len(files) + 1
    for path in paths:
        for unit_bytes in (500, 1 << 30):
            items = read_all(path, unit_bytes)
            assert texts(items) == [row["text"] for row in ROWS], path
            assert [item.id for item in items] == [row["id"] for row in ROWS], path


def test_a_lone_object_without_text_is_skipped_but_not_lines_without_text(tmp_path):
    path = tmp_path / "dataset_info.json"
    for content in ('{"name": "tides", "rows": 3}\n', '{\n "name": "tides",\n "rows": 3\n}'):
        path.write_text(content)
        item, = read_all(path)
        assert isinstance(item, Skipped) and item.fields == ("name", "rows")
    path.write_text('{"name": "tides"}\n{"name": "winds"}\n')
    assert all(isinstance(item, Corrupt) for unit in (18, 1 << 30) for item in read_all(path, unit))


@pytest.mark.parametrize(("content", "read_texts", "found"), [
    ('[{"text": "a"}, {"text": "b"', ["a"], ["json: file is cut off"]),
    ('[{"text": "a"}', ["a"], ["json: file is cut off"]),
    ('[{"text": "a"}, {text: "b"}, {"text": "c"}]', ["a"], ["json: damaged"]),
    ('[1, "b", {"text": "a"}]', ["a"], ["json: element is not an object"] * 2),
    (b'[{"text": "\xe9"}, {"text": "a"}]', ["a"], ["json: record is not UTF-8"]),
    ("[" * 100_000, [], ["json: damaged"]),
    ("[]", [], []), ('[{"text": "a"}][{"text": "b"}]', ["a", "b"], [])])
def test_damage_in_an_array_is_named_and_what_lies_before_is_read(tmp_path, content, read_texts,
                                                                  found):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    items = read_all(path)
    assert (texts(items), reasons(items)) == (read_texts, found)


def test_an_array_is_read_in_parts_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "READ_BYTES", 7)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*ROWS, {"text": "x" * 5000}]))
    assert len(texts(read_all(path))) == len(ROWS) + 1
    path.write_text('[123, 456, {"text": "a"}]')
    monkeypatch.setattr(arrays, "READ_BYTES", 1)
    assert [type(item) for item in read_all(path)] == [Corrupt, Corrupt, RawRecord]
    path.write_text(json.dumps([*ROWS, {"text": "x" * 5000}]))
    monkeypatch.setattr(arrays, "MAX_RECORD_BYTES", 400)
    items = read_all(path)
    assert len(texts(items)) == len(ROWS) and reasons(items) == ["json: record is too large"]


def test_rows_of_csv_that_are_no_rows_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\n\na,1\n"b"c,2\nd\ncaf\xe9,4\n"e\n')
    items = read_all(path)
    assert [item.content for item in items[:1] + items[3:4]] == ["a", b"caf\xe9"]
    assert reasons(items) == ["csv: value is too large or misquoted",
                              "csv: row has not as many values as the header has names",
                              "csv: value is too large or misquoted"]
    (tmp_path / "a.tsv").write_text('text\tid\n"Stay" he said.\t1\n')
    assert texts(read_all(tmp_path / "a.tsv")) == ["Stay he said."]
    (tmp_path / "b.csv").write_text("")
    assert read_all(tmp_path / "b.csv") == []
    path.write_text(f"text\na\n{'b' * 200_000}\n{'c' * 200}\nd\n")
    assert [len(text) for text in texts(read_all(path))] == [1, 200_000, 200, 1]
    usual = csv.field_size_limit(100)
    try:
        items = read_all(path)
    finally:
        csv.field_size_limit(usual)
    assert (texts(items), len(reasons(items))) == (["a", "d"], 2)


def test_a_cut_xz_file_gives_the_rows_before(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "HEAD_BYTES", 1)
    path, whole = tmp_path / "a.jsonl.xz", lzma.compress(LINES * 50)
    for size in (len(whole) // 2, 4):
        path.write_bytes(whole[:size])
        assert reasons(read_all(path)) == ["jsonl: file is cut off"], size
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    assert reasons(read_all(path))[-1] == "jsonl: damaged"


def test_formats_are_known_by_the_longest_suffix_in_either_case():
    for name, kind in (("a.warc.gz", "warc"), ("B.HTML.GZ", "html"), ("v1.2.jsonl.xz", "json"),
                       ("a.xhtml", "html"), ("a.rst", "text"), ("a.tar.gz", None), ("jsonl", None),
                       ("a.b/c", None), ("a.json.gz", "json"), ("a.csv.zst", "csv"),
                       ("https://a.org/b.csv?x=.txt", "csv")):
        assert format_of(name) == kind, name


def test_lists_commas_and_globs_name_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Smith, John, 2.txt", "a.txt", "b.txt", "#c.txt", "d.exe"):
        (tmp_path / name).write_text("text")
    (tmp_path / "list.txt").write_bytes(
        b"\xef\xbb\xbfa.txt\r\n\r\n# a comment\nSmith, John, 2.txt\n")
    (tmp_path / "list.gz").write_bytes(gzip.compress(b"./#c.txt\nbook:a.txt\n"))
    smith = "Smith, John, 2.txt"
    assert find_inputs("@list.txt") == [smith, "a.txt"]
    assert find_inputs("@list.gz,b.txt") == ["./#c.txt", "b.txt", "book:a.txt"]
    assert find_inputs(f"a.txt, {smith}") == find_inputs(r"a.txt,Smith\, John\, 2.txt")
    assert find_inputs(f"book:{smith},a.txt") == ["a.txt", f"book:{smith}"]
    inputs = search("[!l]*")
    assert inputs.paths == ["#c.txt", smith, "a.txt", "b.txt"]
    assert inputs.left_out == [LeftOut("unknown format", ".exe", 1, 4, ("d.exe",))]
    for wrong, message in (("@none.txt", "list cannot be read"), ("none, a.txt", r"write \\,"),
                           ("d.exe", "unknown format"),
                           ("*.exe", r"no input file, but others \(.exe 1\)")):
        with pytest.raises(UserError, match=message):
            find_inputs(wrong)


def test_links_are_followed_once_and_what_is_left_out_has_a_reason(tmp_path):
    top, store = tmp_path / "top", tmp_path / "store"
    (store / "shards").mkdir(parents=True)
    (top / "real").mkdir(parents=True)
    for path in (store / "shards/b.jsonl", top / "real/a.jsonl", top / ".hidden.txt",
                 top / "c.pdf", top / "d.tar.gz", store / "blob"):
        path.write_text('{"text": "a"}')
    for name, target in (("again", top / "real"), ("loop", tmp_path), ("more", store / "shards"),
                         ("real/up", top), ("gone.txt", tmp_path / "none"),
                         ("e.txt", store / "blob"), ("most", store)):
        os.symlink(target, top / name)
    inputs = search(str(top))
    assert inputs.paths == [f"{top}/", f"{top}/more/b.jsonl", f"{top}/real/a.jsonl"]
    assert [(item.source, type(item)) for item in read_all(f"{top}/")] == [
        (".hidden.txt", RawRecord), ("e.txt", RawRecord), ("gone.txt", Corrupt)]
    left = {(one.reason, one.suffix): one.examples for one in inputs.left_out}
    linked = "link to a folder that is read already"
    assert left == {
        (linked, "no suffix"): tuple(f"{top}/{name}" for name in (
            "again", "loop", "most/shards", "real/up")),
        ("unknown format", ".pdf"): (f"{top}/c.pdf",),
        ("unknown format", ".tar.gz"): (f"{top}/d.tar.gz",),
        ("unknown format", "no suffix"): (f"{top}/most/blob",)}
    assert storage.list_files(f"{top}/") == storage.list_files(str(top))


@pytest.mark.parametrize(("limit", "chosen", "last"), [
    (1, 1, 1), (5, 1, 5), (6, 3, 1), (12, 3, 7), (13, 4, 1), (35, 5, 3), (99, 25, 99)])
def test_a_limit_takes_the_first_documents_and_reads_few_units_more(limit, chosen, last):
    sizes, asked = [5, 0, 7, 20, 3, *[1] * 20], []

    def measure(tasks):
        asked.append(len(tasks))
        return [{"documents": min(size, task["reading"]["limit"])}
                for size, task in zip(sizes, tasks)]

    tasks = [{"path": number, "reading": {"limit": limit}} for number in range(len(sizes))]
    first = find_first(measure, tasks, limit)
    assert [task["path"] for task in first] == list(range(chosen))
    assert first[-1]["reading"] == {"limit": last} and max(asked) <= 2 * chosen
    assert sum(result["documents"] for result in measure(first)) == min(limit, sum(sizes))


def test_damage_that_ends_a_file_weighs_what_was_not_read(tmp_path):
    text = json.dumps(ROWS)
    cut, wrong = text[:len(text) // 2], text.replace('{"text": "row 15', '{text: "row 15')
    for name, content, expected in (
            ("a.json", cut.encode(), len(cut.encode())),
            ("b.json", wrong.encode(), len(wrong[wrong.index("{text"):].encode())),
            ("c.json", b'[3, {"text": "a"}]', 0), ("d.arrow", b"ARROW1\0\0", 8),
            ("e.csv", "text\n".encode("utf-16") + b"\0", 13),
            ("f.csv", b'text\n"a"b\nc\n', 0)):
        (tmp_path / name).write_bytes(content)
        damage, = (item for item in read_all(tmp_path / name) if isinstance(item, Corrupt))
        assert damage.num_bytes == expected, name
