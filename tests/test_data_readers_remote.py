"""URLs: ranges over HTTP, an in-memory store in place of s3 and gs, failing servers."""

import gzip
import http.server
import io
import json
import threading
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from core.errors import PassingError, UserError
from data.readers import storage
from data.readers.read import read
from data.readers.records import RawRecord
from data.readers.units import content_fingerprint, find_inputs, plan

ROWS = [{"text": f"row {i}", "source": f"s{i}"} for i in range(300)]


def make_files() -> dict[str, bytes]:
    """The same documents in every format that can be cut."""
    archive, table = io.BytesIO(), io.BytesIO()
    writer = WARCWriter(archive, gzip=True)
    for row in ROWS:
        body = row["text"].encode()
        writer.write_record(writer.create_warc_record(
            row["source"], "response", payload=io.BytesIO(body), length=len(body),
            http_headers=StatusAndHeaders("200 OK", [("Content-Type", "text/plain")], "HTTP/1.1")))
    pq.write_table(pa.Table.from_pylist(ROWS), table, row_group_size=40)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    return {"rows.jsonl": lines, "rows.jsonl.gz": gzip.compress(lines),
            "pages.warc.gz": archive.getvalue(), "rows.parquet": table.getvalue()}


FILES = make_files()
WAYS = ("whole", "no-head", "moved", "packed", "refused", "no-length", "cut", "cut-once",
        "shrunk")
PAGES = {"links.html": b'<p>See <a href="rows.jsonl">these rows</a>.'}


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves `FILES` with ranges; `/hang/...` stops after the headers, `/flaky/...` fails once.

    `/status/429/...` answers so twice, `/status/403/...` always. Of `WAYS`, see `answer_whole`.
    """

    protocol_version = "HTTP/1.1"
    flaked, ranges, released = set(), [], threading.Event()
    refused: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        *_, way, name = self.path.split("/")
        if way.isdecimal() and (way == "403" or self.refused.count(way) < 4):
            self.refused.append(way)
            self.send_response(int(way))
            self.send_header("Retry-After", "0" if way == "429" else "soon")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if way in WAYS:
            self.answer_whole(way, name, with_body)
            return
        data, asked = (FILES | PAGES).get(name), self.headers.get("Range")
        is_flaky = way == "flaky" and with_body and asked not in self.flaked
        if data is None or is_flaky:
            self.flaked.add(asked)
            self.send_error(404 if data is None else 503)
            return
        start, stop = 0, len(data)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
            self.ranges.append((start, stop))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"v1"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if with_body and way == "hang":
            self.released.wait(10)
        elif with_body:
            self.wfile.write(data[start:stop])

    def answer_whole(self, way: str, name: str, with_body: bool) -> None:
        """Answers without ranges: in one of the ways that servers have of giving a file."""
        data = FILES[name]
        if way == "no-head" and not with_body:
            self.send_error(405)
            return
        if way == "moved":
            self.send_response(302)
            self.send_header("Location", f"/whole/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if way == "packed":     # a server that ignores Accept-Encoding
            data = gzip.compress(data)
        if way == "shrunk" and with_body:
            data = data[:len(data) // 2]
        self.send_response(200)
        if way == "packed":
            self.send_header("Content-Encoding", "gzip")
        if way == "refused":
            self.send_header("Accept-Ranges", "none")
        if way == "no-length":
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            is_cut = way == "cut" or (way == "cut-once" and name not in self.flaked)
            self.flaked.add(name)
            self.wfile.write(data[:len(data) // 2] if is_cut else data)
            self.close_connection |= is_cut

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    RangeHandler.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def bucket():
    store = fsspec.filesystem("memory")
    for name, content in FILES.items():
        store.pipe(f"/bucket/crawl/{name}", content)
    store.pipe("/bucket/crawl/sub/a.txt", b"a text")
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def read_all(paths, unit_bytes=1 << 40):
    return [item for unit in plan(paths, unit_bytes) for item in read(unit)]


@pytest.mark.parametrize("unit_bytes", [2000, 1 << 40])
@pytest.mark.parametrize("name", FILES)
def test_http_ranges_give_every_record_once(address, name, unit_bytes):
    paths = find_inputs(f"{address}/{name}")
    assert [item.source for item in read_all(paths, unit_bytes)] == [r["source"] for r in ROWS]


def test_a_unit_reads_its_range_and_little_more(address, monkeypatch):
    monkeypatch.setattr(storage, "REMOTE_BLOCK_BYTES", 1024)
    monkeypatch.setitem(FILES, "large.jsonl", FILES["rows.jsonl"] * 400)
    middle = plan([f"{address}/large.jsonl"], 100_000)[20]
    RangeHandler.ranges.clear()
    assert list(read(middle))
    assert min(start for start, _ in RangeHandler.ranges if start) >= middle.start - 1
    assert sum(stop - start for start, stop in RangeHandler.ranges) < (3 << 20)


@pytest.mark.parametrize("name", FILES)
def test_a_bucket_equals_a_local_folder(bucket, tmp_path, name):
    path, = find_inputs(f"{bucket}/crawl/{name}")
    (tmp_path / name).write_bytes(FILES[name])
    for unit_bytes in (2000, 1 << 40):
        assert [(unit.start, unit.stop) for unit in plan([path], unit_bytes)] == [
            (unit.start, unit.stop) for unit in plan([str(tmp_path / name)], unit_bytes)]
        assert read_all([path], unit_bytes) == read_all([str(tmp_path / name)])


def test_folders_and_globs_are_found_in_a_bucket(bucket):
    assert find_inputs(f"{bucket}/crawl/*.warc.gz, {bucket}/crawl/*.jsonl") == [
        "memory:///bucket/crawl/pages.warc.gz", "memory:///bucket/crawl/rows.jsonl"]
    folder, *files = find_inputs(f"{bucket}/crawl")
    assert folder == f"{bucket}/crawl/"
    assert [Path(path).name for path in files] == sorted(FILES)
    assert read_all([folder]) == [RawRecord("sub/a.txt", b"a text", "text/plain")]
    with pytest.raises(UserError, match="matches no input"):
        find_inputs(f"{bucket}/none.jsonl")


def test_fingerprints_follow_the_metadata_of_the_storage(address, bucket):
    mark = content_fingerprint(f"{address}/rows.jsonl")
    assert mark == f'ETag="v1" size={len(FILES["rows.jsonl"])}'
    before = content_fingerprint(f"{bucket}/crawl/rows.jsonl")
    assert before == content_fingerprint(f"{bucket}/crawl/rows.jsonl")
    assert f"size={len(FILES['rows.jsonl'])}" in before
    time.sleep(0.01)
    fsspec.filesystem("memory").pipe("/bucket/crawl/rows.jsonl", FILES["rows.jsonl"])
    assert content_fingerprint(f"{bucket}/crawl/rows.jsonl") != before


def test_a_temporary_failure_is_tried_again(address, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECS", 0)
    assert len(read_all([f"{address}/flaky/rows.jsonl"])) == len(ROWS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("way", ["whole", "no-head", "moved", "packed", "refused", "no-length",
                                 "cut-once"])
def test_a_server_without_ranges_gives_every_record_once(address, monkeypatch, way, name):
    monkeypatch.setattr(storage, "RETRY_SECS", 0)
    monkeypatch.setattr(storage, "REMOTE_BLOCK_BYTES", 1024)    # more than one to a file
    RangeHandler.flaked.clear()
    for unit_bytes in (2000, 1 << 40):
        assert [item.source for item in read_all([f"{address}/{way}/{name}"], unit_bytes)] == [
            row["source"] for row in ROWS]


def test_a_large_file_of_a_server_without_ranges_is_fetched_whole(address, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_SECS", 0)
    monkeypatch.setattr(storage, "REMOTE_BLOCK_BYTES", 1024)
    monkeypatch.setitem(FILES, "large.jsonl", FILES["rows.jsonl"] * 400)
    items = read_all([f"{address}/whole/large.jsonl"], 2_000_000)
    assert [item.source for item in items] == [row["source"] for row in ROWS] * 400
    with pytest.raises(PassingError, match="the server sends less than it announced"):
        read_all([f"{address}/shrunk/large.jsonl"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("way", "reason"), [("hang", "timed out"), ("cut", "broke off|less")])
def test_a_file_that_does_not_come_whole_is_an_error_that_may_pass(
        address, monkeypatch, way, reason, name):
    monkeypatch.setattr(storage, "REMOTE_TIMEOUT_SECS", 0.1)
    monkeypatch.setattr(storage, "RETRY_SECS", 0)
    unit, = plan([f"{address}/{way}/{name}"], 1 << 40)
    with pytest.raises(PassingError, match=rf"{way}/{name}: cannot be read \(.*({reason}).*run the "
                                           "same command again"):
        list(read(unit))


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_busy_server_is_asked_again(address, monkeypatch, status):
    monkeypatch.setattr(storage, "RETRY_SECS", 0)
    page = f"{address}/status/{status}/rows.jsonl"
    assert find_inputs(page) == [page]
    assert RangeHandler.refused.count(status) == 4      # HEAD and GET, twice
    assert len(read_all([page])) == len(ROWS)


def test_a_server_asks_for_the_time_to_wait(monkeypatch):
    waits, error = [], OSError("busy")
    error.status, error.message, error.headers = 429, "Too Many Requests", {"Retry-After": "7"}
    monkeypatch.setattr(storage.time, "sleep", waits.append)

    def refuse():
        raise FileNotFoundError("page") from error

    with pytest.raises(OSError, match="the server answers 429 Too Many Requests"):
        storage.attempt(refuse)
    assert waits == [7, 7, 7]
    error.headers = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    with pytest.raises(OSError, match="429"):
        storage.attempt(refuse)
    assert waits[3:] == [1, 2, 4]


def test_a_server_that_refuses_is_one_line_at_once(address):
    page = f"{address}/status/403/rows.jsonl"
    with pytest.raises(UserError, match=r"looked up \(the server answers 403 Forbidden\)"):
        find_inputs(page)
    assert RangeHandler.refused.count("403") == 2
    with pytest.raises(UserError, match="403"):
        plan([page], 1000)


def test_a_page_is_a_page_although_it_holds_links(address):
    assert find_inputs(f"{address}/plain/links.html") == [f"{address}/plain/links.html"]


def test_a_missing_page_is_a_user_error(address):
    with pytest.raises(UserError, match="matches no input"):
        find_inputs(f"{address}/none.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        plan([f"{address}/none.jsonl"], 1000)
