"""Raw inputs: every record once, whatever the cuts; damage comes out as `Corrupt`."""

import gzip
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from core.errors import UserError
from data import readers
from data.readers import Corrupt, RawRecord, Skipped, Unit

ROWS = [{"text": f"row {i} " + "x" * (i % 7) * 11, "source": f"s{i}", "domain": "web"}
        for i in range(200)]


def write_warc(path: Path, pages: list[tuple[str, bytes, str, str]]) -> list[int]:
    """Writes (url, body, status, content type) records; returns the end of each in the file."""
    ends = []
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, body, status, content_type in pages:
            http = StatusAndHeaders(status, [("Content-Type", content_type)], "HTTP/1.1")
            writer.write_record(writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), length=len(body), http_headers=http))
            ends.append(file.tell())
    return ends


def read_all(paths, unit_bytes=1 << 20):
    return [item for unit in readers.plan(paths, unit_bytes) for item in readers.read(unit)]


@pytest.mark.parametrize("unit_bytes", [1, 50, 333, 10_000, 1 << 30])
def test_jsonl_units_hold_every_line_once(tmp_path, unit_bytes):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    units = readers.plan([path], unit_bytes)
    assert units[0].start == 0 and units[-1].stop == path.stat().st_size
    assert [item.source for item in read_all([path], unit_bytes)] == [r["source"] for r in ROWS]


def test_compressed_jsonl_and_parquet_give_the_same_records(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as file:
        file.write(text)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "d.parquet", row_group_size=17)
    paths = readers.find_inputs(str(tmp_path))
    assert len(paths) == 4
    for path in paths:
        assert read_all([path], 500) == read_all(paths[:1]), path.name
    assert len(readers.plan(paths[3:], 500)) > 5


def test_damaged_lines_are_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n[1]\n\n{"body": "x"}\n{"text": "\xff"}\n'
                     b'{"text": "two", "url": "u", "id": 7}')
    items = read_all([path])
    assert [item.content for item in items if isinstance(item, RawRecord)] == ["one", "two"]
    assert items[-1].source == "u" and items[-1].id == "7"
    assert [item.reason for item in items if isinstance(item, Corrupt)] == [
        "jsonl: line is not JSON", "jsonl: line is not an object", "jsonl: no field `text`",
        "jsonl: line is not JSON"]


def test_an_overlong_line_costs_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(readers, "READ_BYTES", 32)
    path = tmp_path / "bomb.jsonl.gz"
    lines = [json.dumps({"text": "a" * n}).encode() for n in (10, 5000, 20)]
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    assert [getattr(item, "reason", None) for item in read_all([path])] == [
        None, "jsonl: line is too long", None]


def test_truncated_gzip_and_broken_parquet_do_not_raise(tmp_path):
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:len(whole) // 2])
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "good.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-20])
    (tmp_path / "flipped.parquet").write_bytes(data[:40] + b"\x00" * 60 + data[100:])
    for name in ("cut.jsonl.gz", "cut.parquet", "flipped.parquet"):
        items = read_all([tmp_path / name])
        assert isinstance(items[-1], Corrupt), name


def test_warc_gives_pages_and_names_what_is_none(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [("http://a/", b"<p>a</p>", "200 OK", "text/html; charset=utf-8"),
                      ("http://b/", b"gone", "404 Not Found", "text/html"),
                      ("http://c/", b"\x89PNG", "200 OK", "image/png")])
    page, *rest = read_all([path])
    assert (page.source, page.content, page.content_type) == ("http://a/", b"<p>a</p>", "text/html")
    assert rest == [Skipped("http://b/", "warc: http status is not 200"),
                    Skipped("http://c/", "warc: content is not text")]


def test_warc_cut_anywhere_gives_the_whole_records_before_and_one_corrupt(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    bodies = [bytes(f"<p>{i}</p>" * 200, "ascii") + os.urandom(300) for i in range(3)]
    ends = write_warc(path, [(f"http://{i}/", body, "200 OK", "text/html")
                             for i, body in enumerate(bodies)])
    data, cut = path.read_bytes(), tmp_path / "cut.warc.gz"
    for size in [*range(25, len(data), 61), *(end + 30 for end in ends[:2])]:
        if size in ends:
            continue
        cut.write_bytes(data[:size])
        items = read_all([cut])
        whole = sum(end <= size for end in ends)
        assert [item.content for item in items[:whole]] == bodies[:whole], size
        assert any(isinstance(item, Corrupt) for item in items[whole:]), size


def test_a_record_beyond_the_cap_is_corrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_RECORD_BYTES", 1000)
    path = tmp_path / "bomb.warc.gz"
    write_warc(path, [("http://bomb/", b"a" * 5000, "200 OK", "text/html"),
                      ("http://a/", b"a", "200 OK", "text/html")])
    assert [getattr(item, "reason", None) for item in read_all([path])] == [
        "warc: record is too large", None]


def test_real_warc_files_are_read_and_arc_is_refused():
    root = os.environ.get("HEARTWOOD_DATASETS")
    if not root:
        pytest.skip("HEARTWOOD_DATASETS is not set")
    found = {path.name: read_all([path]) for path in readers.find_inputs(f"{root}/warc/warcio")}
    assert len(found) == 7
    assert isinstance(found.pop("example.arc.gz")[0], Corrupt)
    assert {type(item) for items in found.values() for item in items} == {RawRecord}
    for name in ("example.warc.gz", "example-wrong-chunks.warc.gz",
                 "example-bad-non-chunked.warc.gz"):
        assert b"Example Domain" in found[name][0].content, name
    assert found["example-wget-bad-target-uri.warc.gz"][0].source == "http://example.com/"


def test_inputs_that_match_nothing_or_have_no_known_format_are_refused(tmp_path):
    (tmp_path / "a.md").write_text("# A")
    (tmp_path / "b.exe").write_bytes(b"MZ")
    assert readers.find_inputs(f"{tmp_path}, {tmp_path}/*.md") == [tmp_path / "a.md"]
    for patterns in (f"{tmp_path},{tmp_path}/none*", f"{tmp_path}/b.exe", " , "):
        with pytest.raises(UserError, match="inputs="):
            readers.find_inputs(patterns)


def test_fingerprint_follows_the_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    assert readers.content_fingerprint(path) == "99aa06d3014798d86001c324468d497f"
    path.write_bytes(b"a")
    assert readers.content_fingerprint(path) != "99aa06d3014798d86001c324468d497f"
    assert list(readers.read(Unit(path, 0, 1))) == [RawRecord("a.txt", b"a", "text/plain")]
