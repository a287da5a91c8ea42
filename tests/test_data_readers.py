"""Inputs, units, JSONL and Parquet: every record once for all units; damage is reported."""

import gzip
import json
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import PassingError, UserError
from data.passes.measure import same_url
from data.readers import rows, storage
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord, Skipped, is_binary
from data.readers.units import Unit, content_fingerprint, find_inputs, plan

ROWS = [{"text": f"row {i} " + "x" * (i % 7) * 11, "source": f"s{i}", "domain": "web"}
        for i in range(200)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read_all(paths, unit_bytes=1 << 40):
    return [item for unit in plan([str(path) for path in paths], unit_bytes)
            for item in read(unit)]


def reasons(items):
    return [getattr(item, "reason", None) for item in items]


@given(unit_bytes=st.integers(40, 20_000), ends_in_newline=st.booleans())
def test_jsonl_units_hold_every_line_once(tmp_path_factory, unit_bytes, ends_in_newline):
    path = tmp_path_factory.getbasetemp() / f"rows-{ends_in_newline}.jsonl"
    path.write_bytes(LINES if ends_in_newline else LINES[:-1])
    assert [item.source for item in read_all([path], unit_bytes)] == [r["source"] for r in ROWS]


def test_units_of_one_byte_hold_every_line_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n\n{"text": "b"}\n{"text": "c"}')
    assert [(item.content, item.source) for item in read_all([path], 1)] == [
        ("a", "rows.jsonl@0"), ("b", "rows.jsonl@16"), ("c", "rows.jsonl@30")]


@pytest.mark.parametrize("unit_bytes", [50, 500, 1 << 30])
def test_every_form_of_rows_gives_the_same_records(tmp_path, unit_bytes):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES[:999]) + gzip.compress(LINES[999:]))
    (tmp_path / "c.json.zst").write_bytes(pa.compress(LINES, codec="zstd", asbytes=True))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet", row_group_size=17)
    (tmp_path / "e.jsonl").write_bytes(gzip.compress(LINES))     # mislabelled, both ways
    (tmp_path / "f.jsonl.gz").write_bytes(LINES)
    paths = find_inputs(str(tmp_path))
    assert len(paths) == 6
    for path in paths:
        assert read_all([path], unit_bytes) == read_all(paths[:1]), path
    assert len(plan(paths[3:4], 500)) > 5


def test_a_cut_between_two_rows_gives_each_to_one_unit(tmp_path):
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_bytes(LINES)
    size = LINES.index(b"\n") + 1
    assert [item.source for item in read(Unit(str(lines), 0, size))] == ["s0"]
    assert [item.source for item in read(Unit(str(lines), size, size + 1))] == ["s1"]
    pq.write_table(pa.Table.from_pylist(ROWS[:4]), table, row_group_size=2)
    column = pq.ParquetFile(table).metadata.row_group(1).column(0)
    cut = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
    assert [item.source for item in read(Unit(str(table), 0, cut))] == ["s0", "s1"]
    assert [item.source for item in read(Unit(str(table), cut, cut + 1))] == ["s2", "s3"]


def test_damaged_lines_are_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n[1]\n\n{"name": "x"}\n{"text": "\xff"}\n'
                     b'{"text": 5}\n{"text": " "}\n{"text": "a\\ud800b"}\n' + b"[" * 10**5 + b"\n"
                     b'{"text": "two", "url": "u", "id": 7}')
    items = read_all([path])
    assert [item.content for item in items if isinstance(item, RawRecord)] == [
        "one", "a\ufffdb", "two"]
    assert items[-1].source == "u" and items[-1].id == "7"
    assert [reason for reason in reasons(items) if reason] == [
        "jsonl: line is not JSON", "jsonl: line is not an object",
        "jsonl: no field `text` or `messages`", "jsonl: line is not JSON",
        "jsonl: `text` is not a string", "empty", "jsonl: line is not JSON"]


@pytest.mark.parametrize("unit_bytes", [1 << 30, 900])
@pytest.mark.parametrize("name", ["bomb.jsonl", "bomb.jsonl.gz"])
def test_an_overlong_line_is_one_corrupt_record(tmp_path, monkeypatch, name, unit_bytes):
    monkeypatch.setattr(rows, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(rows, "READ_BYTES", 32)
    lines = b"\n".join(json.dumps({"text": "a" * n}).encode() for n in (10, 5000, 88, 20))
    path = tmp_path / name
    path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    assert reasons(read_all([path], unit_bytes)) == [None, "jsonl: line is too long", None, None]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_cut_stream_gives_the_lines_before(tmp_path, codec):
    whole = gzip.compress(LINES) if codec == "gzip" else pa.compress(LINES, codec, asbytes=True)
    path = tmp_path / f"cut.jsonl.{'gz' if codec == 'gzip' else 'zst'}"
    for size in (1, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        *lines, last = read_all([path])
        assert isinstance(last, Corrupt) and len(lines) <= len(ROWS), size
        assert [item.source for item in lines] == [row["source"] for row in ROWS[:len(lines)]]


def test_broken_parquet_is_named_once_per_file(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=50)
    data = path.read_bytes()
    for damaged in (data[:-20], data[:40] + b"\0" * 60 + data[100:], b"", b"PAR1", b"<html>"):
        path.write_bytes(damaged)
        items = read_all([path], 500)
        assert sum(isinstance(item, Corrupt) for item in items) == 1, items
    pq.write_table(pa.table({"name": ["x", "y"]}), path)
    assert reasons(read_all([path], 50)) == ["parquet: no field `text` or `messages`"] * 2


def test_a_folder_is_expanded_to_archives_and_itself(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.md", "sub/b.html", "sub/c.txt", "sub/rows.jsonl", "d.unknown"):
        (tmp_path / name).write_text('{"text": "x"}')
    paths = find_inputs(f"{tmp_path}, {tmp_path}/sub/*.jsonl")
    assert paths == [f"{tmp_path}/", f"{tmp_path}/sub/rows.jsonl"]
    assert find_inputs(f"{tmp_path}, {tmp_path}/sub, {tmp_path}/*.md") == paths
    documents = [(item.source, item.content_type) for item in read_all(paths[:1])]
    assert documents == [("a.md", "text/markdown"), ("sub/b.html", "text/html"),
                         ("sub/c.txt", "text/plain")]
    assert [unit[1:] for unit in map(list_unit, plan(paths[:1], 14))] == [(0, 1), (1, 2), (2, 3)]
    assert read_all(paths, 14) == read_all(paths)


def list_unit(unit: Unit) -> tuple[str, int, int]:
    return unit.path, unit.start, unit.stop


def test_large_and_binary_documents_are_rejected(tmp_path, monkeypatch):
    documents = {"a.txt": b"text", "b.txt": b"", "c.txt": b"\x7fELF\0\1\0\0\0", "d.txt": b" \n",
                 "e.txt": "é".encode("latin-1"), "f.html": "<p>ж</p>".encode("utf-16"),
                 "g.txt.gz": gzip.compress(b"packed"), "h.txt.gz": gzip.compress(b"x" * 99)[:20],
                 "i.txt": gzip.compress(b"packed"), "j.txt": b"x" * 101,
                 "k.txt": b"\n%PDF-1.4 1 0 obj"}
    for name, content in documents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("data.readers.files.MAX_RECORD_BYTES", 100)
    items = read_all(find_inputs(str(tmp_path)))
    assert reasons(items) == [None, "empty", "content is an executable", "empty", None, None, None,
                              "file: file is cut off", None, "file: record is too large",
                              "content is PDF"]
    assert [item.num_bytes for item in items if isinstance(item, Corrupt)] == [20, 101]
    assert items[6].content == items[8].content == b"packed"
    assert is_binary(b"a\0b" * 99) and not is_binary("a ж".encode("utf-16-le"))


def test_a_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="is not a regular file"):
        find_inputs(f"{tmp_path}/pipe.txt")
    (tmp_path / "a.txt").write_text("a")
    items = []
    reader = threading.Thread(target=lambda: items.extend(read_all(find_inputs(str(tmp_path)))),
                              daemon=True)
    reader.start()
    reader.join(5)
    assert reasons(items) == [None, "file: not a regular file"]
    assert len(content_fingerprint(f"{tmp_path}/")) == 32


def test_inputs_that_match_nothing_or_have_no_known_format_are_refused(tmp_path):
    (tmp_path / "b.exe").write_bytes(b"MZ")
    (tmp_path / "a.md").write_text("# A")
    for patterns in (f"{tmp_path}/none*", f"{tmp_path}/b.exe", " , ", f"{tmp_path}/none.txt",
                     f"repo:{tmp_path}/a.md", "nowhere://bucket/a.jsonl"):
        with pytest.raises(UserError, match="inputs="):
            find_inputs(f"{tmp_path}/a.md, {patterns}" if patterns != " , " else patterns)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs"),
                                                 ("hf", "huggingface_hub")])
def test_a_missing_storage_package_is_named(monkeypatch, scheme, package):
    def refuse(*_, **__):
        raise ImportError("not installed")
    monkeypatch.setattr(storage.fsspec.core, "url_to_fs", refuse)
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
        find_inputs(f"{scheme}://bucket/a.jsonl")


def test_what_was_deleted_since_it_was_planned_is_an_error(tmp_path):
    for name in ("a.jsonl", "a.warc.gz", "a.arc", "a.parquet", "a.txt", "a.xml", "none/"):
        for path in (f"{tmp_path}/{name}", f"repo:{tmp_path}/none/"):
            with pytest.raises(PassingError, match=r"cannot be read \(it is gone\)"):
                list(read(Unit(path, 0, 9)))


def test_fingerprint_follows_the_bytes_and_the_names(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert content_fingerprint(str(path)) == "99aa06d3014798d86001c324468d497f"
    empty = content_fingerprint(f"{tmp_path}/")
    path.write_bytes(b"a")
    assert content_fingerprint(str(path)) != "99aa06d3014798d86001c324468d497f"
    full = content_fingerprint(f"{tmp_path}/")
    path.rename(tmp_path / "b.txt")
    assert len({empty, full, content_fingerprint(f"{tmp_path}/")}) == 3


def test_the_source_is_a_url_where_the_row_holds_one(tmp_path):
    path, url = tmp_path / "rows.jsonl", "https://example.org/page"
    fields = [{"source": "books", "metadata": {"url": url}}, {"source": "books", "url": url},
              {"source": "books", "meta": {"url": url}}, {"source": url, "url": "https://b.org/"},
              {"source": "books"}, {"metadata": "no mapping", "url": "page 7"}, {"metadata": {}}]
    expected = [url, url, url, url, "books", "page 7"]
    path.write_text("\n".join(json.dumps({"text": "t", **row}) for row in fields))
    *sources, last = (item.source for item in read_all([path]))
    assert sources == expected and last.startswith("rows.jsonl@")
    for row, source in zip(fields[:-1], expected):      # a column of Parquet has one type
        pq.write_table(pa.Table.from_pylist([{"text": "t", **row}]), tmp_path / "row.parquet")
        assert [item.source for item in read_all([tmp_path / "row.parquet"])] == [source]


def test_spellings_of_a_page_are_one_page_and_others_are_not():
    page = same_url("https://Example.org/a/B?q=C")
    assert page == same_url("http://example.ORG/a/B?q=C#top") == same_url("s://example.org/a/B?q=C/")
    pages = ("https://example.org/a/b?q=C", "https://example.org/a/B?q=c", "https://example.org/",
             "https://example.org/#/guide/1", "https://example.org/#/guide/2")
    assert len({page, *map(same_url, pages)}) == 6
    assert same_url("https://example.org") == same_url(pages[2])
    assert same_url("books") == same_url("part-1.jsonl@16") == ""


def test_an_empty_file_is_reported_in_every_format(tmp_path):
    for name in ("a.warc", "a.arc", "a.parquet", "a.txt", "a.xml.bz2"):
        (tmp_path / name).write_bytes(b"")
        item, = read_all([tmp_path / name])
        assert isinstance(item, Corrupt | Skipped), name
