"""Short answers: prompts, comparisons, real files; and a task of one's own in sixty lines."""

import json
import os
from pathlib import Path

import pytest
from own_answer_task import open_dates

from core.errors import UserError
from eval.benchmarks.qa import DEFINITIONS, open_jeopardy, open_short_answers, open_triviaqa
from eval.benchmarks.source import Source
from eval.tasks.task import AnswerTask, answer_of

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))

SIZES = {"triviaqa": 3000, "jeopardy": 2117, "bigbench_qa_wikidata": 20321,
         "bigbench_cs_algorithms": 1320, "bigbench_dyck_languages": 1000,
         "bigbench_operators": 210, "bigbench_repeat_copy_logic": 32}


def _write(folder: Path, name: str, rows: list[dict]) -> Path:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def trivia(tmp_path) -> Path:
    return _write(tmp_path, "triviaqa_sm_sub", [
        {"context": f"Question: Who is {n}?\nAnswer:", "answer": f"Иван {n}",
         "aliases": [f"Ivan {n}", f"Иван {n}"]} for n in range(5)])


def test_a_prompt_has_the_shots_of_the_file_and_no_space_at_its_end(trivia):
    task = open_triviaqa(Source(trivia, num_shots=1))
    assert isinstance(task, AnswerTask) and task.stops == ("\n",)
    prompts = [c.meta["prompt"] for c in task.conversations("test", 2, 0)]
    assert prompts == ["Question: Who is 1?\nAnswer: Иван 1\nQuestion: Who is 0?\nAnswer:",
                       "Question: Who is 0?\nAnswer: Иван 0\nQuestion: Who is 1?\nAnswer:"]


def test_an_answer_may_be_any_of_the_references(trivia):
    task = open_triviaqa(Source(trivia))
    [first] = task.conversations("test", 1, 0)
    assert {text: task.score(first, text) for text in (
        " Иван 0", "«ИВАН  0».", " ivan 0", "Иван", "Ivan 1", "", " ")} == {
        " Иван 0": 1, "«ИВАН  0».": 1, " ivan 0": 1, "Иван": 0, "Ivan 1": 0, "": 0, " ": 0}
    grade = task.grade(first, " Иван!")
    assert grade.extracted == "Иван!"
    assert grade.measures == {"exact": 0, "normalised": 0, "squad": 0, "f1": pytest.approx(2 / 3),
                              "unparsed": 0}
    empty = task.grade(first, "\n")
    assert empty.extracted is None and empty.measures["unparsed"] == 1


def test_the_group_is_the_category(tmp_path):
    _write(tmp_path, "jeopardy_all", [{"context": f"LAKES: {n}", "continuation": f" {n} ",
                                       "category": "lakes"} for n in range(3)])
    [first, *_] = open_jeopardy(Source(tmp_path, num_shots=2)).conversations("test", 0, 0)
    assert first.meta["group"] == first.meta["family"] == "lakes"
    assert first.meta["prompt"] == "LAKES: 1\nAnswer: 1\nLAKES: 2\nAnswer: 2\nLAKES: 0\nAnswer:"


def test_signs_and_their_order_are_an_answer(tmp_path):
    _write(tmp_path, "bigbench_dyck_languages",
           [{"context": "Input: < [", "continuation": "] >"}])
    task = open_short_answers("bigbench_dyck_languages", Source(tmp_path, num_shots=0))
    [one] = task.conversations("test", 0, 0)
    assert [task.score(one, text) for text in (" ] >", " } >", " > ]", " ] > >")] == [1, 0, 0, 0]


@pytest.mark.parametrize("row, fault", [
    ({"context": "Q"}, "row 2: lacks a context or an answer"),
    ({"context": " ", "answer": "x"}, "row 2: lacks"), ({"answer": "x"}, "row 2: lacks"),
    ({"context": "Q", "answer": " "}, "row 2: lacks"),
    ({"context": "Q", "answer": "x", "aliases": [3]}, "row 2: lacks")])
def test_a_row_without_answer_is_refused(tmp_path, row, fault):
    _write(tmp_path, "triviaqa_sm_sub", [{"context": "Q", "answer": "x"}, row])
    with pytest.raises(UserError, match=fault):
        open_triviaqa(Source(tmp_path))


def test_an_unknown_task_or_form_is_refused(trivia):
    with pytest.raises(UserError, match="squad: is none of triviaqa"):
        open_short_answers("squad", Source(trivia))
    with pytest.raises(UserError, match="form='cot': triviaqa has one form only"):
        open_triviaqa(Source(trivia, form="cot"))


@pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
@pytest.mark.parametrize("name", DEFINITIONS)
def test_on_the_real_files_references_score_1_and_other_answers_do_not(name):
    task = open_short_answers(name, Source(DATASETS / "icl_tasks", examples="seeded"))
    solved = task.conversations("test", 0, 0)
    assert len(solved) == SIZES[name] == len({c.meta["id"] for c in solved})
    for c in solved[::10]:
        assert task.score(c, f" {answer_of(c)}") == 1
        assert task.score(c, f"{answer_of(c)} x") == 0
        assert "\n" not in answer_of(c) and not c.meta["prompt"].endswith(" ")
        assert c.meta["prompt"].count(c.messages[0].content) == 1


def test_a_task_of_ones_own_takes_sixty_lines(tmp_path):
    """`own_answer_task.py`, whole."""
    assert len((Path(__file__).parent / "own_answer_task.py").read_text().splitlines()) <= 60
    _write(tmp_path, "letters", [{"letter": f"Dear Ann, on {n} May we met.", "date": f"May {n}"}
                                 for n in (3, 14, 15)])
    task = open_dates(Source(tmp_path, num_shots=2))
    assert isinstance(task, AnswerTask)
    first, *_ = task.conversations("test", 0, 0)
    assert first.meta["prompt"].endswith("Date: May 15\n\nDear Ann, on 3 May we met.\nDate:")
    assert task.score(first, " 3rd of May") == 1 and task.score(first, "May 4") == 0
    assert task.grade(first, "soon").extracted is None
