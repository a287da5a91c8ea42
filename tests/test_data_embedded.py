"""The embedded corpus: real pages, reproducible bytes, no local paths."""

import concurrent.futures
import functools
import gzip
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from data.embedded import corpus as embedded
from data.embedded import render_pages
from data.extraction.extract import extract
from data.readers.read import read
from data.readers.units import plan

PACKAGES = "argparse,heapq,json,os,planted_package,tiktoken"

PLANTED = '''"""A package that leaks: {home}/secret, {checkout}/notes and file:{home}/x.txt."""
import os
CONFIG = {home!r} + "/.config"
HERE = os.getcwd()
FOLDER = os.path.dirname(__file__)
TOKEN = os.environ.get("SECRET_TOKEN", "none")

def compute_total(values=object()):
    """Compute the total of some planted values.

    Looks at /home/jdoe/data first.
    """
'''


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder on the path with a package that leaks, hangs, crashes, prints and asks."""
    root = tmp_path_factory.mktemp("planted")
    package = root / "planted_package"
    package.mkdir()
    (package / "__init__.py").write_text(PLANTED.format(home=str(Path.home()),
                                                        checkout=str(embedded.ROOT)))
    (package / "crash.py").write_text("import os\nos.abort()\n")
    (package / "hang.py").write_text("while True:\n    pass\n")
    (package / "leave.py").write_text("import sys\nsys.exit(3)\n")
    (package / "loud.py").write_text('"""A loud module."""\nprint("noise")\ninput("?")\n')
    (package / "thread.py").write_text(
        '"""Leaves a thread behind."""\nimport threading, time\n'
        "threading.Thread(target=time.sleep, args=(3600,)).start()\n")
    (package / "tests").mkdir()
    (package / "tests" / "__init__.py").write_text("raise SystemError\n")
    return root


@pytest.fixture(scope="module")
def corpus(planted, tmp_path_factory):
    """Two builds of the same packages."""
    patch = pytest.MonkeyPatch()
    environment = embedded._environment
    patch.syspath_prepend(planted)
    patch.setenv("SECRET_TOKEN", "hunter2hunter2")
    patch.setattr(embedded, "SECS_PER_MODULE", 3)
    local_paths = [(str(planted), "site-packages"), *embedded.local_paths()]
    patch.setattr(embedded, "local_paths", lambda: local_paths)
    patch.setattr(embedded, "_environment", lambda scratch: environment(scratch) | {
        "PYTHONPATH": f"{embedded.ROOT}:{planted}"})
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    build = functools.partial(embedded.build, packages=PACKAGES, code_max_bytes=200_000, seed=0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(build, folders))
    patch.undo()
    return folders, paths


@pytest.fixture(scope="module")
def records(corpus):
    """The first build, read back through the readers."""
    _, (paths, _) = corpus
    return {item.source: item for unit in plan([str(path) for path in paths], 1 << 20)
            for item in read(unit)}


def test_readers_read_pages_readmes_licences_and_code(records):
    assert {"pages", "readme", "licence", "code"} == {item.domain for item in records.values()}
    page = records["pydoc://argparse/argparse"]
    text = extract(page.content, page.content_type)
    assert "ArgumentParser(prog=None" in "".join(text.split())   # Python 3.13 prints it in lines
    assert any("\n    def " in item.content for item in records.values() if item.domain == "code")
    assert b"tiktoken" in records["readme://tiktoken"].content
    assert any(b"Permission is hereby granted" in item.content for item in records.values()
               if item.domain == "licence")


def test_local_paths_are_scrubbed(records):
    page = records["pydoc://planted_package/planted_package"].content.decode()
    assert "~/secret" in page and "checkout/notes" in page and "/home/user/data" in page
    private = [str(Path.home()) + "/", str(embedded.ROOT), sys.prefix + "/lib", "hunter2",
               'href="file:', "/jdoe", "SECRET_TOKEN"]
    for item in records.values():
        text = item.content if isinstance(item.content, str) else item.content.decode()
        if item.domain == "pages":
            assert not [word for word in private if word in text], item.source
            assert "object at 0x7" not in text


def test_same_environment_same_bytes(corpus):
    (one, two), _ = corpus
    assert [path.name for path in sorted(one.iterdir())] == [
        path.name for path in sorted(two.iterdir())]
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    assert b"WARC-Date: 2000-01-01" in gzip.decompress((one / "pages-000.warc.gz").read_bytes())


def test_modules_that_fail_are_named_and_the_others_rendered(corpus, records):
    (one, _), _ = corpus
    sources = json.loads((one / "sources.json").read_text())
    ended = "crashed, or ran above 3 s"
    assert sources["unrendered"] == {
        "planted_package.crash": ended, "planted_package.hang": ended,
        "planted_package.leave": "SystemExit", "planted_package.loud": "EOFError"}
    assert "pydoc://planted_package/planted_package.thread" in records
    assert not any("tests" in source for source in records if "planted" in source)


def test_code_is_capped(records):
    code = [item for item in records.values() if item.domain == "code"]
    assert 150_000 < sum(len(item.content.encode()) for item in code) <= 200_000


def test_questions_are_plain_sentences_and_unique(corpus):
    (one, _), _ = corpus
    rows = pq.read_table(one / "questions.parquet").to_pylist()
    names = {row["name"]: row for row in rows}
    assert names["heapq.heappush"]["summary"] == (
        "Push item onto heap, maintaining the heap invariant.")
    assert names["planted_package.compute_total"]["kind"] == "function"
    assert len({(row["package"], row["summary"]) for row in rows}) == len(rows) > 50
    assert all(row["summary"].isascii() and 15 <= len(row["summary"]) <= 160 for row in rows)


@pytest.mark.parametrize(("docstring", "summary"), [
    ("Sum the values, e.g. of a list. More.", "Sum the values, e.g. of a list."),
    ("add(x1, x2, /)\n\nAdd arguments element-wise.", "Add arguments element-wise."),
    ("Call :func:`~numpy.sum` on\neach part.", "Call numpy.sum on each part."),
    ("Split v1.2 strings.\nrest", "Split v1.2 strings."),
    ("Deprecated: use something else now.", None),
    ("Alias for field number 0", None),
    ("Short.", None),
    ("Gibt die größte Zahl zurück.", None),
    ("x " * 200, None),
    (None, None),
])
def test_summaries(docstring, summary):
    assert render_pages.summarize(docstring) == summary


def test_pages_equal_those_of_pydoc():
    import argparse
    import pydoc
    assert (render_pages.Pages().document(argparse, "argparse")
            == pydoc.html.document(argparse, "argparse"))


def test_fingerprint_depends_on_versions_and_unknown_packages_are_refused(tmp_path):
    assert embedded.fingerprint("json") != embedded.fingerprint("tiktoken")
    assert embedded.fingerprint("") == embedded.fingerprint("")
    with pytest.raises(UserError, match="no_such_package"):
        embedded.build(tmp_path / "x", packages="no_such_package", code_max_bytes=0, seed=0)
