"""The curation stage on planted documents: removals, kept documents, resumption after kills."""

import contextlib
import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import quickstart
from core.artifacts import ROOT
from core.errors import UserError
from data import curate
from data.dedup.clusters import jaccard
from data.dedup.shingles import shingle
from data.documents import read_documents

KINDS = ("documents", "heldout", "removed")

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
    rows = [{"text": text, "source": f"page{n}", "domain": "pages", "id": n,
             "licence": {"name": "cc0"}} for n, text in enumerate(pages)]
    rows += [{"text": text, "source": name, "domain": "pages"} for name, text in planted.items()]
    body = "\n".join(f"    value{i} = other{i} + {'abcdefgh'[i % 8] * i}" for i in range(60))
    rows += [{"text": f"def f{n}():\n    '''{page}'''\n{body}{n}\n", "source": f"code{n}",
              "domain": "code"} for n, page in enumerate(pages)]
    rows.append({"text": "x = '" + "a1" * 900 + "'", "source": "long", "domain": "code"})
    return rows


def _write_inputs(folder, rows, num_files=4):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        with gzip.open(folder / f"{number}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[number::num_files])
            file.write("{damaged\n")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    return str(folder)


def _config(inputs):
    config = quickstart.get_config()
    config.curate.inputs = inputs
    config.curate.heldout.frac = 0.2
    return config


def _build(config, parent, num_workers=1):
    """Curates in `parent` as the command does; returns the folder and the metrics."""
    folder = parent / "corpus"
    folder.mkdir(parents=True)
    return folder, curate.build(config, {}, folder, num_workers=num_workers)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return _config(_write_inputs(tmp_path_factory.mktemp("inputs"), _records()))


@pytest.fixture(scope="module")
def corpus(config, tmp_path_factory):
    return _build(config, tmp_path_factory.mktemp("two_workers"), num_workers=2)


def _outputs(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for kind in (*KINDS, "lost") for path in sorted((folder / kind).glob("*.parquet"))}


def _removed(folder):
    return {row["source"]: row for part in sorted((folder / "removed").glob("*.parquet"))
            for row in pq.read_table(part).to_pylist()}


def test_planted_documents_are_removed_for_the_planted_reason(corpus):
    removed = _removed(corpus[0])
    assert {name: removed[name]["reason"] for name in ("short", "lorem", "long")} == {
        "short": "technical_min_words", "lorem": "technical_max_lorem_ipsum",
        "long": "code_max_line_chars"}
    assert removed["table"]["reason"].startswith("technical_")
    gone = [name for name in ("exact", "page5")
            if name in removed and removed[name]["reason"] == "exact_duplicate"]
    assert len(gone) == 1
    assert removed["page3"]["reason"] == "near_duplicate"  # the other one is longer
    kept = {document.id: document for kind in ("documents", "heldout")
            for document in read_documents(corpus[0] / kind)}
    representative = kept[removed["page3"]["representative"]]
    assert representative.source == "near"
    assert representative.meta["cluster_size"] == 2
    assert representative.meta["cluster_id"] == representative.id
    assert corpus[1]["corrupt"] == {"jsonl: line is not JSON": 4}


def test_no_document_is_lost_and_the_funnel_adds_up(corpus):
    folder, result = corpus
    ids = [row["id"] for kind in KINDS for part in (folder / kind).glob("*.parquet")
           for row in pq.read_table(part).to_pylist()]
    assert len(ids) == len(set(ids)) == len(_records()) == result["documents_in"]
    lost = [row for part in (folder / "lost").glob("*.parquet")
            for row in pq.read_table(part).to_pylist()]
    assert [row["kind"] for row in lost] == ["corrupt"] * 4
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["funnel"][0]["documents_in"] == len(ids)
    for before, after in itertools.pairwise(manifest["funnel"]):
        assert before["documents_out"] == after["documents_in"]
        assert before["bytes_out"] == after["bytes_in"]
    for stage in manifest["funnel"]:
        num_removed = sum(count["documents"] for count in stage["removed"].values())
        assert stage["documents_in"] - stage["documents_out"] == num_removed
    last = manifest["funnel"][-1]
    assert last["documents_out"] == result["documents"] + result["heldout_documents"]
    assert last["bytes_out"] == result["bytes"] + result["heldout_bytes"]
    assert (folder / "report.html").stat().st_size > 10_000


def test_fields_of_the_input_stay_with_every_document(corpus):
    folder = corpus[0]
    rows = [row for kind in KINDS for part in (folder / kind).glob("*.parquet")
            for row in pq.read_table(part).to_pylist()]
    meta = {row["source"]: json.loads(row["meta"]) for row in rows}
    for number in range(60):
        page = meta[f"page{number}"]
        assert page["origin_id"] == str(number)
        assert page["origin"] == {"id": number, "licence": {"name": "cc0"}, "domain": "pages",
                                  "source": f"page{number}"}
    assert "origin_id" not in meta["code0"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["text_fields"] == {"text": len(rows)}
    (left,) = manifest["left_out"]
    assert (left["reason"], left["suffix"], left["files"]) == ("unknown format", ".pdf", 1)
    assert left["examples"][0].endswith("notes.pdf")


def test_texts_are_redacted_and_repeated_blocks_kept_once(corpus):
    texts = [document.text for kind in ("documents", "heldout")
             for document in read_documents(corpus[0] / kind)]
    assert not any("jane@example.org" in text for text in texts)
    assert corpus[1]["redacted"] == {"email": 1}
    assert sum("inherited7(self)" in text for text in texts) <= 1


def test_no_training_document_resembles_a_heldout_page(corpus, config):
    folder, result = corpus
    pages = [shingle(document.text, 5) for document in read_documents(folder / "heldout")]
    assert len(pages) >= 5
    assert result["removed"]["near_heldout"] >= len(pages) - 1  # the code that quotes them
    rules = config.curate.heldout
    for document in read_documents(folder / "documents"):
        grams = shingle(document.text, 5)
        for page in pages:
            assert jaccard(grams, page) < rules.max_jaccard
            assert np.isin(page, grams).mean() < rules.max_containment


@pytest.mark.full
def test_output_does_not_depend_on_workers_or_memory(corpus, config, tmp_path):
    config = config.copy_and_resolve_references()
    config.curate.run.memory_bytes = 1 << 20
    folder, result = _build(config, tmp_path, num_workers=1)
    assert result["corpus_hash"] == corpus[1]["corpus_hash"]
    assert _outputs(folder) == _outputs(corpus[0])


def _command(config, workdir, *more):
    return [sys.executable, "-m", "data.curate", "--config=configs/quickstart.py",
            f"--workdir={workdir}", f"--config.curate.inputs={config.curate.inputs}",
            "--config.curate.heldout.frac=0.2", *more]


def _kill_after(command, is_time):
    """Starts a command, kills it and its workers when `is_time()`; returns whether it still ran."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    while not is_time() and process.poll() is None:
        time.sleep(0.005)
    still_ran = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return still_ran


def test_a_killed_run_resumes_with_the_same_bytes(corpus, config, tmp_path):
    command, measured = _command(config, tmp_path), tmp_path / "corpus.measured"
    assert _kill_after(command, lambda: list(measured.glob("*.done.json")))
    assert not (tmp_path / "corpus").exists()
    done = {path: path.stat().st_mtime_ns for path in measured.glob("*.done.json")}
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{len(done)} of 4 units are done already" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    result = json.loads(again.stdout.splitlines()[-1])
    assert all(result[name] == value for name, value in corpus[1].items() if name != "stage_secs")
    assert _outputs(tmp_path / "corpus") == _outputs(corpus[0])


@pytest.mark.full
def test_ten_kills_do_not_change_the_result(corpus, config, tmp_path):
    command, chance = _command(config, tmp_path), random.Random(0)
    for _ in range(10):
        end = time.monotonic() + chance.uniform(1.0, 6.0)
        _kill_after(command, lambda end=end: time.monotonic() > end)
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert _outputs(tmp_path / "corpus") == _outputs(corpus[0])


@pytest.mark.full
def test_the_tasks_of_a_job_array_write_the_same_bytes(corpus, config, tmp_path):
    helper = subprocess.Popen(_command(config, tmp_path, "--task=1/2"), cwd=ROOT,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    subprocess.run(_command(config, tmp_path, "--task=0/2"), cwd=ROOT, capture_output=True,
                   check=True)
    out, err = helper.communicate(timeout=60)
    assert helper.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["corpus_hash"] == corpus[1]["corpus_hash"]
    assert "finished 2 units of clean" in err        # of four; task 0 ran the others
    assert _outputs(tmp_path / "corpus") == _outputs(corpus[0])


@pytest.mark.full
def test_ray_writes_the_same_bytes(corpus, config, tmp_path):
    pytest.importorskip("ray")
    subprocess.run(_command(config, tmp_path, "--executor=ray", "--num_workers=2"), cwd=ROOT,
                   capture_output=True, check=True)
    assert _outputs(tmp_path / "corpus") == _outputs(corpus[0])


@pytest.mark.full
def test_new_thresholds_read_no_page_again(config, tmp_path):
    folder, _ = _build(config, tmp_path)
    measured = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("corpus.measured/*")}
    assert measured
    folder.rename(tmp_path / "first")
    config = config.copy_and_resolve_references()
    config.curate.overrides.default = {"technical_min_words": 200}
    _, result = _build(config, tmp_path)
    assert result["removed"]["technical_min_words"] > 10
    assert {path: path.stat().st_mtime_ns for path in measured} == measured


def test_the_first_documents_without_those_of_an_earlier_corpus(corpus, config, tmp_path):
    config = config.copy_and_resolve_references()
    new = {"text": _page(np.random.default_rng(9)), "source": "new", "domain": "pages"}
    beyond = new | {"source": "beyond the limit", "text": _page(np.random.default_rng(10))}
    rows = [*_records()[:20], new | {"licence": {"name": "mit"}}, beyond]
    config.curate.inputs = _write_inputs(tmp_path / "in", rows, num_files=1)
    config.curate.limit, config.curate.columns = 21, dict(licence="licence.name")
    config.curate.against = (str(corpus[0]),)
    config.curate.heldout.frac = 0.0
    config.curate.max_corrupt_frac = 0.5
    folder, result = _build(config, tmp_path)
    kept = {document.source for document in read_documents(folder / "documents")}
    first = {document.source for document in read_documents(corpus[0] / "documents")}
    assert "new" in kept and result["documents_in"] == 21 and result["corrupt"] == {}
    assert kept & first == set()
    licences = {row["source"]: row["licence"] for kind in KINDS
                for row in pq.read_table(folder / kind).to_pylist()}
    assert licences == {f"page{n}": "cc0" for n in range(20)} | {"new": "mit"}
    known = {f"page{n}" for n in range(20)} & {"page5" if name == "exact" else name
                                               for name in first}
    assert result["removed"]["exact_duplicate"] == len(known)


def test_lists_languages_benchmarks_and_own_filters_decide_by_config(tmp_path, monkeypatch):
    key = np.random.default_rng(1)
    pages = {name: _page(key) for name in ("https://bad.example/x", "https://fine.example/a",
                                           "swears", "german", "leaks", "recipe")}
    item = "a train leaves the station at noon and travels west for ninety seven minutes exactly"
    pages["swears"] += "\nwhat a grubblewort this is"
    pages["leaks"] += f"\n{item}, said the book."
    pages["german"] = "Die Würde des Menschen ist unantastbar und sie zu achten ist Pflicht. " * 9
    pages["recipe"] += "\nStir in the flour, then bake for an hour. Mail cook@example.org for more."
    (tmp_path / "kitchen.py").write_text(
        "def recipes(document):\n"
        "    assert '<email>' in document.text or 'cook' not in document.text\n"
        "    return document.meta['gopher_words'] if 'bake' in document.text else None\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "urls.txt").write_text("bad.example\n")
    (tmp_path / "words.txt").write_text("grubblewort\n")
    (tmp_path / "trains.jsonl").write_text(json.dumps({"question": item}) + "\n")
    config = _config(_write_inputs(tmp_path / "in", [
        {"text": text, "source": source} for source, text in pages.items()], num_files=1))
    config.curate.update(max_corrupt_frac=0.5)
    config.curate.heldout.frac = 0.0
    config.curate.languages.keep = ("en",)
    config.curate.harm.update(url_lists=(str(tmp_path / "urls.txt"),),
                              word_lists=(str(tmp_path / "words.txt"),))
    config.curate.contamination.tasks = (str(tmp_path / "trains.jsonl"),)
    config.curate.filters = ("kitchen.recipes",)
    before = curate.fingerprint_inputs(config)
    folder, _ = _build(config, tmp_path)
    reasons = {source: row["reason"] for source, row in _removed(folder).items()}
    assert reasons.pop("https://bad.example/x").startswith("url_")
    task = f"{tmp_path.name}/trains"
    assert reasons == {"swears": "harm_max_bad_words", "german": "language_de",
                       "leaks": f"contamination_{task}", "recipe": "recipes"}
    assert _removed(folder)["recipe"]["score"] > 50      # the signal that the filter returned
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["contamination"]["tasks"] == {task: {"items": 1, "hits": 1}}
    assert "ninety seven minutes" in manifest["contamination"]["examples"][0]["text"]
    with open(tmp_path / "kitchen.py", "a") as file:
        file.write("\n\n# changed\n")
    assert before.keys() == curate.fingerprint_inputs(config).keys()
    assert before != curate.fingerprint_inputs(config)


def test_a_source_that_loses_most_to_deduplication_raises_an_alarm(tmp_path, capsys):
    key = np.random.default_rng(2)
    page = _page(key)
    rows = [{"text": page, "source": f"copy{n}", "domain": "mirror"} for n in range(9)]
    rows += [{"text": _page(key), "source": f"own{n}", "domain": "web"} for n in range(9)]
    config = _config(_write_inputs(tmp_path / "in", rows, num_files=1))
    config.curate.max_corrupt_frac = 0.5
    config.curate.heldout.frac = 0.0
    folder, _ = _build(config, tmp_path)
    alarms = json.loads((folder / "manifest.json").read_text())["alarms"]
    assert [(alarm["source"], alarm["removed_frac"]) for alarm in alarms] == [("mirror", 0.8889)]
    assert "ALARM: deduplication removed 89% of mirror" in capsys.readouterr().err


@pytest.mark.parametrize("content, message", [
    ("", "holds no document"),
    ("{broken\n" * 3 + '{"text": "fine"}\n', "3 of 4 records are damaged"),
    ('{"text": "too short"}\n', "every document was removed"),
])
def test_bad_input_is_one_error_line(tmp_path, content, message):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    with pytest.raises(UserError, match=message):
        _build(_config(str(tmp_path / "in.jsonl.gz")), tmp_path)


@pytest.mark.parametrize("field, value, message", [
    ("presets.default", ("gofer",), "there is no such preset"),
    ("overrides.default", {"gopher_min_wurds": 3}, "names no signal"),
    ("privacy.actions.email", "shout", "is not an action"),
    ("lines.min_block_lines", 0, "must lie between 1 and"),
    ("against", ("/nowhere",), "is not a finished corpus"),
    ("harm.word_lists", ("/nowhere",), "nowhere"),
    ("extraction.mode", "slow", "there is no such extractor"),
    ("filters", ("json.no_such_function",), "cannot be imported"),
    ("filters", ("json.decoder",), "is not a function"),
])
def test_bad_config_is_reported_before_a_page_is_read(tmp_path, field, value, message):
    config = _config(str(tmp_path / "missing"))
    *path, last = field.split(".")
    section = config.curate
    for name in path:
        section = section[name]
    with section.unlocked():
        section[last] = value
    with pytest.raises(UserError, match=message):
        _build(config, tmp_path)


@pytest.mark.full
def test_long_passages_that_occurred_before_are_cut(tmp_path):
    key = np.random.default_rng(3)
    passage = " ".join(f"{word}{key.integers(100)}" for word in key.choice(WORDS, 60))
    rows = [{"text": f"{_page(key)}\n{start} {passage} and so on {n}.", "source": f"page{n}"}
            for n, start in enumerate(("First", "Then", "Last"))]
    config = _config(_write_inputs(tmp_path / "in", rows, num_files=2))
    config.curate.max_corrupt_frac = 0.5
    config.curate.heldout.frac = 0.0
    config.curate.substrings.num_tokens = 50
    folder, result = _build(config, tmp_path)
    texts = {document.source: document.text for document in read_documents(folder / "documents")}
    assert [passage in texts[f"page{n}"] for n in range(3)] == [True, False, False]
    assert all(texts[f"page{n}"].endswith(f" {n}.") for n in range(3))
    last = json.loads((folder / "manifest.json").read_text())["funnel"][-1]
    cut_bytes = last["trimmed_bytes"]["repeated_substring"]
    assert last["bytes_in"] - last["bytes_out"] == cut_bytes >= 2 * len(passage)
    assert result["bytes"] == last["bytes_out"]


@pytest.mark.full
def test_a_bloom_filter_finds_the_same_exact_duplicates(corpus, config, tmp_path):
    config = config.copy_and_resolve_references()
    config.curate.dedup.bloom.memory_bytes = 100_000
    _, result = _build(config, tmp_path)
    assert result["corpus_hash"] == corpus[1]["corpus_hash"]
    config.curate.dedup.bloom.memory_bytes = 10
    with pytest.raises(UserError, match="raise it to"):
        _build(config, tmp_path / "small")


def test_unusual_documents_are_kept_or_reported(tmp_path):
    key = np.random.default_rng(4)
    strange = {"surrogate": _page(key) + " \ud800 half a pair", "nul": "\0" * 500,
               "control": _page(key).replace(" ", "\x07 ", 3), "empty": "", "blank": " \n\t ",
               "long": "x" * 2_000_000, "bidi": _page(key) + " \u202e", "deep": "(" * 50_000,
               "same": _page(key)}
    rows = [{"text": text, "source": source, "id": "one"} for source, text in strange.items()]
    config = _config(_write_inputs(tmp_path / "in", [*rows, rows[-1]], num_files=1))
    config.curate.max_corrupt_frac = 0.5
    config.curate.heldout.frac = 0.0
    folder, result = _build(config, tmp_path)
    texts = {document.source: document.text for document in read_documents(folder / "documents")}
    assert set(texts) == {"surrogate", "control", "bidi", "same"}
    assert "\x07" not in texts["control"]
    lost = {row["source"]: row["reason"] for part in (folder / "lost").glob("*.parquet")
            for row in pq.read_table(part).to_pylist()}
    assert set(lost) | set(_removed(folder)) >= {"nul", "empty", "blank", "long", "deep"}
    assert result["removed"]["exact_duplicate"] == 1    # one id may occur twice
