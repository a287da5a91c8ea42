"""WARC, WET, WAT and ARC: every record in exactly one unit, and damage limited to its record."""

import gzip
import io
import itertools
import os
import random
import resource
import zlib
from collections import Counter
from pathlib import Path

import brotli
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data.readers import records
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord, Skipped
from data.readers.units import Unit, plan

Pages = list[tuple[str, bytes, str, dict[str, str]]]


def write_warc(path: Path, pages: Pages, is_gzip: bool = True) -> list[int]:
    """Writes (url, body, status, headers) records; returns the end of each in the file."""
    ends = []
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=is_gzip)
        for url, body, status, headers in pages:
            http = StatusAndHeaders(status, list(headers.items()), "HTTP/1.1")
            writer.write_record(writer.create_warc_record(
                url, "response", payload=io.BytesIO(body), length=len(body), http_headers=http))
            ends.append(file.tell())
    return ends


def html(url: str, body: bytes, **headers: str) -> tuple[str, bytes, str, dict[str, str]]:
    return url, body, "200 OK", {"Content-Type": "text/html"} | headers


def read_all(path, unit_bytes=1 << 40):
    return [item for unit in plan([str(path)], unit_bytes) for item in read(unit)]


def reasons(items) -> Counter:
    return Counter(getattr(item, "reason", "record") for item in items)


@pytest.fixture(scope="module")
def pages() -> Pages:
    rng = random.Random(0)
    return [html(f"http://{i}/", b"<p>%d</p>" % i * rng.randrange(1, 300)
                 + rng.randbytes(300).replace(b"\0", b"-"))
            for i in range(12)]


def test_warc_has_pages_and_skipped_records(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [
        ("http://a/", b"<p>a</p>", "200 OK", {"Content-Type": "Text/HTML; charset=latin-1"}),
        ("http://b/", b"gone", "404 Not Found", {"Content-Type": "text/html"}),
        ("http://c/", b"\x89PNG", "200 OK", {"Content-Type": "image/png"}),
        ("http://d/", b" \n", "200 OK", {"Content-Type": "text/html"}),
        ("http://e/", b"%PDF\0\0\1\0", "200 OK", {"Content-Type": "text/html"}),
        ("http://f/", "ж".encode("utf-16-le") * 9 + b"a\0" * 9, "200 OK", {})])
    page, *rest, utf16 = read_all(path)
    assert (page.source, page.content, page.content_type, page.charset) == (
        "http://a/", b"<p>a</p>", "text/html", "latin-1")
    assert rest == [Skipped("http://b/", "warc: http status is not 200"),
                    Skipped("http://c/", "warc: content is not text"),
                    Skipped("http://d/", "empty"), Skipped("http://e/", "binary content")]
    assert isinstance(utf16, RawRecord)


@pytest.mark.parametrize("form", ["gzip", "plain", "one_member"])
@given(unit_bytes=st.integers(60, 9000))
def test_units_hold_every_record_once(tmp_path_factory, pages, form, unit_bytes):
    path = tmp_path_factory.getbasetemp() / f"{form}.warc{'' if form == 'plain' else '.gz'}"
    if not path.exists():
        write_warc(path, pages, is_gzip=form == "gzip")
        if form == "one_member":
            path.write_bytes(gzip.compress(path.read_bytes()))
    units = plan([str(path)], unit_bytes)
    assert (units[0].start, units[-1].stop) == (0, path.stat().st_size)
    assert all(left.stop == right.start for left, right in itertools.pairwise(units))
    items = [item for unit in units for item in read(unit)]
    assert [(item.source, item.content) for item in items] == [page[:2] for page in pages]


def test_a_cut_between_two_records_gives_each_to_one_unit(tmp_path, pages):
    for is_gzip in (True, False):
        path = tmp_path / f"crawl.warc{'.gz' * is_gzip}"
        cuts = [0, *write_warc(path, pages, is_gzip)]
        for start, stop, page in zip(cuts, cuts[1:], pages):
            assert [item.source for item in read(Unit(str(path), start, stop))] == [page[0]]


def test_a_cut_file_gives_the_whole_records_before_and_one_corrupt(tmp_path, pages):
    for is_gzip in (True, False):
        path = tmp_path / f"crawl.warc{'.gz' * is_gzip}"
        ends = write_warc(path, pages[:3], is_gzip)
        data = path.read_bytes()
        for size in [*range(25, len(data), 61), *(end + 30 for end in ends[:2])]:
            whole = sum(end - 4 * (not is_gzip) <= size for end in ends)
            if any(end - 4 * (not is_gzip) <= size <= end for end in ends):
                continue    # between records; the last needs no blank lines
            path.write_bytes(data[:size])
            items = read_all(path)
            assert [item.content for item in items[:whole]] == [
                page[1] for page in pages[:whole]], (is_gzip, size)
            corrupt, = (item for item in items[whole:] if isinstance(item, Corrupt))
            assert corrupt.num_bytes == size, (is_gzip, size, corrupt)


def test_damage_affects_one_record(tmp_path, pages):
    path = tmp_path / "crawl.warc.gz"
    ends = write_warc(path, pages)
    data, rng = path.read_bytes(), random.Random(1)
    for _ in range(60):
        place = rng.randrange(12, len(data))
        hit = sum(end <= place for end in ends)
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1:])
        urls = {item.source for item in read_all(path, 2000) if isinstance(item, RawRecord)}
        assert urls >= {page[0] for index, page in enumerate(pages) if index != hit}, place


def test_a_zip_bomb_is_one_corrupt_record_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1 << 20)
    monkeypatch.setattr("data.readers.pages.MAX_RECORD_BYTES", 1 << 20)
    bomb = bytes(200 << 20)
    path = tmp_path / "bomb.warc.gz"
    write_warc(path, [html("http://a/", b"a"), html("http://bomb/", bomb), html("http://b/", b"b"),
                      html("http://http-bomb/", gzip.compress(bomb, 1),
                           **{"Content-Encoding": "gzip"}), html("http://c/", b"c")])
    del bomb
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reasons(read_all(path)) == {"record": 3, "warc: record is too large": 2}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(("encoding", "body"), [
    ("gzip", gzip.compress(b"text", mtime=0)), ("X-GZIP", gzip.compress(b"text", mtime=0)),
    ("deflate", zlib.compress(b"text")), ("br", brotli.compress(b"text")),
    ("zstd", pa.compress(b"text", codec="zstd", asbytes=True)),
    ("gzip, br", brotli.compress(gzip.compress(b"text", mtime=0))),
    ("identity", b"text"), ("none", b"text"), ("utf-8", b"text")])
def test_content_encodings_are_decoded(tmp_path, encoding, body):
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [html("http://a/", body, **{"Content-Encoding": encoding}),
                      html("http://b/", b"b")])
    assert [item.content for item in read_all(path)] == [b"text", b"b"]


BROKEN_GZIP = gzip.compress(bytes(range(256)) * 99, mtime=0)[:60] + bytes(200)


def test_broken_encodings_affect_one_record(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [html("http://a/", BROKEN_GZIP, **{"Content-Encoding": "gzip"}),
                      html("http://b/", b"2\r\nno\r\nchunks", **{"Transfer-Encoding": "chunked"}),
                      html("http://c/", b"\1\2\3", **{"Content-Encoding": "br"}),
                      html("http://d/", b"1\r\nd\r\n0\r\n\r\n",
                           **{"Transfer-Encoding": "chunked"})])
    *broken, sound = read_all(path)
    assert reasons(broken) == {"warc: record is damaged": 3}
    assert sound.content == b"d"


def test_records_after_a_broken_one_in_a_gzip_member_are_read(tmp_path):
    path = tmp_path / "crawl.warc.gz"
    write_warc(path, [html("http://a/", BROKEN_GZIP, **{"Content-Encoding": "gzip"}),
                      html("http://b/", b"b")], is_gzip=False)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert [type(item) for item in read_all(path)] == [Corrupt, RawRecord]


@pytest.mark.parametrize("unit_bytes", [100, 333, 1 << 40])
def test_a_page_that_quotes_a_record_header_is_one_record(tmp_path, unit_bytes):
    path = tmp_path / "crawl.warc"
    example = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 9\r\n\r\n<p>body</p>"
    write_warc(path, [html(f"http://{i}/", b"<pre>\r\n\r\n" + example + b"x" * 300 + b"</pre>")
                      for i in range(3)], is_gzip=False)
    assert [item.source for item in read_all(path, unit_bytes)] == [
        "http://0/", "http://1/", "http://2/"]


MISLABELLED = {
    "page.warc.gz": b"<html><p>no archive</p></html>",
    "packed-page.warc.gz": gzip.compress(b"<html><p>no archive</p></html>"),
    "table.warc": b"PAR1" + bytes(range(256)) * 9,
    "half.warc": b"WARC/1.0\r\nWARC-Type: respo",
    "page.arc.gz": b"<html><p>no archive</p></html>",
    "noise.arc.gz": gzip.compress(bytes(range(256)) * 99)[:-9],
    "noise.warc.zst": b"\x28\xb5\x2f\xfd" + bytes(range(200)),
}


@pytest.mark.parametrize("name", MISLABELLED)
def test_other_files_are_one_corrupt_item(tmp_path, name):
    (tmp_path / name).write_bytes(MISLABELLED[name])
    items = read_all(tmp_path / name)
    assert isinstance(items[-1], Corrupt) and "record" not in reasons(items)
    assert not any(character.isdigit() for item in items for character in item.reason)


def plain_record(number: int, newline: bytes = b"\r\n", extra: int = 0,
                 end: bytes | None = None) -> bytes:
    """A response whose declared length differs by `extra` from the true one."""
    http = newline.join([b"HTTP/1.1 200 OK", b"Content-Type: text/html", b"",
                         b"<p>page %d</p>" % number + b"." * 300])
    header = [b"WARC/1.0", b"WARC-Type: response", b"WARC-Target-URI: http://%d/" % number,
              b"Content-Type: application/http; msgtype=response",
              b"Content-Length: %d" % (len(http) + extra), b"", b""]
    return newline.join(header) + http + (newline * 2 if end is None else end)


def page_of(number: int) -> bytes:
    return b"<p>page %d</p>" % number + b"." * 300


@pytest.mark.parametrize(("way", "form"), [
    *itertools.product(["lf", "glued", "one_line_end"], ["plain", "members", "one_member", "zstd"]),
    ("mixed", "plain"), ("mixed", "members")])      # elsewhere the next record cannot be found
def test_line_ends_do_not_matter(tmp_path, capsys, way, form):
    newlines = {"lf": [b"\n"] * 6, "mixed": [b"\r\n"] * 3 + [b"\n"] * 3}.get(way, [b"\r\n"] * 6)
    end = {"glued": b"", "one_line_end": b"\r\n"}.get(way)
    parts = [plain_record(n, newline, end=end) for n, newline in enumerate(newlines)]
    path = tmp_path / f"a.warc{'' if form == 'plain' else '.zst' if form == 'zstd' else '.gz'}"
    path.write_bytes({
        "plain": b"".join, "members": lambda parts: b"".join(map(gzip.compress, parts)),
        "one_member": lambda parts: gzip.compress(b"".join(parts)),
        "zstd": lambda parts: pa.compress(b"".join(parts), "zstd", asbytes=True)}[form](parts))
    for unit_bytes in (1 << 40, 150, 700):
        items = read_all(path, unit_bytes)
        assert [(item.source, item.content) for item in items] == [
            (f"http://{n}/", page_of(n)) for n in range(6)], unit_bytes
    assert ("LF alone" in capsys.readouterr().err) == (way in ("lf", "mixed"))


def test_a_damaged_header_with_lf_lines_affects_one_record(tmp_path):
    parts = [plain_record(n, b"\n") for n in range(4)]
    for old in (b"WARC-Target-URI: http://1/\n", b"Content-Length", b"WARC/1.0"):
        broken = parts[1].replace(old, b"")
        (tmp_path / "a.warc").write_bytes(b"".join([parts[0], broken, *parts[2:]]))
        items = read_all(tmp_path / "a.warc")
        assert [item.source for item in items if isinstance(item, RawRecord)] == [
            f"http://{n}/" for n in (0, 2, 3)], old
        lost = sum(item.num_bytes for item in items if isinstance(item, Corrupt))
        assert len(broken) - 4 <= lost <= len(broken), (old, lost)


@pytest.mark.parametrize("packed", [False, True])
def test_line_ends_may_differ_within_a_header(tmp_path, packed):
    parts = [plain_record(n, b"\n").replace(b"WARC/1.0\n", b"WARC/1.0\r\n") for n in range(3)]
    path = tmp_path / f"a.warc{'.gz' * packed}"
    path.write_bytes(b"".join(map(gzip.compress, parts) if packed else parts))
    assert [item.content for item in read_all(path)] == [page_of(n) for n in range(3)]


@pytest.mark.parametrize("unit_bytes", [200, 1 << 40])
@pytest.mark.parametrize(("extra", "first"), [
    (7, page_of(1)), (900, page_of(1)), (20_000, "warc: record is cut off"), (-7, page_of(1)[:-7])])
def test_a_wrong_length_affects_its_record_alone(tmp_path, unit_bytes, extra, first):
    path, parts = tmp_path / "a.warc", [plain_record(n, extra=extra * (n == 1)) for n in range(6)]
    path.write_bytes(b"".join(parts))
    items = read_all(path, unit_bytes)
    assert [item.source for item in items if isinstance(item, RawRecord) and "1" not in item.source
            ] == [f"http://{n}/" for n in (0, 2, 3, 4, 5)]
    assert first in (getattr(items[1], "content", None), getattr(items[1], "reason", None))
    weights = [item.num_bytes for item in items if isinstance(item, Corrupt)]
    assert weights == {20_000: [len(parts[1])], -7: [11]}.get(extra, [])


@pytest.mark.parametrize("unit_bytes", [200, 1 << 40])
def test_a_gzip_member_with_a_wrong_length_weighs_its_bytes(tmp_path, unit_bytes):
    parts = [gzip.compress(plain_record(n, extra=900 * (n == 1))) for n in range(6)]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(parts))
    items = read_all(tmp_path / "a.warc.gz", unit_bytes)
    assert [item.source for item in items if isinstance(item, RawRecord)] == [
        f"http://{n}/" for n in (0, 2, 3, 4, 5)]
    corrupt, = (item for item in items if isinstance(item, Corrupt))
    assert corrupt.num_bytes >= len(parts[1])


@pytest.mark.parametrize("unit_bytes", [200, 1 << 40])
def test_what_lies_between_records_weighs_its_bytes(tmp_path, unit_bytes):
    parts = [gzip.compress(plain_record(n)) for n in range(4)]
    garbage = b"no member\0" * 50
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join([parts[0], parts[1], garbage, parts[2], parts[3]]))
    items = read_all(path, unit_bytes)
    assert [getattr(item, "content", None) for item in items] == [
        page_of(0), page_of(1), None, page_of(2), page_of(3)]
    assert items[2].num_bytes == len(garbage)
    path.write_bytes(garbage + b"".join(parts))
    assert read_all(path, unit_bytes)[0] == Corrupt(
        "a.warc.gz", "warc: does not begin with a record", len(garbage))
    path.write_bytes(b"".join(parts) + bytes(512))
    assert reasons(read_all(path, unit_bytes)) == {"record": 4}


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.arc", "a.arc.gz"])
def test_an_empty_archive_is_no_damage(tmp_path, name):
    for content in (b"", gzip.compress(b"")):
        (tmp_path / name).write_bytes(content)
        item, = read_all(tmp_path / name)
        assert isinstance(item, Skipped) and item.reason.endswith(": file is empty")


def test_plain_and_zst_archives_hold_what_the_gzip_does(tmp_path, pages):
    plain, packed = tmp_path / "a.warc", tmp_path / "a.warc.zst"
    write_warc(plain, pages, is_gzip=False)
    packed.write_bytes(pa.compress(plain.read_bytes(), codec="zstd", asbytes=True))
    mislabelled = tmp_path / "b.warc.gz"
    mislabelled.write_bytes(plain.read_bytes())
    for path in (plain, packed, mislabelled):
        assert [item.source for item in read_all(path)] == [page[0] for page in pages], path.name
    packed.write_bytes(packed.read_bytes()[:-40])
    assert isinstance(read_all(packed)[-1], Corrupt)


FIXTURES = {        # as `warcio index` lists them; see each test for what warcio cannot read
    "whirlwind.warc.gz": {"record": 1, "warc: warcinfo record": 1, "warc: request record": 1,
                          "warc: metadata record": 1},
    "whirlwind.warc.wet.gz": {"record": 1, "warc: warcinfo record": 1},
    "whirlwind.warc.wat.gz": {"wat: metadata only": 1, "warc: warcinfo record": 1},
    "warcio/example.warc.gz": {"record": 1, "warc: warcinfo record": 2, "warc: request record": 2,
                               "warc: revisit record": 1},
    "warcio/example-bad-non-chunked.warc.gz": {     # one gzip member: warcio stops after the first
        "record": 1, "warc: warcinfo record": 2, "warc: request record": 2,
        "warc: revisit record": 1},
    "warcio/example-resource.warc.gz": {"record": 1, "warc: warcinfo record": 2},
    "warcio/example-wget-bad-target-uri.warc.gz": {
        "record": 3, "warc: warcinfo record": 1, "warc: request record": 1,
        "warc: metadata record": 1},
    "warcio/example-wrong-chunks.warc.gz": {        # members cut anywhere: warcio stops, too
        "record": 1, "warc: request record": 1},
    "warcio/post-test.warc.gz": {"record": 3, "warc: request record": 3},
    "warcio/example.arc.gz": {"record": 1, "arc: warcinfo record": 1},
}


@pytest.fixture(scope="module")
def fixtures() -> Path:
    root = os.environ.get("HEARTWOOD_DATASETS")
    if not root:
        pytest.skip("HEARTWOOD_DATASETS is not set")
    return Path(root) / "warc"


@pytest.mark.parametrize("name", FIXTURES)
def test_real_archives_give_the_right_counts(fixtures, name):
    whole = read_all(fixtures / name)
    assert reasons(whole) == FIXTURES[name]
    for unit_bytes in (100, 700, 5000):
        assert read_all(fixtures / name, unit_bytes) == whole


@pytest.mark.parametrize("name", [name for name in FIXTURES
                                  if "non-chunked" not in name and "wrong-chunks" not in name])
def test_records_are_those_that_warcio_reads(fixtures, name):
    with open(fixtures / name, "rb") as file:
        theirs = [record.content_stream().read() for record in ArchiveIterator(file, arc2warc=True)
                  if record.rec_type in ("response", "resource", "conversion")]
    assert [item.content for item in read_all(fixtures / name)
            if isinstance(item, RawRecord)] == theirs


def test_real_pages_keep_address_and_type(fixtures):
    page, = (item for item in read_all(fixtures / "whirlwind.warc.gz")
             if isinstance(item, RawRecord))
    text, = (item for item in read_all(fixtures / "whirlwind.warc.wet.gz")
             if isinstance(item, RawRecord))
    assert page.source == text.source == "https://an.wikipedia.org/wiki/Escopete"
    assert (page.content_type, text.content_type) == ("text/html", "text/plain")
    assert text.content.startswith(b"Escopete - Biquipedia")
    wget = read_all(fixtures / "warcio/example-wget-bad-target-uri.warc.gz")
    assert "http://example.com/" in {item.source for item in wget}
    arc = read_all(fixtures / "warcio/example.arc.gz")[-1]
    assert (arc.source, arc.content_type) == ("http://example.com/", "text/html")
    assert b"Example Domain" in arc.content


def test_a_truncated_arc_has_its_complete_records(fixtures, tmp_path):
    data = (fixtures / "warcio/example.arc.gz").read_bytes()
    for size in range(10, len(data), 17):
        (tmp_path / "cut.arc.gz").write_bytes(data[:size])
        assert isinstance(read_all(tmp_path / "cut.arc.gz")[-1], Corrupt), size
    (tmp_path / "plain.arc").write_bytes(gzip.decompress(data))
    assert reasons(read_all(tmp_path / "plain.arc")) == FIXTURES["warcio/example.arc.gz"]
