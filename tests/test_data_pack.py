"""Packing: token files do not depend on units, workers or kills, and no document is lost."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from data import pack as stage
from data.documents import Document, read_documents, write_documents
from data.engine import run_units
from data.tokenizers import bpe
from data.tokenizers.load import load_tokenizer
from data.tokenizers.recipe import Recipe
from data.tokens import shards
from data.tokens.encode import encode_document, plan_units
from data.tokens.rows import open_tokens
from data.tokens.shards import merge_runs, select_rank, shuffle_key, write_run
from tests import hub_tokenizers as hub

# Daft leaves the pipes of its worker processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SECTION = ConfigDict(dict(best_domains=("pages", "readme"), best_frac=0.25, seed=3))


def _documents(count: int, prefix: str = "") -> list[Document]:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}n" for a in "bcdfgl" for b in "aeiou"]
    made = []
    for i in range(count):
        quality = (round(float(rng.normal()), 1), None, float("nan"))[rng.choice(3, p=[.8, .1, .1])]
        made.append(Document(
            id=f"{prefix}{i:05d}", text=" ".join(rng.choice(words, rng.integers(0, 60))),
            source=f"test://{i}", domain=("pages", "code", "readme")[rng.integers(3)],
            meta={} if quality is None else {"quality": quality}))
    return made


def _write_corpus(folder: Path, documents: list[Document], num_parts: int) -> None:
    edges = [len(documents) * i // num_parts for i in range(num_parts + 1)]
    for part, (first, stop) in enumerate(itertools.pairwise(edges)):
        write_documents(folder / "documents" / f"part-{part:05d}.parquet", documents[first:stop])
    write_documents(folder / "heldout" / "part-00000.parquet", _documents(7, "h"))


DOCUMENTS = _documents(400)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A corpus in three parts and a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("pack")
    _write_corpus(folder / "corpus", DOCUMENTS, 3)
    bpe.train([d.text for d in DOCUMENTS], Recipe(300)).save(folder / "tokenizer")
    for name in ("corpus", "tokenizer"):
        write_json(folder / name / "lineage.json",
                   make_lineage(stage=name, config={}, inputs={}, code=""))
    return folder


def _run_here(work, tasks, folder, *, key, num_workers):
    """Replaces `run_units`: runs the units in this process, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    return [work(output=folder / f"{unit:05d}", **task) for unit, task in enumerate(tasks)]


def _pack(workdir: Path, folder: Path, run_units=_run_here, section=SECTION, **how) -> dict:
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "run_units", run_units)
        return stage.pack(section, workdir / "corpus", workdir / "tokenizer", folder, **how)


@pytest.fixture(scope="module")
def expected(workdir) -> dict[str, bytes]:
    """The token files, made in one go: one unit, one bucket."""
    _pack(workdir, workdir / "expected", unit_bytes=10**9)
    return _files(workdir / "expected")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _texts(folder: Path, name: str, tokenizer: bpe.BytePairTokenizer) -> list[str]:
    tokens = np.fromfile(folder / f"{name}.tokens", "<u2")
    ends = np.fromfile(folder / f"{name}.ends", "<i8")
    documents = np.split(tokens, ends[:-1])
    assert all(d[0] == tokenizer.bos and d[-1] == tokenizer.end for d in documents)
    return [tokenizer.decode(d[1:-1]) for d in documents]


def test_a_token_file_holds_every_document_in_the_order_of_hashes(workdir, tmp_path):
    counts = _pack(workdir, tmp_path / "t")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    assert set(counts) == {"pages", "code", "readme", "best", "heldout"}
    for name in ("pages", "code", "readme"):
        expected = sorted((d for d in DOCUMENTS if d.domain == name),
                          key=lambda d: shuffle_key(d.id, SECTION.seed))
        assert _texts(tmp_path / "t", name, tokenizer) == [d.text for d in expected]
        num_tokens = [len(tokenizer.encode(d.text)) for d in expected]
        num_bytes = sum(len(d.text.encode()) for d in expected)
        assert counts[name] == {
            "documents": len(expected), "tokens": sum(num_tokens) + 2 * len(expected),
            "bytes": num_bytes, "bytes_per_token": round(num_bytes / sum(num_tokens), 3)}
        order = [d.id for d in expected]
        assert np.corrcoef(np.argsort(order), np.arange(len(order)))[0, 1] < 0.2, "not shuffled"


def test_best_is_the_share_of_highest_quality(workdir, tmp_path, capfd):
    _pack(workdir, tmp_path / "t")
    tokenizer = load_tokenizer(workdir / "tokenizer")

    def rank(document):
        quality = document.meta.get("quality", np.nan)
        return -(-np.inf if np.isnan(quality) else quality), shuffle_key(document.id, SECTION.seed)

    pool = sorted((d for d in DOCUMENTS if d.domain in ("pages", "readme")), key=rank)
    expected = sorted(pool[:round(len(pool) / 4)], key=lambda d: rank(d)[1])
    assert _texts(tmp_path / "t", "best", tokenizer) == [d.text for d in expected]
    unscored = sum(rank(d)[0] == np.inf for d in pool)
    assert f"{unscored} of {len(pool)} documents" in capfd.readouterr().err


@settings(max_examples=8)
@given(st.integers(500, 60_000), st.integers(2_000, 50_000), st.integers(1, 9))
def test_files_do_not_depend_on_units_parts_or_buckets(workdir, expected, unit_bytes, bucket_bytes,
                                             num_parts):
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder)
        _write_corpus(again / "corpus", DOCUMENTS, num_parts)
        (again / "tokenizer").symlink_to(workdir / "tokenizer")
        _pack(again, again / "t", unit_bytes=unit_bytes, bucket_bytes=bucket_bytes)
        assert _files(again / "t") == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_files_do_not_depend_on_workers(workdir, expected, tmp_path, num_workers):
    _pack(workdir, tmp_path / "t", run_units, unit_bytes=9_000, num_workers=num_workers)
    assert _files(tmp_path / "t") == expected


def test_the_seed_affects_only_the_order(workdir, expected, tmp_path):
    counts = _pack(workdir, tmp_path / "t", section=ConfigDict(dict(SECTION, seed=4)))
    got = _files(tmp_path / "t")
    for name in ("pages", "code", "readme"):
        assert got[f"{name}.tokens"] != expected[f"{name}.tokens"]
        assert sorted(got[f"{name}.tokens"]) == sorted(expected[f"{name}.tokens"])
    assert sum(counts[name]["documents"] for name in ("pages", "code", "readme")) == 400


def test_every_row_is_in_one_unit(workdir):
    rows = []
    for spans in plan_units(workdir / "corpus" / "documents", 2_000):
        for part, group, first, num_rows in spans:
            table = pq.ParquetFile(part).read_row_group(group, columns=["id"])
            rows += table.slice(first, num_rows)["id"].to_pylist()
    assert rows == [d.id for d in DOCUMENTS]


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=2, max_size=60), st.data())
def test_selection_by_rank_is_selection_by_score(scores, data):
    num_wanted = data.draw(st.integers(1, len(scores)))
    keys = [shuffle_key(str(i), 0) for i in range(len(scores))]
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / "a", Path(folder) / "b"]
        for i, run in enumerate(runs):
            part = slice(i, None, 2)
            tokens = [np.array([j], "<u2") for j in range(len(scores))[part]]
            write_run(run, keys[part], scores[part], [1] * len(tokens), tokens)
        limit = select_rank(runs, num_wanted)
        merge_runs(runs, Path(folder) / "out", np.dtype("<u2"), 3, limit)
        picked = np.fromfile(Path(folder) / "out.tokens", "<u2").tolist()
    # -0.0 ranks behind 0.0, as its bits say
    best = sorted(range(len(scores)),
                  key=lambda i: (-scores[i], np.signbit(scores[i]), keys[i] >> 32))[:num_wanted]
    assert sorted(picked) == sorted(best)


@pytest.mark.parametrize("num_buckets", [1, 2, 3])
def test_edges_of_buckets_and_equal_hashes(tmp_path, num_buckets):
    keys = [2**64 - 1, 2**63, 7, 2**63 - 1, 0, 7]
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, part in zip(runs, (slice(0, 4), slice(4, 6))):
        tokens = [np.array([i], "<u4") for i in range(6)[part]]
        write_run(run, keys[part], [0.0] * len(tokens), [1] * len(tokens), tokens)
    merge_runs(runs, tmp_path / "out", np.dtype("<u4"), num_buckets)
    assert np.fromfile(tmp_path / "out.tokens", "<u4").tolist() == [4, 2, 5, 3, 1, 0]
    assert np.fromfile(tmp_path / "out.ends", "<i8").tolist() == [1, 2, 3, 4, 5, 6]


def test_a_killed_merge_resumes(workdir, expected, tmp_path, monkeypatch):
    read_bucket, calls = shards._bucket, []

    def stop_at_the_tenth(*arguments):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return read_bucket(*arguments)

    monkeypatch.setattr(shards, "_bucket", stop_at_the_tenth)
    with pytest.raises(KeyboardInterrupt):
        _pack(workdir, tmp_path / "t", bucket_bytes=2_000)
    for path in (tmp_path / "t").glob("*.tokens"):
        with open(path, "ab") as file:
            file.write(b"torn")  # partial output of a killed bucket
    _pack(workdir, tmp_path / "t", bucket_bytes=2_000)
    assert _files(tmp_path / "t") == expected
    num_buckets = len({(tuple(runs), bucket) for runs, _, bucket, *_ in calls})
    assert len(calls) == num_buckets + 1, "only the interrupted bucket is read again"


@pytest.mark.full
def test_a_killed_encoding_resumes(workdir, tmp_path):
    """SIGKILL between the units of a larger corpus: a second run completes the same bytes."""
    _write_corpus(tmp_path / "corpus", _documents(30_000), 2)
    (tmp_path / "tokenizer").symlink_to(workdir / "tokenizer")
    command = [sys.executable, "-m", "data.pack", "--config=configs/quickstart.py:smoke",
               f"--workdir={tmp_path}"]
    write_json(tmp_path / "corpus" / "lineage.json",
               make_lineage(stage="curate", config={}, inputs={}, code=""))
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    records = tmp_path / "tokens.partial" / "encode"
    while not [*records.glob("*.done.json")]:
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "tokens").exists()
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "units are done already" in again.stderr
    section = ConfigDict(dict(best_domains=("pages",), best_frac=0.5, seed=0))
    counts = _pack(tmp_path, tmp_path / "whole", section=section)
    assert json.loads((tmp_path / "tokens" / "tokens.json").read_text())["domains"] == counts
    for path in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "tokens" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "tokens" / "encode").exists()


def test_unusual_texts_are_encoded_unchanged(workdir):
    tokenizer = load_tokenizer(workdir / "tokenizer")
    for text in ("", "<|end|> is text", "\0\ud7ff\U0010ffff", "a" * 300_000, " " * 1_200_000,
                 "b " + "\n" * 1_100_000):
        ids = encode_document(tokenizer, text)
        assert ids.dtype == "<u2" and tokenizer.decode(ids[1:-1]) == text
        if len(text) < 1_000_000:
            assert ids.tolist() == [tokenizer.bos, *tokenizer.encode(text), tokenizer.end]


def test_documents_are_packed_by_a_tokenizer_of_the_hub(workdir, tmp_path):
    """`pack.tokenizer` may name a folder that is no artifact of ours."""
    pytest.importorskip("tokenizers")
    (tmp_path / "corpus").symlink_to(workdir / "corpus")
    source = hub.write_hub(tmp_path / "theirs", hub.byte_level(),
                           tokenizer_config={"eos_token": "<|im_end|>"})
    command = [sys.executable, "-m", "data.pack", "--config=configs/quickstart.py",
               f"--workdir={tmp_path}", "--config.pack.best_domains=()"]
    refused = subprocess.run([*command, "--config.pack.tokenizer=none"], cwd=ROOT,
                             capture_output=True, text=True)
    assert refused.returncode == 2 and "no finished artifact at" in refused.stderr
    command.append(f"--config.pack.tokenizer={source}")
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert not json.loads(done.stdout)["skipped"]
    folder, tokenizer = tmp_path / "tokens", load_tokenizer(source)
    described = json.loads((folder / "tokens.json").read_text())
    assert described["vocab_size"] == 330 and described["tokenizer"] == tokenizer.fingerprint
    assert load_tokenizer(folder) == tokenizer
    tokens, ends = open_tokens(folder, "heldout")
    texts = [tokenizer.decode(part[1:-1]) for part in np.split(tokens[:], ends[:-1])]
    expected = sorted(d.text for d in read_documents(workdir / "corpus" / "heldout"))
    assert sorted(texts) == expected
    assert {int(part[0]) for part in np.split(tokens[:], ends[:-1])} == {0}, "<|endoftext|>"
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["skipped"]


#: Domains, and what a token folder calls them.
NAMES = {name: name for name in (
    "Science & Tech.", "Arts/Music", "../etc", "", ".hidden", "travel", "Travel", "TRAVEL", "a.b",
    "a_b", "con", "天気", "x" * 400, "new\nline", "100%")} | {
    "best": "domain:best", "heldout": "domain:heldout", "domain:best": "domain:domain:best"}


def test_any_text_may_name_a_domain(workdir, tmp_path, capfd):
    """Every domain has files of its own, and its documents are read by its name."""
    (tmp_path / "tokenizer").symlink_to(workdir / "tokenizer")
    write_documents(tmp_path / "corpus" / "documents" / "part-0.parquet", [
        Document(id=f"x{i}", text=f"of {name}", source="s", domain=name)
        for i, name in enumerate(NAMES)])
    section = ConfigDict(dict(SECTION, best_domains=("domain:best", "a.b"), best_frac=1.0))
    counts = _pack(tmp_path, tmp_path / "t", section=section)
    assert set(counts) == {*NAMES.values(), "best"}
    tokenizer = load_tokenizer(workdir / "tokenizer")
    write_json(tmp_path / "t" / "tokens.json", {"dtype": "uint16", "domains": counts})
    for name, called in NAMES.items():
        tokens, _ = open_tokens(tmp_path / "t", called)
        assert tokenizer.decode(tokens[:][1:-1]) == f"of {name}"
    files = [path.name for path in (tmp_path / "t").rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"[a-z0-9_.~-]{1,100}", name) for name in files)
    assert not {"con.tokens", "con.ends"} & set(files)
    assert "'best' is called 'domain:best'" in capfd.readouterr().err


def test_a_corpus_without_held_out_pages_is_packed_without_them(workdir, tmp_path, capfd):
    whole = _pack(workdir, tmp_path / "whole")
    assert "holds no page out" not in capfd.readouterr().err
    for name in ("tokenizer", "corpus/documents"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(workdir / name)
    write_documents(tmp_path / "corpus" / "heldout" / "part-00000.parquet", [])
    counts = _pack(tmp_path, tmp_path / "t")
    assert counts == {name: count for name, count in whole.items() if name != "heldout"}
    assert capfd.readouterr().err.count("pack: the corpus holds no page out") == 1
    assert not [*(tmp_path / "t").glob("heldout*")]


def test_no_best_domains_make_no_best_file(workdir, expected, tmp_path):
    counts = _pack(workdir, tmp_path / "t", section=ConfigDict(dict(SECTION, best_domains=())))
    assert set(counts) == {"pages", "code", "readme", "heldout"}
    assert _files(tmp_path / "t") == {name: content for name, content in expected.items()
                                      if not name.startswith("best")}


def test_damaged_and_empty_corpora_are_user_errors(workdir, tmp_path):
    _write_corpus(tmp_path / "corpus", DOCUMENTS, 1)
    part = tmp_path / "corpus" / "documents" / "part-00000.parquet"
    whole = part.read_bytes()
    (tmp_path / "tokenizer").symlink_to(workdir / "tokenizer")
    damages = {
        "cut off": (whole[:len(whole) // 2], "is not a readable document file"),
        "damaged within": (whole[:100] + b"x" * 4000 + whole[4100:],
                           "is not a readable document file"),
        "empty": (b"", "is not a readable document file"),
    }
    for name, (content, message) in damages.items():
        part.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            _pack(tmp_path, tmp_path / name)
        assert "\n" not in str(caught.value)
        assert "part-00000.parquet" in str(caught.value)
    pq.write_table(pq.read_table(pa.BufferReader(whole), columns=["id", "text"]), part)
    with pytest.raises(UserError, match="it lacks the columns domain, meta"):
        _pack(tmp_path, tmp_path / "columns")
    write_documents(part, [])
    with pytest.raises(UserError, match="documents: holds no documents"):
        _pack(tmp_path, tmp_path / "none")


@pytest.mark.parametrize("changes, message", [
    ({"best_domains": ("poems",)}, r"the corpus holds only \['code', 'pages', 'readme'\]"),
    ({"best_domains": ("heldout",)}, "the corpus holds only"),
    ({"best_frac": 0.0}, "above 0"), ({"best_frac": 1.5}, "at most 1")])
def test_invalid_choices_of_the_best_are_refused(workdir, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        _pack(workdir, tmp_path / "t", section=ConfigDict(dict(SECTION, **changes)))
    assert not (tmp_path / "t" / "encode").exists(), "no document is encoded before"
