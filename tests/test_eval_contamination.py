"""Contamination: distances, planted copies, clean and dirty scores, bad input, the page."""

import gzip
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from core.artifacts import ROOT, read_jsonl, write_json, write_jsonl
from core.errors import UserError
from data.contamination.index import searched_texts
from data.contamination.task_files import Item
from data.documents import Document, write_documents
from data.layouts.faults import Faults
from eval.contamination.canaries import Canaries, draw_candidates, exposure, random_places
from eval.contamination.corpus import Page, find_questions, read_corpus
from eval.contamination.detect import Detector
from eval.contamination.edit import find_nearest, similarity
from eval.contamination.embed import (
    CHUNK_WINDOWS,
    STRIDE_WORDS,
    WINDOW_WORDS,
    Nearby,
    cut_windows,
    load_encoder,
)
from eval.contamination.items import read_tasks
from eval.contamination.scores import compare, join_results, read_results, split_scores
from eval.contamination.tally import RULES, Tally, overlap_class, set_thresholds
from tests.contamination_texts import Letters, items_of, text_of

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
needs_datasets = pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
GUID = "26b5c67b-86f4-4d93-a2e7-1b0c9a5d3e4f"


def levenshtein(one, other):
    """Between whole texts, by the table."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


@pytest.mark.parametrize("seed", range(60))
def test_the_nearest_passage_is_that_of_a_search_of_all(seed):
    rng = np.random.default_rng(seed)
    pattern = "".join(rng.choice(list("abc"), rng.integers(1, 9)))
    text = "".join(rng.choice(list("abcd"), rng.integers(0, 12)))
    passages = [text[i:j] for i in range(len(text) + 1) for j in range(i, len(text) + 1)]
    near = find_nearest(pattern, text)
    assert near.distance == min(levenshtein(pattern, passage) for passage in passages)
    assert levenshtein(pattern, text[near.start:near.stop]) == near.distance


def test_similarity_is_of_a_part_of_the_text():
    assert similarity("kitten", "the sitting kitting") == pytest.approx(5 / 6)
    assert similarity("abc", "xxabcxx") == 1 and similarity("abc", "") == 0
    long = text_of(0, 200)
    assert find_nearest(long, f"{text_of(1, 50)} {long}") == (0, 350, 350 + len(long))


def find(items, *texts):
    """The tally of a corpus."""
    detector = Detector(items)
    tally = Tally(detector)
    for number, text in enumerate(texts):
        tally.add(Page(f"page{number}", text), detector.find(text))
    return tally


def test_what_lies_in_several_documents_is_covered_together():
    words = text_of(3, 100).split()
    items = items_of(*[text_of(seed, 100) for seed in range(3)], " ".join(words))
    parts = " ".join(words[:45]), " ".join(words[40:90]), text_of(9, 50)
    tally = find(items, *parts)
    best = tally.best[3]
    assert best["overlap_8"].value == pytest.approx(0.9) and tally.documents == [0, 0, 0, 2]
    assert (best["longest"].value, best["longest"].source) == (50, "page1")
    assert best["ngram_13"].value == pytest.approx(38 / 88, abs=1e-4)
    assert overlap_class(best) == "dirty" and overlap_class(tally.best[0]) == "clean"
    assert overlap_class(find(items, parts[0]).best[3]) == "partly"
    dirty = tally.is_dirty(RULES)
    assert [name for name in RULES if dirty[name][3]] == [
        "ngram_8", "ngram_13", "chars_50", "chars_50_drawn", "overlap_20", "overlap_80",
        "longest"]
    assert not any(mask[:3].any() for mask in dirty.values())


def test_every_hit_has_its_place():
    """Spans are words of the document, and texts are what stands there."""
    item = text_of(2, 40)
    page = f"{text_of(7, 30)} {item.upper().replace(' ', ', ', 20)}! {text_of(8, 30)}"
    candidate = Detector(items_of(item)).find(page)[0]
    words = re.findall(r"[a-z]+", page.lower())
    for method, span in candidate.spans.items():
        assert span.text == " ".join(words[span.start:span.stop])[:160], method
        assert (span.start, span.stop) == (30, 70), method
    assert candidate.spans["edit"].value == 1 and candidate.covered.all()


def test_windows_overlap_and_hold_every_word():
    words = text_of(0, 200).split()
    windows = cut_windows("\n  ".join(words))
    assert [window.start for window in windows] == list(range(0, 168, STRIDE_WORDS))
    for window in windows:
        assert window.text.split() == words[window.start:window.start + WINDOW_WORDS]
    assert cut_windows("one two three") == []
    assert len(cut_windows(" ".join(words[:WINDOW_WORDS]))) == 1
    assert len(cut_windows(" ".join(words[:WINDOW_WORDS + 1]))) == 2


def test_the_nearest_window_of_a_corpus_is_kept_in_bounded_memory():
    items = [*items_of(*[text_of(seed, 20) for seed in range(4)]), Item("a/b", 4, ("no",))]
    encoder = Letters()
    nearby = Nearby(encoder, items)
    for number in range(3 * CHUNK_WINDOWS):
        nearby.add(f"page{number}", text_of(100 + number % 50, 12))
    nearby.add("copy", f"{text_of(2, 20)}")
    nearby.finish()
    assert nearby.nearest[2].source == "copy" and nearby.nearest[2].cosine == pytest.approx(1)
    assert nearby.nearest[4].source == "" and nearby.nearest[4].cosine == -1
    assert encoder.sizes == [4, *[CHUNK_WINDOWS] * 3, 1] and nearby.num_windows == sum(
        encoder.sizes[1:])
    best = max(float(nearby.cosines([text_of(100 + n, 12)])[1, 0]) for n in range(50))
    assert nearby.nearest[1].cosine == pytest.approx(best)
    tally = Tally(Detector(items))
    tally.add_nearest(nearby.nearest)
    assert tally.best[2]["edit"].value == 1 and tally.best[2]["embedding"].source == "copy"
    assert not tally.best[4]


def record(task, number, question, score):
    return {"id": f"{task}/{number}", "question": question, "score": score}


def test_clean_and_dirty_scores_of_hand_made_records(tmp_path):
    items = [Item("t/a", number, (text_of(number, 12), "yes")) for number in range(6)]
    rows = [record("a", number, f"{text_of(number, 12).upper()}?", score)
            for number, score in enumerate((1, 1, 0, 1, 0, 0))]
    write_jsonl(tmp_path / "a.jsonl", [*rows, record("a", 6, text_of(60, 12), 1)])
    write_jsonl(tmp_path / "b.jsonl", [record("b", 0, text_of(61, 12), 1)])
    write_jsonl(tmp_path / "open.jsonl", [record("open", 0, text_of(0, 12), 1)])
    joined = join_results(read_results(tmp_path), items)
    assert list(joined) == ["a"], "b asks nothing that is searched for"
    dirty = {"some": np.array([1, 1, 1, 0, 0, 0], bool), "none": np.zeros(6, bool)}
    found = split_scores(joined, dirty)["a"]
    assert found["unmatched"] == 1
    assert (found["all"]["value"], found["all"]["items"]) == (0.5, 6)
    some, none = found["rules"]["some"], found["rules"]["none"]
    assert some["dirty"]["value"] == pytest.approx(2 / 3)
    assert some["clean"]["value"] == pytest.approx(1 / 3)
    assert some["difference"]["value"] == pytest.approx(1 / 3)
    assert some["difference"]["low"] < 0 < some["difference"]["high"]
    assert none["dirty"] is None and none["difference"] is None and none["clean"]["items"] == 6


def test_choices_are_judged_as_they_were():
    items = [Item("t/a", number, (text_of(number, 12),)) for number in range(2)]
    rows = [{"id": str(number), "question": text_of(number, 12), "judged_by": "char",
             "right": {"raw": False, "char": bool(number)}} for number in range(2)]
    found = split_scores(join_results({"a": rows}, items), {"x": np.array([True, False])})
    assert found["a"]["rules"]["x"]["difference"]["value"] == -1


def test_the_interval_of_a_difference_is_newcombes():
    """56 of 70 less 48 of 80: 0.2, from 0.0524 to 0.3339 (Newcombe 1998, table II, method 10)."""
    dirty, clean = np.repeat([1.0, 0.0], [56, 14]), np.repeat([1.0, 0.0], [48, 32])
    found = compare(clean, dirty)["difference"]
    assert [round(found[name], 4) for name in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]


def test_a_record_of_a_repeated_question_is_dirty_if_any_copy_is():
    items = items_of(text_of(0, 12), text_of(0, 12))
    joined = join_results({"a": [record("a", 0, text_of(0, 12), 1)]}, items)
    found = split_scores(joined, {"x": np.array([False, True])})
    assert found["a"]["rules"]["x"]["dirty"]["items"] == 1


def test_exposure_of_ranks():
    """Of 7 candidates: bits are log2 8 less log2 of the rank."""
    logps = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    for logp, rank, bits in ((-0.5, 1, 3.0), (-1.5, 2, 2.0), (-3.5, 4, 1.0), (-9.0, 8, 0.0),
                             (-1.0, 2, 2.0)):
        found = exposure(logp, logps)
        assert (found["rank"], found["exposure_bits"], found["max_bits"]) == (rank, bits, 3.0)


def test_candidates_differ_in_the_random_part_alone():
    rng = np.random.default_rng(0)
    for text, pattern in ((f"x 12 canary GUID {GUID}",
                           r"x 12 canary GUID [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
                          ("The code is 281-26.", r"The code is \d{3}-\d{2}\.")):
        drawn = draw_candidates(text, 50, rng)
        assert len(set(drawn)) == 50 and all(re.fullmatch(pattern, one) for one in drawn)
    assert random_places("a1b2") == ([1, 3], "0123456789")
    with pytest.raises(UserError, match="has no part that was drawn"):
        Canaries(["no random part"])


def test_canaries_are_found_by_their_guid_or_as_a_whole():
    canaries = Canaries([f"BENCHMARK DATA. canary GUID {GUID}", "The code is 281-26."])
    for number, text in enumerate((f"x {GUID.upper()}y", GUID, "the code IS 281-26.", "281-26")):
        canaries.add(Page(f"page{number}", text))
    assert [(row["documents"], row["first"]) for row in canaries.report(
        None, num=1, seed=0, batch_size=1)] == [(2, "page0"), (1, "page2")]


def test_a_corpus_is_read_from_rows_pages_and_curated_folders(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "first page"}, {"text": " "}, {"text": "second"}])
    (tmp_path / "b.html").write_text(f"<html><body><p>{text_of(0, 60)}.</p></body></html>")
    curated = tmp_path / "corpus"
    for part in ("documents", "removed"):
        write_documents(curated / part / "part-00000.parquet",
                        [Document(part, f"text of {part}", f"source of {part}", "pages")])
    write_json(curated / "manifest.json", {})
    faults = Faults("contamination")
    inputs = f"{curated},{tmp_path / 'a.jsonl'},{tmp_path / 'b.html'}"
    pages = list(read_corpus(inputs, faults))
    assert [page.text for page in pages[:3]] == ["text of documents", "first page", "second"]
    assert pages[0].source == "source of documents" and text_of(0, 60) in pages[3].text
    assert faults.counts == {"no_text": 1}
    assert len(list(read_corpus(inputs, faults, 2))) == 2
    assert find_questions(inputs) is None
    (curated / "questions.parquet").write_text("")
    assert find_questions(inputs) == curated


def run(*flags):
    """The last line of the command, or its error."""
    done = subprocess.run([sys.executable, "-m", "eval.contamination", *flags], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode:
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr.strip().splitlines()[-1]
    return 0, json.loads(done.stdout.splitlines()[-1])


def test_the_command_writes_a_report(tmp_path):
    hostile = "<script>alert(1)</script>"
    write_jsonl(tmp_path / "bench.jsonl", [
        {"question": f"{hostile} {text_of(number, 30)}", "answer": "4"} for number in range(4)])
    write_jsonl(tmp_path / "corpus.jsonl", [
        {"text": f"{text_of(50, 30)} {hostile} {text_of(2, 30)}"}, {"text": GUID}, {"text": ""}])
    write_jsonl(tmp_path / "mine.jsonl", [
        record("mine", number, f"{hostile} {text_of(number, 30)}", float(number == 2))
        for number in range(4)])
    code, last = run(f"--tasks={tmp_path / 'bench.jsonl'}", f"--inputs={tmp_path / 'corpus.jsonl'}",
                     f"--out={tmp_path / 'out'}", f"--results={tmp_path / 'mine.jsonl'}",
                     f"--canary=canary GUID {GUID}", "--thresholds=longest=40")
    assert code == 0, last
    (task,) = last["tasks"]
    assert {name: count for name, count in last["tasks"][task].items() if count != 1} == {
        "items": 4, "near": 0, "longest": 0}
    assert "embedding" not in last["tasks"][task], "without an encoder there is none"
    assert last["documents"] == 2 and last["left_out"] == {"no_text": 1}
    assert last["differences"]["mine"]["ngram_8"] == 1 and last["canaries"][0]["documents"] == 1
    rows = read_jsonl(tmp_path / "out" / "items.jsonl")
    assert [bool(row["found_by"]) for row in rows] == [False, False, True, False]
    page = (tmp_path / "out" / "contamination.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "dirty less clean" in page and GUID in page


def test_bad_flags_are_one_line(tmp_path):
    code, line = run("--tasks=a.jsonl", f"--out={tmp_path}", "--inputs=none/such")
    assert code == 2 and line.startswith("error: --tasks=a.jsonl: is no file, and no folder")


def read_all(pattern):
    return list(read_corpus(pattern, Faults("contamination")))


@pytest.mark.parametrize(("call", "name", "message"), [
    (lambda path: read_tasks([path]), "none/such.jsonl", "no such file"),
    (lambda path: read_tasks(["gsm9k"]), "", "is no file, and no folder of benchmarks"),
    (lambda path: read_tasks(["gsm9k"], data=path), "", "is no task"),
    (lambda path: read_tasks(["turns"]), "", "makes its questions anew"),
    (lambda path: read_tasks(["documentation"]), "", "is drawn from a corpus"),
    (lambda path: read_tasks([path, path]), "bench.jsonl", "a second task is called"),
    (lambda path: Detector(read_tasks([path])[0]), "short.jsonl", "hold fewer than 8 words"),
    (read_all, "empty.jsonl", "holds no text"), (read_all, "none/such", "matches no input file"),
    (load_encoder, "", "is no model directory"), (read_results, "none/such", "no such file"),
    (read_results, "bench.jsonl", "holds no records"),
    (lambda path: join_results(read_results(path), items_of(text_of(0, 12))), "other.jsonl",
     "no question of other is an item"),
    (lambda path: set_thresholds({"x": 1.0}), "", "is no rule")], ids=range(14))
def test_bad_input_is_one_clear_line(tmp_path, call, name, message):
    write_jsonl(tmp_path / "bench.jsonl", [{"question": text_of(0, 30)}])
    write_jsonl(tmp_path / "short.jsonl", [{"question": "why"}])
    write_jsonl(tmp_path / "empty.jsonl", [{"text": ""}])
    write_jsonl(tmp_path / "other.jsonl", [record("other", 0, text_of(9, 12), 1)])
    with pytest.raises(UserError, match=re.escape(message)):
        call(str(tmp_path / name))


@needs_datasets
def test_items_of_the_registry_are_joined_with_records_of_their_questions():
    """By name, and by the files that the names stand for."""
    names = ("gsm8k", "humaneval", "hellaswag")
    items, _ = read_tasks(names, data=DATASETS)
    assert {name: sum(item.task == name for item in items) for name in names} == {
        "gsm8k": 1319, "humaneval": 164, "hellaswag": 1000}
    first = {name: next(item for item in items if item.task == name) for name in names}
    records = {name: [record(name, 0, item.fields[0], 1)] for name, item in first.items()}
    joined = join_results(records, items)
    assert all(items[joined[name][0][1][0]] is first[name] for name in names)
    files, _ = read_tasks([f"{DATASETS}/gsm8k/test.jsonl.gz",
                           f"{DATASETS}/humaneval/HumanEval.jsonl.gz"])
    assert list(join_results(records, files)) == ["gsm8k", "humaneval"]


def plant(text, rng):
    """A copy with other case, spaces and punctuation."""
    words = re.findall(r"\w+", text)
    words = [word.upper() if rng.random() < 0.3 else word for word in words]
    marks = rng.choice([" ", "  ", "\n", ", ", " - ", " (", "; "], len(words))
    return "".join(f"{word}{mark}" for word, mark in zip(words, marks))


BENCHMARKS = ("gsm8k/test.jsonl.gz", "mmlu/mmlu_validation.jsonl.gz",
              "humaneval/HumanEval.jsonl.gz", "hellaswag/hellaswag_val_1000.jsonl.gz")


@needs_datasets
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.full)])
def test_planted_items_are_found_and_no_others(step):
    """All that have eight words of their own; and none in pages without."""
    items, _ = read_tasks([f"{DATASETS}/{name}" for name in BENCHMARKS])
    items = items[::step]
    detector = Detector(items)
    rng = np.random.default_rng(0)
    with gzip.open(f"{DATASETS}/text_small/c4_demo.jsonl.gz", "rt") as file:
        pages = [json.loads(line)["text"] for line in file][:1200 // step]
    with gzip.open(f"{DATASETS}/wikitext2/wiki.valid.raw.txt.gz", "rt") as file:
        pages += [file.read()[:4_000_000 // step]]
    assert not any(detector.find(page) for page in pages)
    missed = []
    for number in rng.permutation(len(items))[:600].tolist():
        page, copy = pages[number % len(pages)], plant(" ".join(items[number].fields), rng)
        found = detector.find(f"{page[:600]}\n{copy}\n{page[600:1200]}")
        if number in found:
            assert found[number].spans["overlap_8"].value == 1
        else:
            missed.append(items[number])
    assert not [item for item in missed if searched_texts(item)]
    assert len(missed) < 20
