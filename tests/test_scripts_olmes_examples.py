"""OLMES' solved examples: made from request files, and found by the forms that need them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.artifacts import ROOT
from core.errors import UserError
from eval.benchmarks.commonsense import open_hellaswag, open_winogrande
from eval.benchmarks.reading import open_boolq
from eval.benchmarks.registry import BENCHMARKS
from eval.benchmarks.source import Source
from scripts.olmes_examples import write_examples

# By request file: texts of questions, numbered, and their options; made up.
LISTED = {
    "arc_easy__test_mc_5shot": ("Question: What floats, {n}?", ("wood", "iron", "lead", "gold")),
    "arc_challenge__test_mc_5shot": ("Question: What burns, {n}?", ("wood", "sand", "air")),
    "csqa__mc_5shot": ("Question: Where is pot {n}?", ("a", "b", "c", "d", "in E. F. G.")),
    "openbookqa__test_mc_5shot": ("Question: Pot {n} is", ("hot.", "cold.", "new.", "old.")),
    "piqa__mc_5shot": ("Goal: Boil  {n} eggs", ("Use water.", "Use ice.")),
    "socialiqa__mc_5shot": ("Question: Ann met Mr. Bo. They ate {n} figs. How is Ann?",
                            ("full", "sad", "at home")),
    "winogrande__mc_5shot": ("Fill in the blank: Ann saw Bo and ___ hid {n} figs.", ("Ann", "Bo")),
    "boolq__mc_5shot": ("Salt -- Salt {n} is salty.\nQuestion: is salt {n} salty?", ("yes", "no")),
    "hellaswag__mc_5shot": ("Cooking: Ann boils {n} eggs. \nChoose the best continuation:",
                            ("She eats.", "It rains.", "Eggs fly.", "He is Bo.")),
}
ROWS = {    # of the second example, whose right option is the second
    "arc_easy": {"question": "What floats, 1?", "answerKey": "B", "choices": {
        "text": ["wood", "iron", "lead", "gold"], "label": ["A", "B", "C", "D"]}},
    "arc_challenge": {"question": "What burns, 1?", "answerKey": "B", "choices": {
        "text": ["wood", "sand", "air"], "label": ["A", "B", "C"]}},
    "commonsense_qa": {"question": "Where is pot 1?", "answerKey": "B", "choices": {
        "text": ["a", "b", "c", "d", "in E. F. G."], "label": ["A", "B", "C", "D", "E"]}},
    "openbookqa": {"question_stem": "Pot 1 is", "answerKey": "B", "choices": {
        "text": ["hot.", "cold.", "new.", "old."], "label": ["A", "B", "C", "D"]}},
    "piqa": {"goal": "Boil  1 eggs", "sol1": "Use water.", "sol2": "Use ice.", "label": 1},
    "siqa": {"context": "Ann met Mr. Bo. They ate 1 figs.", "question": "How is Ann?",
             "answerA": "full", "answerB": "sad", "answerC": "at home", "label": "2"},
    "winogrande": {"sentence": "Ann saw Bo and _ hid 1 figs.", "option1": "Ann", "option2": "Bo",
                   "answer": "2"},
    "boolq": {"passage": "Salt -- Salt 1 is salty.", "question": "is salt 1 salty", "label": 0},
    "hellaswag": {"query": "Cooking: Ann boils 1 eggs.", "gold": 1,
                  "choices": ["She eats.", "It rains.", "Eggs fly.", "He is Bo."]},
}
FILES = {"arc_easy": "arc_easy__test_mc_5shot", "arc_challenge": "arc_challenge__test_mc_5shot",
         "commonsense_qa": "csqa__mc_5shot", "openbookqa": "openbookqa__test_mc_5shot",
         "piqa": "piqa__mc_5shot", "siqa": "socialiqa__mc_5shot",
         "winogrande": "winogrande__mc_5shot", "boolq": "boolq__mc_5shot",
         "hellaswag": "hellaswag__mc_5shot"}


def listed(file: str, number: int) -> str:
    text, options = LISTED[file]
    lines = "".join(f" {letter}. {option}\n" for letter, option in zip("ABCDE", options))
    return f"{text.format(n=number)}\n{lines}Answer:"


def shots(file: str, num: int = 5) -> list[str]:
    return [f"{listed(file, n)} {'ABCDE'[n % 2]}\n\n" for n in range(num)]


def cloze_shots() -> list[str]:
    """HellaSwag's; the last one's first sentence is followed by two spaces."""
    options = LISTED["hellaswag__mc_5shot"][1]
    return [f"Cooking: Ann boils {n} eggs.{' ' * (n == 4)} {options[n % 2]}\n\n" for n in range(5)]


def write(folder: Path, file: str, before: list[list[str]], question: str, name="") -> None:
    """A request file; `before` are the examples of each request."""
    path = folder / (name or f"{file}.jsonl.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"doc_id": number, "doc": {"query": question}, "request": {
        "context": "".join(examples) + question}} for number, examples in enumerate(before)]
    rows.append({"doc_id": 1_000_000, "doc": {"query": question}, "request": {
        "context": "Answer:"}})
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def write_all(folder: Path) -> Path:
    for file in LISTED:
        write(folder, file, [shots(file)] * 3, listed(file, 7))
    write(folder, "hellaswag__rc_5shot", [cloze_shots()] * 3, "Cooking: Ann boils 7 eggs.")
    return folder


@pytest.fixture
def made(tmp_path):
    """A folder of request files, and that of the file made of them."""
    write_examples(write_all(tmp_path / "requests"), tmp_path / "data" / "olmes_examples.jsonl")
    return tmp_path / "requests", tmp_path / "data"


def test_the_rows_are_those_of_the_benchmarks(made):
    rows = [json.loads(line) for line in
            (made[1] / "olmes_examples.jsonl").read_text().splitlines()]
    assert len(rows) == 45 and list(dict.fromkeys(row["benchmark"] for row in rows)) == list(ROWS)
    for name, expected in ROWS.items():
        own = [row for row in rows if row["benchmark"] == name]
        assert len(own) == 5 and own[1] == {"benchmark": name, **expected}
    assert [row["query"][-1] for row in rows[-5:]] == list(".... ")


@pytest.mark.parametrize("name", FILES)
def test_a_form_asks_with_the_examples_of_the_requests(name, made):
    row = {column: value.replace("1", "7") if isinstance(value, str) else value
           for column, value in ROWS[name].items()}
    (made[1] / f"{name}.jsonl").write_text(json.dumps(row))
    file = FILES[name]
    for num in (1, 5):
        asked, = BENCHMARKS[name](Source(made[1], "letter", num)).choices("test", 0, 0)
        assert asked.contexts == ("".join(shots(file, num)) + listed(file, 7),)
    if name == "hellaswag":
        asked, = open_hellaswag(Source(made[1], "cloze")).choices("test", 0, 0)
        assert asked.contexts == ("".join(cloze_shots()) + "Cooking: Ann boils 7 eggs.",)


def test_without_the_file_only_what_needs_it_is_refused(tmp_path):
    (tmp_path / "winogrande.jsonl").write_text(json.dumps(ROWS["winogrande"]))
    for form in ("cloze", "letter"):
        with pytest.raises(UserError) as refused:
            open_winogrande(Source(tmp_path, form))
        assert str(refused.value) == (
            f"{tmp_path}: has 0 files named olmes_examples: have one file, made with `python -m "
            "scripts.olmes_examples --requests=FOLDER --out=FOLDER/olmes_examples.jsonl`")
        assert len(open_winogrande(Source(tmp_path, form, 0)).choices("test", 0, 0)) == 1
    assert len(open_winogrande(Source(tmp_path)).choices("test", 0, 0)) == 1


@pytest.mark.parametrize("line, message", [
    ('{"benchmark": "piqa"}', "olmes_examples.jsonl: has no example of boolq: have one file"),
    ('{"question": "Q"}', "line 1: names no benchmark: have one"),
    ("{", "row 1: is damaged .*: have one"),
    ('{"benchmark": "boolq", "passage": "P", "question": "q", "label": 2}',
     "num_shots=5: no example of boolq can be used")])
def test_a_file_of_examples_that_is_none_is_refused(line, message, tmp_path):
    (tmp_path / "boolq.jsonl").write_text(json.dumps(ROWS["boolq"]))
    (tmp_path / "olmes_examples.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        open_boolq(Source(tmp_path, "letter"))


def test_the_folder_of_the_publisher_is_read_as_well(made, tmp_path):
    for path in sorted(made[0].glob("*.gz")):
        task, variant = path.name.removesuffix(".jsonl.gz").split("__")
        place = tmp_path / "published" / task / variant
        place.mkdir(parents=True)
        path.rename(place / "requests.jsonl.gz")
    (tmp_path / "published" / "arc_easy" / "test_mc_5shot" / "config.json").write_text("{}")
    out = tmp_path / "olmes_examples.jsonl"
    assert write_examples(tmp_path / "published", out) == 45
    assert out.read_text() == (made[1] / "olmes_examples.jsonl").read_text()


PIQA = shots("piqa__mc_5shot")


@pytest.mark.parametrize("before, message", [
    ([PIQA, PIQA[::-1]], r"piqa__mc_5shot.jsonl.gz, line 2: has other examples than .*line 1"),
    ([PIQA[:4]], "its requests do not begin with 5 examples"),
    ([[*PIQA, PIQA[0]]], "its requests do not begin with 5 examples"),
    ([[]], "its requests do not begin with 5 examples"),
    ([], "its requests do not begin with 5 examples"),
    ([[*PIQA[:4], "Goal: Boil eggs\nAnswer: Use ice.\n\n"]], "example 5: is none of piqa__mc"),
    ([[PIQA[0].replace("Goal", "Aim"), *PIQA[1:]]], "example 1: is none of piqa__mc_5shot"),
    ([[PIQA[0].replace(" B.", " C."), *PIQA[1:]]], "example 1: has the options A, C and"),
    ([[PIQA[0].replace("Answer: A", "Answer: C"), *PIQA[1:]]], "options A, B and the answer C"),
    ([[PIQA[0].replace("\nAns", "\n C. Wait.\nAns"), *PIQA[1:]]], "Wait., which piqa__mc_5shot"),
])
def test_requests_that_cannot_be_read_write_nothing(before, message, tmp_path):
    write_all(tmp_path)
    write(tmp_path, "piqa__mc_5shot", before, listed("piqa__mc_5shot", 7))
    refuse(tmp_path, message)


def refuse(folder: Path, message: str) -> None:
    out = folder / "out" / "olmes_examples.jsonl"
    with pytest.raises(UserError, match=message) as refused:
        write_examples(folder, out)
    assert "\n" not in str(refused.value) and not out.parent.exists()


def test_files_that_are_missing_or_no_requests_are_refused(tmp_path):
    write_all(tmp_path)
    cloze = tmp_path / "hellaswag__rc_5shot.jsonl.gz"
    write(tmp_path, "hellaswag__rc_5shot", [cloze_shots()[::-1]], "Cooking: Ann boils 7 eggs.")
    refuse(tmp_path, "hellaswag__rc_5shot.jsonl.gz, example 1: is another one")
    cloze.write_bytes(gzip.compress(b'{"doc_id": 0, "doc": {"query": "Q"}}\n'))
    refuse(tmp_path, "line 1: is no request of OLMES")
    cloze.write_bytes(gzip.compress(
        b'{"doc_id": 0, "doc": {"query": "Q"}, "request": {"context": "P"}}\n'))
    refuse(tmp_path, "line 1: its context does not end in its question")
    cloze.write_bytes(gzip.compress(b'{"doc_id": 0, \n'))
    refuse(tmp_path, "row 1: is damaged")
    cloze.unlink()
    refuse(tmp_path, "has 0 files hellaswag__rc_5shot.jsonl.gz or hellaswag/rc_5shot/requests")
    write(tmp_path, "", [], "Q", "piqa/mc_5shot/requests.jsonl")
    refuse(tmp_path, "has 2 files piqa__mc_5shot.jsonl.gz or ")


def test_the_command(made, tmp_path):
    command = [sys.executable, "-m", "scripts.olmes_examples", f"--requests={made[0]}"]
    out = tmp_path / "olmes_examples.jsonl"
    done = subprocess.run([*command, f"--out={out}"], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout) == {"examples": 45, "out": str(out)}, done.stderr
    done = subprocess.run([*command, f"--out={tmp_path / 'shots.jsonl'}"], capture_output=True,
                          text=True, cwd=ROOT)
    assert done.returncode and "write --out=FOLDER/olmes_examples.jsonl" in done.stderr
    assert not (tmp_path / "shots.jsonl").exists()
