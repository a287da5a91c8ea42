"""Decontamination: all planted items are found, and no others."""

import bz2
import gzip
import json
import lzma
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


def test_passages_of_a_few_items_of_a_large_task_are_matched():
    phrase = _text(0, 20)
    items = [f"{phrase} {_text(1, 20)}"] * 12 + [_text(seed, 20) for seed in range(2, 300)]
    items[:12] = [f"{item} {_text(1000 + number, 9)}" for number, item in enumerate(items[:12])]
    assert len(_index(*items, max_items=12, near_overlap=1.0).find(phrase)) == 12
    assert not _index(*items, max_items=11, near_overlap=1.0).find(phrase)


INSTRUCTION = ("Choose the correct answer to the question below from the four options and write "
               "only its letter.")
FRAMES = (
    "{0} has {1} {2}. {3} gives {0} {4} more {2}, and then {0} loses 2 of the {2} on the way home. "
    "How many {2} does {0} have left?",
    "In the census of 19{1} the town of {0} had a population of 3{4} people, among them {4} "
    "farmers who grew {2}, and the median age of its inhabitants was {1} years back then.",
    "The bus of company {3} leaves {0} at {1} minutes past nine with {4} passengers and many {2} "
    "on board, and it travels {4} kilometres before it reaches its final stop.")
SLOTS = (("Ana", "Bo", "Cy", "Di", "Ed", "Flo", "Gus"), range(10, 60),
         ("apples", "books", "coins", "shells", "stamps"), ("Hal", "Ivy", "Jo", "Kai", "Lou"),
         range(5, 90))


def _filled(seed, frames=FRAMES[:1]):
    key = np.random.default_rng(seed)
    return frames[seed % len(frames)].format(*(values[key.integers(len(values))]
                                               for values in SLOTS))


#: An item by its number, and an innocent text that has the words of its template.
TEMPLATES = {
    "instruction": (lambda seed: f"{INSTRUCTION} {_text(seed, 16)}",
                    lambda seed: f"{INSTRUCTION} Then hand in {_text(seed, 9)}."),
    "slots": (_filled, _filled),
    "two templates": (lambda seed: _filled(seed, FRAMES[1:]),) * 2}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("num_items", [6, 12, 100])
@pytest.mark.parametrize("others", [0, 200])
def test_words_of_a_template_are_no_evidence_and_items_are_found(template, num_items, others):
    """Alone, and beside a task in which the template's words are rare."""
    make, innocent = TEMPLATES[template]
    items = [make(seed) for seed in range(num_items)]
    index = TaskIndex([Item("t/a", number, (text,)) for number, text in enumerate(items)]
                      + [Item("t/b", number, (_text(10_000 + number, 40),))
                         for number in range(others)])
    for text in {innocent(seed) for seed in range(500, 560)} - {*items}:
        assert not index.find(f"{_text(9001, 50)} {text} {_text(9002, 50)}")
    for number, item in enumerate(items[:20]):
        hits = index.find(f"{_text(9003, 50)} {item} {_text(9004, 50)}")
        assert number in [hit.item for hit in hits if hit.task == "t/a"]
    assert index.report()["common_ngrams"] > 0 or template != "instruction"


def test_equal_items_of_a_task_count_once():
    """A task that lists an item twice does not make it a template."""
    text = _text(0, 30)
    assert len(_index(text, text, _text(1, 30)).find(text)) == 2


def test_an_item_that_is_all_template_is_reported():
    index = _index(*[INSTRUCTION + (f" {_text(7, 9)}" if number == 3 else " " * number)
                     for number in range(6)])
    assert index.report()["skipped"] == {"template": 5}
    assert "6 items of 1 tasks; " in index.describe()
    assert "no evidence: 5; left out: 5 template" in index.describe()


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
    assert load_tasks([folder / "test.csv", folder / ".." / "bench" / "test.csv"]).report()[
        "tasks"] == {"bench/test": 2}, "a file that is named twice is read once"
    report = load_tasks([folder / "test.jsonl.gz"]).report()
    assert report["skipped"] == {"damaged": 2, "empty": 1}
    assert load_tasks([folder / "test.jsonl.gz"]).find(rows[1]["question"])[0].item == 2
    assert not load_tasks([folder / "test.parquet"], ["choices"]).find(rows[1]["question"])


LONG = {seed: _text(seed, 20) for seed in range(1, 6)}


@pytest.mark.parametrize(("name", "content", "fields", "is_found"), [
    ("a.csv", f"{LONG[1]},red,blue,\"green, {LONG[2]}\",4,D\n{LONG[3]},1,2,3,4,A\n", (), (1, 2, 3)),
    ("a.csv", f"{LONG[1]},red,blue,green,4,D\n{LONG[3]},1,2,3,4,A\n", ("question",), (1, 3)),
    ("a.csv", f"12,{LONG[1]}\n13,{LONG[3]}\n", (), (1, 3)),
    ("a.csv", f"{LONG[2]},{LONG[1]}\n{LONG[4]},{LONG[3]}\n", ("1",), (1, 3)),
    ("a.csv", f"\ufeffType,Best Answer\nx,{LONG[1]}\ny,{LONG[3]}\n", (), (1, 3)),
    ("a.tsv", f"id\tQuestion\n1\t{LONG[1]}\n2\t{LONG[3]}\n", (), (1, 3)),
    ("a.json", json.dumps([{"question": LONG[1]}, {"question": LONG[3]}]), (), (1, 3)),
    ("a.json", json.dumps({"name": "x", "examples": [{"input": LONG[1]}, {"input": LONG[3]}]}), (),
     (1, 3)),
    ("a.json", f'{{"question": "{LONG[1]}"}}\n{{"question": "{LONG[3]}"}}\n', (), (1, 3)),
    ("a.ndjson", json.dumps({"doc": {"q.id": 7, "question": {"stem": LONG[1], "choices": [
        {"label": "A", "text": LONG[3]}]}}, "note": LONG[5]}), (), (1, 3)),
    ("a.jsonl", json.dumps({"doc": {"stem": LONG[1]}, "question": LONG[2]}), ("doc.stem",), (1,)),
    ("a.jsonl", json.dumps({"question": LONG[1]}) + "\n" + json.dumps({"Prompt": LONG[3]}), (),
     (1, 3)),
], ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "")
def test_layouts_of_task_files(tmp_path, name, content, fields, is_found):
    (tmp_path / name).write_text(content)
    index = load_tasks([tmp_path / name], fields)
    assert [seed for seed in LONG if index.find(LONG[seed])] == list(is_found)
    for suffix, codec in ((".gz", gzip), (".bz2", bz2), (".xz", lzma)):
        (tmp_path / f"{name}{suffix}").write_bytes(codec.compress(content.encode()))
        assert load_tasks([tmp_path / f"{name}{suffix}"], fields).report() == index.report()
    with pa.CompressedOutputStream(str(tmp_path / f"{name}.zst"), "zstd") as file:
        file.write(content.encode())
    assert load_tasks([tmp_path / f"{name}.zst"], fields).report() == index.report()


def test_a_folder_stands_for_its_files(tmp_path):
    (tmp_path / "test" / "more").mkdir(parents=True)
    for place, seed in (("one.csv", 1), ("more/two.jsonl", 2)):
        (tmp_path / "test" / place).write_text(
            json.dumps({"question": LONG[seed]}) if "jsonl" in place
            else f"question\n{LONG[seed]}\n")
    (tmp_path / "test" / "README").write_text("about")
    index = load_tasks([tmp_path / "test"])
    assert index.report()["tasks"] == {"more/two": 1, "test/one": 1}
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none'.*holds no file of \.jsonl"):
        load_tasks([tmp_path / "none"])


def test_a_task_of_which_nothing_is_searched_for_is_an_error(tmp_path):
    """Answers alone, or one instruction in every item."""
    (tmp_path / "yes.jsonl").write_text("".join(
        json.dumps({"question": LONG[1], "answer": answer}) + "\n" for answer in ("yes", "no")))
    with pytest.raises(UserError, match=(
            r"/yes\.jsonl: none.*fields answer hold fewer than 8.*'yes' \(other fields: question")):
        load_tasks([tmp_path / "yes.jsonl"], ["answer"])
    with pytest.raises(UserError, match="t/x: none of its items can be searched for"):
        TaskIndex([Item("t/x", number, (INSTRUCTION, str(number))) for number in range(9)])
    with pytest.raises(UserError, match="t/x: none"):
        TaskIndex([Item("t/y", 0, (LONG[1],)), Item("t/x", 0, ("no",))])


def test_bad_task_files_are_user_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"foo": "bar"}\n')
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.doc").write_text("")
    (tmp_path / "d.parquet").write_text("PAR1 or not")
    (tmp_path / "e.jsonl.gz").write_text("no gzip")
    for name, message in (("a.jsonl", r"a\.jsonl has the fields foo, and not the usual"),
                          ("b.jsonl", "holds no item"),
                          ("c.doc", r"is not a file of \.jsonl"), ("d.parquet", "cannot be read"),
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
    history = load_tasks([folder / "contamination" / "mmlu_us_history_test.csv.gz"])  # no header
    assert history.report()["tasks"] == {"contamination/mmlu_us_history_test": 204}
    rephrased = [row["text"] for row in _rows(
        folder / "contamination" / "rephrase_gsm8k.jsonl.gz")][:300]
    num_found = sum(any(hit.item == number for hit in index.find(text))
                for number, text in enumerate(rephrased))
    assert num_found > 0.2 * len(rephrased)
