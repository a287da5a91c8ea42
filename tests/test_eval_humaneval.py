"""HumanEval: published figures, what counts as an answer's program, and pass@k."""

import dataclasses
import json
import math
import os
import random
from itertools import combinations
from pathlib import Path

import pytest

from core.errors import UserError
from eval.benchmarks.humaneval import STOPS, HumanEval, cut, extract_program, open_humaneval
from eval.benchmarks.source import Source
from eval.measures.pass_at_k import mean_pass_at_k, pass_at_k
from eval.sandbox.confine import Limits
from eval.tasks.task import AnswerTask, Grade

STUB = ('from math import pi\n\n\ndef helper(x):\n    return x + 1\n\n\n'
        'def double(x):\n    """ Twice x """\n')
ROW = {"task_id": "T/0", "prompt": STUB, "entry_point": "double",
       "canonical_solution": "    return 2 * x\n",
       "test": "def check(candidate):\n    assert candidate(4) == 8\n"
               "    assert candidate(helper(1)) == 4\n    assert double(1) == 2\n"}


def folder() -> Path:
    if not os.environ.get("HEARTWOOD_DATASETS"):
        pytest.skip("set HEARTWOOD_DATASETS to a folder of benchmark files")
    return Path(os.environ["HEARTWOOD_DATASETS"]) / "humaneval"


@pytest.fixture
def task(tmp_path) -> HumanEval:
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(ROW) + "\n")
    return open_humaneval(Source(tmp_path))


def test_all_canonical_solutions_pass_and_no_wrong_ones():
    task = open_humaneval(Source(folder()))
    problems = task.conversations("test", 0, 0)
    assert len(problems) == 164 and problems[7].meta["id"] == "HumanEval/7"
    grades = task.grade_all([(each, each.messages[-1].content) for each in problems])
    assert [each.meta["id"] for each, grade in zip(problems, grades)
            if (grade.score, grade.measures["literal"]) != (1.0, 1.0)] == []
    grades = task.grade_all([(each, "    return None\n") for each in problems[:40]])
    assert sum(grade.score for grade in grades) == 0


def test_the_example_file_has_its_published_score():
    """README of openai/human-eval: pass@1 = 0.4999999999999999."""
    row, = map(json.loads, (folder() / "example_problem.jsonl").read_text().splitlines())
    samples = [json.loads(line)["completion"]
               for line in (folder() / "example_samples.jsonl").read_text().splitlines()]
    task = HumanEval((row,), limits=Limits(wall_secs=2.0))
    problem, = task.conversations("test", 0, 0)
    grades = task.grade_all([(problem, sample) for sample in samples])
    assert [grade.score for grade in grades] == [0, 0, 0, 1, 1, 1]
    assert grades[1].measures["timeout"] == 1       # it sleeps
    passed = sum(grade.score for grade in grades)
    assert mean_pass_at_k([(len(samples), int(passed))], 1) == pytest.approx(0.5, abs=1e-12)


def test_prompts_are_literal(task):
    assert isinstance(task, AnswerTask)
    problem, = task.conversations("test", 5, 0)
    assert problem.meta["prompt"] == problem.messages[0].content == STUB
    assert task.stops == STOPS
    chat = dataclasses.replace(task, form="chat")
    problem, = chat.conversations("test", 0, 0)
    assert problem.meta["prompt"].endswith(STUB) and problem.meta["prompt"].startswith("Read the")
    assert chat.stops == () and chat.score(problem, "    return x + x") == 1
    assert len(open_humaneval(Source(folder())).conversations("test", 3, 0)) == 3


ANSWERS = {
    "body": "    return 2 * x\n",
    "stop": "    return 2 * x\n\nprint(double(1))\nassert False",
    "next_function": "    return 2 * x\n\ndef double(x):\n    return 0\n",
    "fence_after_body": "    return 2 * x\n```\nThis function doubles.",
    "fenced_body": "```python\n    return 2 * x\n```",
    "fenced_body_without_indentation": "```python\ny = x\nif y:\n    pass\nreturn y + x\n```",
    "fenced_function": "Here it is:\n```python\ndef double(x):\n    return 2 * x\n```\nIt doubles.",
    "fence_of_the_function_among_others": "```sh\npip install\n```\n```py\ndef double(x):\n"
                                          "    return x + x\n```",
    "open_fence": "```python\ndef double(x):\n    return 2 * x\n",
    "fence_with_imports": "```\nimport math\n\ndef double(x):\n    return math.floor(2 * x)\n```",
    "indented_fence": "  ```python\n  def double(x):\n      return 2 * x\n  ```",
    "repeated_signature": "def double(x: int) -> int:\n    return 2 * x\n",
    "repeated_with_helper": "def other(x):\n    return x\n\n"
                            "def double(x):\n    return other(x) * 2\n",
    "first_line_lost_its_indentation": "y = x\n    if y:\n        y = y + x\n    return y or 0",
    "all_lost_their_indentation": "y = x\nreturn y + x",
    "prompts_helper": "    return helper(x) + x - 1",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_become_programs(task, name):
    problem, = task.conversations("test", 0, 0)
    grade = task.grade(problem, ANSWERS[name])
    assert grade.score == 1, grade.extracted
    literal = name in ("body", "stop", "next_function", "prompts_helper")
    assert literal <= bool(grade.measures["literal"])


def test_answers_that_are_right_as_they_are_stay_as_they_are():
    for answer in ("    return 1\n", "\n    x = 1\n    return x\n\n\n", "\treturn 1"):
        assert extract_program(STUB, "double", answer) == STUB + answer
    assert cut("a\nprint(1)\n#") == "a" and cut("if a:") == "if a:"


def test_literal_scores_need_no_repair_to_be_zero(task):
    problem, = task.conversations("test", 0, 0)
    grade = task.grade(problem, "```python\nreturn 2 * x\n```")
    assert (grade.score, grade.measures["literal"]) == (1, 0)


def test_wrong_answers_are_wrong(task):
    problem, = task.conversations("test", 0, 0)
    assert task.score(problem, "    return x") == 0
    assert task.score(problem, "I cannot do that.") == 0
    assert task.grade(problem, " \n").extracted is None
    assert task.grade(problem, "    while True: x = 'a' * 10**12").measures["memory"] == 1
    assert task.grade(problem, "    open('/etc/shadow')").measures["timeout"] == 0
    assert isinstance(task.grade(problem, "```"), Grade)


def test_bad_input_is_named(tmp_path, task):
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(ROW | {"test": 1}) + "\n")
    with pytest.raises(UserError, match="HumanEval, row 1: has no text test"):
        open_humaneval(Source(tmp_path))
    for source in (Source(tmp_path, form="letter"), Source(tmp_path, num_shots=3)):
        with pytest.raises(UserError, match=r"form='letter'|num_shots=3"):
            open_humaneval(source)
    with pytest.raises(UserError, match="split='train'"):
        task.conversations("train", 1, 0)


def test_pass_at_k_is_unbiased():
    """Against all ways to choose k of n samples."""
    for n, c, k in ((5, 2, 1), (6, 3, 2), (7, 1, 4), (4, 4, 2), (5, 0, 3), (5, 3, 3)):
        right = [True] * c + [False] * (n - c)
        chosen = [any(each) for each in combinations(right, k)]
        assert pass_at_k(n, c, k) == pytest.approx(sum(chosen) / len(chosen), abs=1e-12)
    assert pass_at_k(10, 10, 10) == 1.0 and pass_at_k(2000, 1, 1000) == pytest.approx(0.5)
    rng = random.Random(0)
    counts = [(20, sum(rng.random() < 0.3 for _ in range(20))) for _ in range(3000)]
    assert mean_pass_at_k(counts, 5) == pytest.approx(1 - 0.7 ** 5, abs=0.01)


def test_pass_at_k_of_too_few_samples_is_refused():
    with pytest.raises(UserError, match="from 3 samples"):
        pass_at_k(3, 1, 4)
    with pytest.raises(UserError):
        mean_pass_at_k([(5, 1), (3, 3)], 4)
    with pytest.raises(UserError, match="no problem"):
        mean_pass_at_k([], 1)
    with pytest.raises(UserError):
        pass_at_k(3, 1, 0)
    with pytest.raises(ValueError):
        pass_at_k(3, 4, 1)
    assert not math.isnan(pass_at_k(4, 0, 4))
