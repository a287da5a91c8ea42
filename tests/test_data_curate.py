"""The curation stage on planted documents: what goes, what stays, what a kill may not change."""

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import quickstart
from core.errors import UserError
from data import curate, dedup, inspect
from data.documents import read_documents

# Daft leaves the output pipes of its worker processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

WORDS = ("the", "of", "and", "to", "that", "with", "have", "be", "value", "array", "returns",
         "index", "shape", "function", "module", "class", "error", "number", "list", "key",
         "table", "stream", "file", "path", "name", "type", "default", "result", "option")


def _page(key, num_lines=12):
    return "\n".join(" ".join(key.choice(WORDS, 12)) + f" item{key.integers(10**6)}."
                     for _ in range(num_lines))


def _records():
    """About 130 documents; every kind of removal is planted at least once."""
    key = np.random.default_rng(0)
    pages = [_page(key) for _ in range(60)]
    lines = pages[3].split("\n")
    near = "\n".join([*lines[:5], lines[5] + " indeed", *lines[6:]])
    block = "\n".join(f"  inherited{i}(self) is documented elsewhere" for i in range(12))
    planted = {
        "exact": pages[5].upper(), "near": near, "short": "too short",
        "block_a": f"{_page(key)}\n{block}", "block_b": f"{_page(key)}\n{block}",
        "mail": f"{_page(key)}\nwrite to jane@example.org", "table": "17 | 18 | 19\n" * 40,
        "lorem": f"{_page(key)}\n" + "Lorem ipsum dolor, " * 6}
    rows = [{"text": text, "source": f"page{n}", "domain": "pages"} for n, text in enumerate(pages)]
    rows += [{"text": text, "source": name, "domain": "pages"} for name, text in planted.items()]
    body = "\n".join(f"    value{i} = other{i} + {'abcdefgh'[i % 8] * i}" for i in range(60))
    rows += [{"text": f"def f{n}():\n    '''{page}'''\n{body}{n}\n", "source": f"code{n}",
              "domain": "code"} for n, page in enumerate(pages)]
    rows.append({"text": "x = '" + "a1" * 900 + "'", "source": "long", "domain": "code"})
    return rows


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rows = _records()
    for number in range(4):
        with gzip.open(folder / f"{number}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[number::4])
            file.write("{damaged\n")
    config = quickstart.get_config()
    config.curate.inputs = str(folder)
    config.curate.heldout.frac = 0.2
    return config


@pytest.fixture(scope="module")
def corpus(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, curate.build(config, {}, folder, num_workers=2)


def _outputs(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for kind in inspect.KINDS for path in sorted((folder / kind).glob("*.parquet"))}


def _removed(folder):
    return {row["source"]: row for part in sorted((folder / "removed").glob("*.parquet"))
            for row in pq.read_table(part).to_pylist()}


def test_planted_documents_go_for_the_planted_reason(corpus):
    removed = _removed(corpus[0])
    assert {removed[name]["reason"] for name in ("short", "lorem", "long")} == {
        "gopher_min_words", "c4_max_lorem_ipsum", "code_max_line_chars"}
    assert removed["table"]["reason"].startswith("gopher_")
    gone = [name for name in ("exact", "page5")
            if name in removed and removed[name]["reason"] == "exact_duplicate"]
    assert len(gone) == 1
    assert removed["page3"]["reason"] == "near_duplicate"  # the other one is longer
    kept = {document.id: document.source for kind in ("documents", "heldout")
            for document in read_documents(corpus[0] / kind)}
    assert kept[removed["page3"]["representative"]] == "near"
    assert corpus[1]["corrupt"].total() == 4


def test_nothing_is_lost_and_the_funnel_adds_up(corpus):
    folder, result = corpus
    ids = [row["id"] for kind in inspect.KINDS for part in (folder / kind).glob("*.parquet")
           for row in pq.read_table(part).to_pylist()]
    assert len(ids) == len(set(ids)) == len(_records()) == result["documents_in"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for before, after in itertools.pairwise(manifest["funnel"]):
        assert before["documents_out"] == after["documents_in"]
        assert before["bytes_out"] == after["bytes_in"]
    for stage in manifest["funnel"]:
        num_removed = sum(count["documents"] for count in stage["removed"].values())
        assert stage["documents_in"] - stage["documents_out"] == num_removed
    last = manifest["funnel"][-1]
    assert last["documents_out"] == result["documents"] + result["heldout_documents"]
    assert last["bytes_out"] == result["bytes"] + result["heldout_bytes"]


def test_texts_are_redacted_and_repeated_blocks_kept_once(corpus):
    texts = [document.text for kind in ("documents", "heldout")
             for document in read_documents(corpus[0] / kind)]
    assert not any("jane@example.org" in text for text in texts)
    assert corpus[1]["redacted"] == {"email": 1}
    assert sum("inherited7(self)" in text for text in texts) <= 1


def test_no_training_document_resembles_a_heldout_page(corpus, config):
    folder, result = corpus
    pages = [dedup.shingle(document.text, 5) for document in read_documents(folder / "heldout")]
    assert len(pages) >= 5
    assert result["removed"]["near_heldout"] >= len(pages) - 1  # the code that quotes them
    rules = config.curate.heldout
    for document in read_documents(folder / "documents"):
        grams = dedup.shingle(document.text, 5)
        for page in pages:
            assert dedup.jaccard(grams, page) < rules.max_jaccard
            assert np.isin(page, grams).mean() < rules.max_containment


def test_output_does_not_depend_on_the_number_of_workers(corpus, config, tmp_path):
    result = curate.build(config, {}, tmp_path, num_workers=1)
    assert result["corpus_hash"] == corpus[1]["corpus_hash"]
    assert _outputs(tmp_path) == _outputs(corpus[0])


def test_a_killed_run_goes_on_and_ends_alike(corpus, config, tmp_path):
    command = [sys.executable, "-m", "data.curate", "--config=configs/quickstart.py",
               f"--workdir={tmp_path}", f"--config.curate.inputs={config.curate.inputs}",
               "--config.curate.heldout.frac=0.2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)
    partial = tmp_path / "corpus.partial"
    while not list(partial.glob("work/read/*.done.json")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "corpus").exists()
    records = {path.name: path.stat().st_mtime_ns
               for path in partial.glob("work/read/*.done.json")}
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(records)} of 4 units are done already" in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result[name] == value for name, value in corpus[1].items() if name != "stage_secs")
    assert _outputs(tmp_path / "corpus") == _outputs(corpus[0])


@pytest.mark.parametrize("content, message", [
    ("", "holds no document"),
    ("{broken\n" * 3 + '{"text": "fine"}\n', "3 of 4 records are damaged"),
    ('{"text": "too short"}\n', "every document was removed"),
])
def test_bad_input_is_one_clean_line(tmp_path, content, message):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    config = quickstart.get_config()
    config.curate.inputs = str(tmp_path / "in.jsonl.gz")
    with pytest.raises(UserError, match=message):
        curate.build(config, {}, tmp_path / "out", num_workers=1)


def test_inspect_shows_reasons_and_stories(corpus, capsys):
    folder = corpus[0]
    counts = inspect.removed(folder, "near_duplicate", 5)["removed"]
    assert counts == corpus[1]["removed"]
    shown = capsys.readouterr().out
    assert "near_duplicate = 0.9" in shown
    story = inspect.tell(folder, shown.split()[0])
    assert (story["kind"], story["reason"]) == ("removed", "near_duplicate")
    with pytest.raises(UserError, match="removed no document"):
        inspect.removed(folder, "nonsense", 5)
