"""Decontamination: all planted items are found, and no others."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import UserError
from data.contamination.index import TaskIndex, load_tasks
from data.contamination.task_files import Item


def _words(seed, count):
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return ["".join(row) for row in letters[np.random.default_rng(seed).integers(0, 26,
                                                                                 (count, 6))]]


def _text(seed, count):
    return " ".join(_words(seed, count))


def _index(*texts, **options):
    return TaskIndex([Item("a/b", number, (text,) if isinstance(text, str) else text)
                      for number, text in enumerate(texts)], **options)


def test_a_run_of_n_words_is_found_and_a_shorter_one_is_not():
    index = _index(_text(0, 40), _text(1, 40), near_overlap=1.0)
    item = _words(1, 40)
    for size, is_found in ((12, False), (13, True), (20, True)):
        words = item[10:10 + size]
        hits = index.find(f"{_text(2, 30)} {' '.join(words).upper()}! {_text(3, 30)}")
        assert bool(hits) == is_found
        if is_found:
            assert [(hit.task, hit.item, hit.kind) for hit in hits] == [("a/b", 1, "ngram")]
            assert hits[0].text.split() == words
            assert hits[0].overlap == pytest.approx((size - 12) / 28, abs=1e-4)
    assert index.find("") == index.find("no") == []


def test_runs_across_two_items_match_neither():
    index = _index(_text(0, 40), _text(1, 40), near_overlap=1.0)
    assert not index.find(" ".join(_words(0, 40)[-12:] + _words(1, 40)[:12]))


@pytest.mark.parametrize("num_words", (8, 13, 50))
def test_the_length_of_the_run_is_an_option(num_words):
    index = _index(_text(0, 60), ngram_words=num_words, near_overlap=1.0)
    assert index.find(" ".join(_words(0, 60)[:num_words]))
    assert not index.find(" ".join(_words(0, 60)[:num_words - 1]))


def test_short_texts_are_matched_whole_and_too_short_ones_reported():
    short, shorter = _words(0, 9), _words(1, 7)
    index = _index(" ".join(short), " ".join(shorter), ("What is", "one of", "these four words?"))
    assert index.report()["skipped"] == {"too_short": 2}
    (hit,) = index.find(f"so {' '.join(short)} it is")
    assert (hit.item, hit.kind, hit.overlap, hit.text) == (0, "whole", 1.0, " ".join(short))
    assert not index.find(" ".join(short[:8])) and not index.find(" ".join(shorter))


def test_short_fields_count_together():
    index = _index(("Who wrote it?", "Abel Baker", "Carl Dorn", "Emil Frey"), near_overlap=1.0)
    assert index.find("who wrote it Abel Baker, Carl Dorn, Emil Frey")
    assert not index.find("who wrote it")


def test_digits_distinguish_items():
    index = _index("If 12 pens cost 36 cents then what do 7 of them cost here", near_overlap=1.0)
    assert index.find("if 12 pens cost 36 cents then what do 7 of them cost here")
    assert not index.find("if 13 pens cost 39 cents then what do 8 of them cost here")


def test_common_ngrams_are_reported_and_not_matched():
    phrase = _text(0, 20)
    items = [f"{phrase} {_text(seed, 20)}" for seed in range(1, 13)]
    index = _index(*items, max_items=10, near_overlap=1.0)
    assert index.report()["common_ngrams"] == 8
    assert not index.find(phrase)
    assert [hit.item for hit in index.find(" ".join(_words(3, 20)))] == [2]
    assert _index(*items, max_items=12, near_overlap=1.0).find(phrase)


def test_a_paraphrase_is_found_by_rare_words_close_together():
    items = [_text(seed, 30) for seed in range(40)]
    index = _index(*items)
    words = _words(5, 30)
    rephrased = [word for pair in zip(words[1::2], words[::2]) for word in pair]
    rephrased[::4] = _words(99, len(rephrased[::4]))
    (hit,) = index.find(f"{_text(90, 400)} {' '.join(rephrased)} {_text(91, 900)}")
    assert (hit.item, hit.kind) == (5, "near") and hit.overlap == pytest.approx(22 / 30, abs=0.01)
    assert set(hit.text.split()) <= set(rephrased)
    scattered = " ".join(f"{word} {_text(100 + at, 12)}" for at, word in enumerate(rephrased))
    assert not index.find(scattered)
    assert not _index(*items, near_overlap=0.8).find(" ".join(rephrased))


def test_long_texts_are_found_piece_by_piece():
    items = [_text(seed, 500) for seed in range(12)]
    words = _words(3, 500)[128:256]
    (hit,) = _index(*items).find(f"{_text(50, 700)} {' '.join(words[::-1])} {_text(51, 99)}")
    assert (hit.item, hit.kind) == (3, "near")


def test_formats_give_the_same_items(tmp_path):
    rows = [{"question": _text(0, 20), "choices": [_text(1, 9), "two"], "answer": 1},
            {"question": _text(2, 20), "choices": ["three", "four"], "answer": 0}]
    lines = [json.dumps(rows[0]), "{damaged", json.dumps(rows[1]), '{"question": ""}', "[]"]
    folder = tmp_path / "bench"
    folder.mkdir()
    with gzip.open(folder / "test.jsonl.gz", "wt", encoding="utf-8-sig") as file:
        file.write("\n".join(lines))
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    (folder / "test.csv").write_text("question,answer\n" + "".join(
        f'"{row["question"]}",{row["answer"]}\n' for row in rows))
    for name in ("test.jsonl.gz", "test.parquet", "test.csv"):
        index = load_tasks([folder / name])
        assert index.report()["tasks"] == {"bench/test": 2}
        assert [(hit.task, hit.kind) for hit in index.find(f"x {rows[1]['question']} y")] == \
            [("bench/test", "ngram")]
        assert bool(index.find(f"x {_text(1, 9)} two y")) == (name != "test.csv")
    report = load_tasks([folder / "test.jsonl.gz"]).report()
    assert report["skipped"] == {"damaged": 2, "empty": 1}
    assert load_tasks([folder / "test.jsonl.gz"]).find(rows[1]["question"])[0].item == 2
    assert not load_tasks([folder / "test.parquet"], ["choices"]).find(rows[1]["question"])


def test_bad_task_files_are_user_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"foo": "bar"}\n')
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.doc").write_text("")
    (tmp_path / "d.parquet").write_text("PAR1 or not")
    (tmp_path / "e.jsonl.gz").write_text("no gzip")
    for name, message in (("a.jsonl", "has the fields foo"), ("b.jsonl", "holds no item"),
                          ("c.doc", "is not a .jsonl"), ("d.parquet", "cannot be read"),
                          ("e.jsonl.gz", "cannot be read"), ("f.jsonl", "no such file")):
        with pytest.raises(UserError, match=message):
            load_tasks([tmp_path / name])
    with pytest.raises(UserError, match="ngram_words=5"):
        _index("x", ngram_words=5)


def _rows(path):
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.skipif("HEARTWOOD_DATASETS" not in os.environ, reason="needs the benchmark files")
def test_real_items_are_found_where_planted_and_nowhere_else():
    folder = Path(os.environ["HEARTWOOD_DATASETS"])
    index = load_tasks([folder / "gsm8k" / "test.jsonl.gz",
                        folder / "humaneval" / "HumanEval.jsonl.gz"])
    pages = [row["text"] for row in _rows(folder / "text_small" / "c4_demo.jsonl.gz")]
    assert not any(index.find(page) for page in pages)
    items = _rows(folder / "gsm8k" / "test.jsonl.gz")
    for number in range(0, len(items), 10):
        page = pages[number % len(pages)]
        hits = index.find(f"{page[:999]}\n{items[number]['question']}\n{page[999:]}")
        assert number in [hit.item for hit in hits if hit.task == "gsm8k/test"]
    rephrased = [row["text"] for row in _rows(
        folder / "contamination" / "rephrase_gsm8k.jsonl.gz")][:300]
    num_found = sum(any(hit.item == number for hit in index.find(text))
                for number, text in enumerate(rephrased))
    assert num_found > 0.2 * len(rephrased)
