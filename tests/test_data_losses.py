"""Losses: what an unreadable or cut file weighs, and what is no damage but may pass."""

import errno
import gzip
import io
import json
import os
import random
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.common import make_curate
from core.errors import PassingError, UserError
from data.engine import run_units
from data.passes import measure
from data.passes.check import check_read
from data.passes.losses import (
    MAX_NAMED,
    Loss,
    check_unchanged,
    describe_losses,
    find_losses,
    log_losses,
)
from data.passes.reading import make_rules
from data.readers import storage
from data.readers.read import read
from data.readers.records import Corrupt, RawRecord
from data.readers.units import UNKNOWN_BYTES, Unit, content_fingerprint, plan, version

LINES = b"".join(json.dumps({"text": f"row {n}", "salt": random.Random(n).randbytes(99).hex()})
                 .encode() + b"\n" for n in range(3000))


def read_all(path, unit_bytes=1 << 40):
    return [item for unit in plan([str(path)], unit_bytes) for item in read(unit)]


def lost(items):
    return [(item.reason, item.num_bytes) for item in items if isinstance(item, Corrupt)]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_all_whole_lines_before_a_cut_are_read_and_as_much_counts_as_missing(tmp_path, codec):
    whole = pa.compress(LINES, codec, asbytes=True)
    path = tmp_path / f"a.jsonl.{'gz' if codec == 'gzip' else 'zst'}"
    path.write_bytes(whole[:len(whole) // 2])
    items = read_all(path)
    assert lost(items) == [("jsonl: file is cut off", len(whole) // 2)]
    if codec == "gzip":     # of whose stream zlib gives every byte that is there
        there = zlib.decompressobj(31).decompress(path.read_bytes())
        assert [item.content for item in items[:-1]] == [
            json.loads(line)["text"] for line in there.split(b"\n")[:-1]]
    else:                   # by blocks of at most 128 kB
        assert 0.3 * 3000 < len(items) < 0.7 * 3000


def test_lines_before_damage_are_read_and_the_rest_of_the_file_is_lost(tmp_path):
    path, first = tmp_path / "a.jsonl.gz", gzip.compress(LINES)
    path.write_bytes(first + b"no member" * 1000)
    items = read_all(path)
    assert [isinstance(item, RawRecord) for item in items] == [True] * 3000 + [False]
    (reason, num_bytes), = lost(items)
    assert reason == "jsonl: damaged" and 0 <= 9000 - num_bytes <= storage.SALVAGE_BYTES


@pytest.mark.parametrize("num_zeros", [9, 100, 5000])
def test_zeros_behind_a_compressed_file_are_no_damage(tmp_path, num_zeros):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + bytes(num_zeros))
    assert len(read_all(tmp_path / "a.jsonl.gz")) == 3000


@pytest.mark.parametrize("unit_bytes", [2000, 1 << 40])
def test_a_last_line_that_breaks_off_weighs_as_the_file(tmp_path, unit_bytes):
    (tmp_path / "a.jsonl").write_bytes(LINES[:-30])
    (tmp_path / "b.jsonl").write_bytes(LINES[:-30] + b"\n")
    assert lost(read_all(tmp_path / "a.jsonl", unit_bytes)) == [
        ("jsonl: file is cut off", len(LINES) - 30)]
    last = len(LINES.splitlines(True)[-1]) - 29
    assert lost(read_all(tmp_path / "b.jsonl", unit_bytes)) == [("jsonl: line is not JSON", last)]


def test_a_damaged_row_group_weighs_its_bytes(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [random.Random(n).randbytes(200).hex() for n in range(400)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    data, group = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata.row_group(1)
    start = group.column(0).dictionary_page_offset
    data[start:start + 9000] = bytes(9000)
    path.write_bytes(data)
    for unit_bytes in (1000, 1 << 40):
        items = read_all(path, unit_bytes)
        (_, num_bytes), = lost(items)
        assert len(items) == 301 and num_bytes == group.column(0).total_compressed_size


FORMATS = ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt", "a.txt.gz", "a.warc",
           "a.warc.gz", "a.warc.zst", "a.arc", "a.arc.gz", "a.xml", "a.xml.gz")


@pytest.mark.parametrize("first_good", [0, 1])
@pytest.mark.parametrize("name", FORMATS)
def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch, name, first_good):
    class Disk(io.FileIO):
        num_reads = 0

        def readinto(self, buffer):
            Disk.num_reads += 1
            if Disk.num_reads > first_good:
                raise OSError(errno.EIO, "Input/output error")
            return super().readinto(buffer[:2000])

    record = (b"WARC/1.0\r\nWARC-Type: resource\r\nContent-Type: text/plain\r\n"
              b"Content-Length: 9000\r\n\r\n" + random.Random(0).randbytes(9000) + b"\r\n\r\n")
    content = {"jsonl": LINES * 9, "warc": record * 2, "parquet": b"PAR1" * 3000,
               "arc": b"filedesc://a 0.0.0.0 20200101 text/plain 9000\n" + b"1 0 a\n" * 1500,
               "txt": LINES * 9, "xml": b"<mediawiki>" + b"<page></page>" * 2000}
    content = content[name.split(".")[1]]
    if name.endswith(("gz", "zst")):
        content = pa.compress(content, "gzip" if name.endswith("gz") else "zstd", asbytes=True)
    (tmp_path / name).write_bytes(content)
    unit, = plan([str(tmp_path / name)], 1 << 40)
    monkeypatch.setattr(storage, "open_binary",
                        lambda path: io.BufferedReader(Disk(path), buffer_size=2000))
    with pytest.raises(PassingError, match=rf"{name}: cannot be read \(Input/output error\)"):
        list(read(unit))


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "none")
    (tmp_path / "b.txt").write_text("b")
    broken, _ = read_all(f"{tmp_path}/")
    assert broken.reason == "file: a link to nothing"
    assert len(content_fingerprint(f"{tmp_path}/")) == 32


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(storage, "open_binary", refuse)
    with pytest.raises(PassingError, match=r"a.jsonl: cannot be read \(Permission denied\): make"):
        content_fingerprint(f"{tmp_path}/a.jsonl")


def result(documents=0, raw_bytes=0, corrupt=(), **losses):
    return {"documents": documents, "raw_bytes": raw_bytes, "corrupt": dict(corrupt),
            "losses": {f"{path}.x": reasons for path, reasons in losses.items()}}


def test_losses_are_summed_by_file_and_compared_with_all_bytes():
    units = [Unit("a.x", 0, 600), Unit("a.x", 600, 1000), Unit("b.x", 0, 500), Unit("c.x", 0, 500),
             Unit("url", 0, UNKNOWN_BYTES), Unit("d/", 0, 2)]
    measured = [result(a={"warc: damaged": 150}), result(a={"warc: damaged": 50}),
                result(b={"jsonl: file is cut off": 500}),
                result(c={"jsonl: line is not JSON": 4}), result(raw_bytes=700),
                result(raw_bytes=200, **{"d/e": {"file: damaged": 100}})]
    losses, frac = find_losses(units, measured)
    assert losses == [Loss("b.x", "jsonl: file is cut off", 500, 0.5),
                      Loss("a.x", "warc: damaged", 200, 0.2),
                      Loss("d/e.x", "file: damaged", 100, 1.0)]
    # 3000 bytes were there, and about 500 more would be if b.x were whole.
    assert frac == pytest.approx((200 + 500 + 4 + 100) / 3500)
    assert describe_losses(losses)[1] == {"source": "a.x", "lost_bytes": 200,
                                          "removed_frac": 0.2, "reason": "warc: damaged"}
    assert find_losses([Unit("a", 0, 0)], [result()]) == ([], 0.0)


def test_too_many_lost_bytes_are_an_error_that_names_the_files():
    section = {"inputs": "in/", "max_corrupt_frac": 0.05}
    measured = [result(documents=1000, corrupt={"jsonl: file is cut off": 1})]
    losses = [Loss("in/b.gz", "jsonl: file is cut off", 500, 0.5)]
    check_read(section, measured, losses, 0.05)
    with pytest.raises(UserError, match=r"6% of the bytes are lost: in/b.gz \(jsonl: file is cut "
                                        r"off: about 500 bytes, 50% of it, are lost\): repair"):
        check_read(section, measured, losses, 0.06)


def test_the_log_names_the_largest_losses(capsys):
    log_losses([Loss(f"{n}.gz", "jsonl: damaged", 9000, 0.3) for n in range(MAX_NAMED + 2)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MAX_NAMED + 1 and "and 2 more files" in lines[-1]
    assert lines[0] == "curate: ALARM: 0.gz (jsonl: damaged: 9,000 bytes, 30% of it, are lost)"


def test_an_input_that_is_written_to_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    for name in (str(path), f"{tmp_path}/"):
        before = {name: version(name)}
        check_unchanged(before)
        os.utime(path, ns=(1, np.random.default_rng(len(name)).integers(1 << 40)))
        if name.endswith("/"):
            (tmp_path / "b.txt").write_text("b")
        with pytest.raises(PassingError, match="was written to while it was read: run the same"):
            check_unchanged(before)
    before = {str(path): version(str(path))}
    path.unlink()
    with pytest.raises(PassingError):
        check_unchanged(before)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's
def test_a_unit_that_was_not_read_is_read_by_the_next_run_and_the_others_are_kept(
        tmp_path, capsys):
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path in paths:
        path.write_bytes(LINES[:2000])
    extraction = {"mode": "fast", "timeout_secs": 30.0, "max_page_bytes": 1 << 20,
                  "emoji_names": False, "punctuation": False}
    record = (b"WARC/1.0\nWARC-Type: resource\nContent-Type: text/plain\nContent-Length: 6\n\n"
              b"A text\n\n")
    archive = tmp_path / "d.warc"
    archive.write_bytes(record * 20)
    ranges = [*((path, 0, 2000) for path in paths), (archive, 0, 900), (archive, 900, 1800)]
    reading = make_rules(make_curate().to_dict())
    tasks = [{"path": str(path), "start": start, "stop": stop, "content": path.name,
              "reading": reading, "extraction": extraction} for path, start, stop in ranges]

    def run():
        return run_units(measure.measure, tasks, tmp_path / "measured", num_workers=1)

    paths[0].rename(tmp_path / "away")
    with pytest.raises(PassingError, match=r"a.jsonl: cannot be read \(it is gone\): run the same"):
        run()
    log = capsys.readouterr().err      # of workers, passed on once
    assert log.count("d.warc: header lines end in LF alone") == 1
    assert log.count("a.jsonl: cannot be read") == 1
    (tmp_path / "away").rename(paths[0])
    first, *others = run()
    assert "4 of 5 units are done already" in capsys.readouterr().err
    assert first["documents"] == others[0]["documents"] > 5
    assert sum(result["documents"] for result in others[2:]) == 20
    assert first["losses"] == {str(paths[0]): {"jsonl: file is cut off": 2000}}
