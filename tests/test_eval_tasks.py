"""Tasks: splits are disjoint, references score 1, scores match their definitions."""

import random

import pytest

from core.errors import UserError
from data.chat import ask
from eval.tasks.documentation import NUM_CHOICES, Documentation
from eval.tasks.file import load_file_task
from eval.tasks.registry import TASKS, open_tasks
from eval.tasks.task import ChoiceTask, answer_of, question_of, split_of
from eval.tasks.verifiable import FAMILIES, Verifiable

ROWS = tuple((f"pack{p}.mod{m}.f{i}", f"pack{p}.mod{m}", f"pack{p}", f"Does thing {p} {m} {i}.")
             for p in range(20) for m in range(2) for i in range(5))

CHAT = ('{"messages": [{"role": "user", "content": "1?"}, '
        '{"role": "assistant", "content": "one"}]}')


def questions(conversations) -> set[str]:
    return {c.messages[0].content for c in conversations}


def test_verifiable_operands_of_the_test_are_unseen():
    task = Verifiable()
    train = questions(task.conversations("train", 4000, 0)) | questions(
        task.conversations("train", 4000, 1))
    test = questions(task.conversations("test", 400, 0))
    assert len(test) == 400
    assert not train & test


def test_verifiable_is_deterministic_and_seeded():
    task = Verifiable()
    assert task.conversations("train", 50, 3) == task.conversations("train", 50, 3)
    assert questions(task.conversations("train", 50, 3)) != questions(
        task.conversations("train", 50, 4))


@pytest.mark.parametrize("family,question,answer", [
    ("add", "What is 17 + 5?", "22"), ("subtract", "What is 30 - 7?", "23"),
    ("larger", "Which is larger, 99 or 310?", "310"),
    ("successor", "Which number comes after 1999?", "2000"),
    ("reverse", "Reverse: a b c", "c b a"), ("sort", "Sort: 9 0 4", "0 4 9"),
    ("last", "What is the last letter of: x y z?", "z"),
    ("count", "How many letters are here: q q q?", "3")])
def test_verifiable_answers_agree_with_an_independent_solution(family, question, answer):
    """Each family's answers, recomputed from the text of the question alone."""
    solve = {
        "add": lambda q: str(sum(map(int, q[8:-1].split(" + ")))),
        "subtract": lambda q: str(int(q[8:-1].split(" - ")[0]) - int(q[8:-1].split(" - ")[1])),
        "larger": lambda q: str(max(int(n) for n in q[17:-1].split(" or "))),
        "successor": lambda q: str(int(q[25:-1]) + 1),
        "reverse": lambda q: q.split(": ")[1][::-1],
        "sort": lambda q: " ".join(sorted(q.split(": ")[1].split())),
        "last": lambda q: q[-2],
        "count": lambda q: str(len(q.split(": ")[1][:-1].split())),
    }[family]
    assert solve(question) == answer
    rng = random.Random(0)
    for _ in range(200):
        asked, expected = FAMILIES[family](rng)
        assert solve(asked) == expected


def test_verifiable_score_is_exact_match():
    conversation = ask("What is 3 + 4?", "7", task="verifiable", family="add")
    score = Verifiable().score
    assert score(conversation, " 7\n") == 1.0
    assert score(conversation, "77") == score(conversation, "7.") == score(conversation, "") == 0.0


def test_documentation_splits_by_package():
    task = Documentation(ROWS)
    packages = {split: {c.meta["family"] for c in task.conversations(split, 10_000, 0)}
                for split in ("train", "test")}
    assert packages["train"] and packages["test"]
    assert not packages["train"] & packages["test"]
    assert packages["test"] == {p for p in packages["test"] if split_of(p, 4) == "test"}


def test_documentation_score_is_word_f1():
    conversation = ask("What does `f` do?", "Returns the sorted array.", task="documentation")
    score = Documentation(ROWS).score
    assert score(conversation, "returns THE sorted array") == 1.0
    assert score(conversation, "Returns the list.") == pytest.approx(2 * 2 / (4 + 3))
    assert score(conversation, "nothing") == 0.0
    assert score(conversation, "") == 0.0
    assert score(conversation, "the the the the") == pytest.approx(2 * 1 / 8), "no credit twice"


def test_choices_hold_the_answer_once_with_distractors_of_its_module():
    module_of = {row[3]: row[1] for row in ROWS}
    summary_of = {f"What does `{row[0]}` do?": row[3] for row in ROWS}
    choices = Documentation(ROWS).choices("test", 1000, 0)
    assert choices
    for choice in choices:
        right = choice.choices[choice.answer]
        assert right == summary_of[choice.question.messages[0].content]
        assert len(set(choice.choices)) == NUM_CHOICES
        assert {module_of[c] for c in choice.choices} == {module_of[right]}
    places = {choice.answer for choice in choices}
    assert places == set(range(NUM_CHOICES)), "the right answer has every position"


def test_question_of_drops_only_the_answer():
    conversation = ask("Why?", "Because.", task="t")
    assert answer_of(conversation) == "Because."
    assert question_of(conversation) == ask("Why?", task="t")


def test_tasks_are_opened_by_name_with_their_counts():
    opened = open_tasks({"verifiable": 7, "documentation": 0}, corpus=None)
    assert [(task.name, count) for task, count in opened] == [("verifiable", 7)]
    assert {"documentation", "verifiable"} <= set(TASKS)
    assert isinstance(Documentation(ROWS), ChoiceTask) and not isinstance(Verifiable(), ChoiceTask)


@pytest.mark.parametrize("counts, message", [
    ({"spelling": 5}, "tasks.spelling: is no task that can be asked here: choose "
     "among documentation, verifiable"),
    ({"documentation": 5}, "tasks.documentation: is drawn from a corpus, and none is given"),
], ids=str)
def test_impossible_tasks_are_refused(counts, message):
    with pytest.raises(UserError, match=message):
        open_tasks(counts, corpus=None)


def test_a_file_of_questions_is_a_task(tmp_path):
    path = tmp_path / "capitals.jsonl"
    path.write_text('{"question": "France?", "answer": "Paris"}\n'
                    '{"question": "Italy?", "answer": "Rome"}\n')
    (task, count), = open_tasks({}, None, str(path))
    assert (task.name, count) == ("capitals", 2)
    solved = task.conversations("test", 2, seed=0)
    assert questions(solved) == {"France?", "Italy?"}
    assert solved == task.conversations("train", 2, seed=0)
    assert {c.meta["task"] for c in solved} == {"capitals"}
    assert task.score(ask("France?", "Paris"), " Paris\n") == 1.0
    assert task.score(ask("France?", "Paris"), "Rome") == 0.0
    with pytest.raises(UserError, match="two tasks are called 'capitals'"):
        open_tasks({}, None, f"{path},{path}")


@pytest.mark.parametrize("lines, message", [
    (['{"question": "1?", "answer": "one"}', '{"text": "no question"}'],
     r"is not in the file's layout question \(fields: text\)"),
    (['{"question": "1?", "answer": "one"}', '"text"'], "is no JSON object"),
    (['{"question": "1?", "answer": "one"}', "{"], "is not valid JSON"),
    ([CHAT, '{"messages": [{"role": "user", "content": "hi"}]}'], "does not end with an answer"),
    ([CHAT, '{"messages": [{"role": "user", "content": 5}]}'], r"`messages\[0\]` holds int where"),
    ([CHAT, '{"question": "1?", "answer": "one"}'], "layout messages but in question"),
], ids=str)
def test_a_line_that_is_no_solved_question_is_refused_by_its_number(tmp_path, lines, message):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"mine.jsonl, line 2: .*{message}"):
        load_file_task(path)


def test_questions_of_any_layout_are_a_task(tmp_path):
    path = tmp_path / "shared.json"
    path.write_text('[{"conversations": [{"from": "human", "value": "1?"},'
                    ' {"from": "gpt", "value": "one"}]}]')
    task = load_file_task(path)
    assert (task.name, task.solved[0].messages) == ("shared", ask("1?", "one").messages)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_file_task(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="holds no row"):
        load_file_task(tmp_path / "empty.jsonl")
