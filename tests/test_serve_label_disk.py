"""Labels on the disk: kill -9, torn lines, full disks, folders of others."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from core.artifacts import ROOT, read_jsonl, write_jsonl
from core.errors import UserError
from data.preferences import read_preferences
from serve.label import label
from serve.labelling import store as store_module
from serve.labelling.store import JOURNAL, PREFERENCES, Store

pytest.importorskip("starlette", reason="needs the extra `serve`")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
httpx = pytest.importorskip("httpx", reason="needs the extra `dev`")
from label_server import PAIRS, by_length, head, servers  # noqa: E402 -- after the skip


@pytest.fixture
def serve(tmp_path):
    with servers(tmp_path) as make:
        yield make


@contextlib.contextmanager
def running(folder):
    """A server in a process of its own, and a client of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.label", f"--inputs={folder / 'inputs.jsonl'}",
         f"--out={folder / 'out'}", "--port=0"], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    with process:
        try:
            url = next(found[0] for line in process.stderr
                       if (found := re.search(r"http://[\d.:]+", line)))
            with httpx.Client(base_url=url, trust_env=False) as client:
                yield process, client
        finally:
            process.kill()


def test_kill_between_two_labels_loses_none_and_the_same_command_goes_on(tmp_path):
    write_jsonl(tmp_path / "inputs.jsonl", PAIRS)
    with running(tmp_path) as (process, client):
        shown = client.get("/api/next", params={"annotator": "ana"}).json()
        for _ in range(2):
            shown = client.post("/api/label", json={**head(shown), "ranks": [1, 2]}).json()
        process.kill()
    rows = read_jsonl(tmp_path / "out" / PREFERENCES)
    assert len(rows) == len(read_jsonl(tmp_path / "out" / JOURNAL)) == 2
    with running(tmp_path) as (process, client):
        back = client.get("/api/next", params={"annotator": "ana"}).json()
        assert back["item"] == shown["item"], "in the same order, too"
        client.post("/api/label", json={**head(back), "ranks": [2, 1]}).raise_for_status()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and json.loads(out.splitlines()[-1]) == {
        "out": str(tmp_path / "out"), "items": 8, "items_done": 3, "preferences": 3,
        "demonstrations": 0, "annotators": {"ana": 3}, "left_out": {}}
    assert read_jsonl(tmp_path / "out" / PREFERENCES)[:2] == rows


def test_a_torn_line_is_moved_aside_and_what_follows_from_the_journal_is_made_anew(
        tmp_path, serve, capsys):
    server = serve()
    server.run("ana", by_length)
    server.store.close()
    out, journal = server.out, server.out / JOURNAL
    whole, exported = journal.read_bytes(), (out / PREFERENCES).read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 1):
        journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        (out / PREFERENCES).write_bytes(exported[:-7])
        store = Store(out)
        store.close()
        assert "its last line was not finished" in capsys.readouterr().err
        assert journal.read_bytes() == b"".join(lines[:-1]) and len(store.live) == 7
        assert (out / PREFERENCES).read_bytes() == b"".join(
            exported.splitlines(keepends=True)[:-1])
    assert sorted(path.name for path in out.glob("*.torn*")) == [
        f"{JOURNAL}.torn", f"{JOURNAL}.torn.1", f"{JOURNAL}.torn.2"]
    assert (out / f"{JOURNAL}.torn").read_bytes() == lines[-1][:1]


def test_a_full_disk_stores_nothing_and_says_so(serve, monkeypatch):
    server = serve()
    shown = server.next("ana")
    server.ok(server.label(server.next("bo"), ranks=[1, 2]))
    before = (server.out / JOURNAL).read_bytes()
    error = OSError(errno.ENOSPC, "No space left on device")

    def full(_descriptor):
        raise error

    monkeypatch.setattr(store_module.os, "fsync", full)
    reply = server.label(shown, ranks=[1, 2])
    assert reply.status_code == 507 and "No space left" in reply.json()["error"]["message"]
    assert (server.out / JOURNAL).read_bytes() == before
    monkeypatch.undo()
    server.ok(server.label(shown, ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 2


def test_a_label_in_the_journal_is_stored_though_its_file_cannot_be_written(serve, monkeypatch):
    server = serve()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    append = store_module.append

    def refuse(file, row):
        if "event" not in row:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        append(file, row)

    monkeypatch.setattr(store_module, "append", refuse)
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 1
    monkeypatch.undo()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    assert len(read_preferences(server.out / PREFERENCES)) == 3


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out=.*: cannot be used \(not a directory\)"):
        Store(tmp_path / "file" / "out")


def test_a_folder_of_others_and_a_damaged_journal_are_refused(tmp_path, serve):
    server = serve()
    server.ok(server.label(server.next("ana"), ranks=[1, 2]))
    with pytest.raises(UserError, match="another server stores its labels there"):
        Store(server.out)
    server.store.close()
    line = (server.out / JOURNAL).read_text()
    (server.out / JOURNAL).write_text("{}\n" + line)
    with pytest.raises(UserError, match=r"journal\.log, line 1: is damaged"):
        Store(server.out)
    (server.out / JOURNAL).unlink()
    with pytest.raises(UserError, match=r"holds preferences\.jsonl but no journal"):
        Store(server.out)


def test_without_the_extra_one_line_says_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "serve.labelling.app")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"labelling page: needs the package uvicorn: pip install"):
        label()
