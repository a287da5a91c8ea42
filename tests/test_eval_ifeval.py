"""IFEval's published file format: what is read, left out with its name, and refused."""

import json

import pytest

from core.errors import UserError
from eval.benchmarks.ifeval import open_ifeval
from eval.benchmarks.source import Source
from eval.tasks.task import AnswerTask, answer_of, question_of

ROWS = [
    {"key": 1000, "prompt": "Name a bird. No commas.",
     "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
     # As in the table on the hub, where every row has all arguments.
     "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least", "keyword": None}]},
    {"key": 1001, "prompt": "Name a fish.", "instruction_id_list": ["startend:quotation"],
     "kwargs": [{}]}]


def _open(folder, rows, **options):
    (folder / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_ifeval(Source(folder, **options))


def test_rows_become_prompts_as_they_are(tmp_path):
    task = _open(tmp_path, ROWS)
    assert isinstance(task, AnswerTask) and task.left_out == {}
    first, second = task.conversations("test", 0, 0)
    assert first.meta["prompt"] == question_of(first).messages[-1].content == ROWS[0]["prompt"]
    assert first.meta["id"] == "ifeval/1000" and answer_of(first) == ""
    assert json.dumps(first.to_dict())
    assert task.score(first, "The robin sings") == 1 and task.score(first, "A robin, yes") == 0
    grade = task.grade(first, "a, b, c")
    assert grade.measures["followed_strict"] == 1 and grade.measures["instructions"] == 2
    assert task.score(second, "") == 0
    assert len(task.conversations("test", 1, 0)) == 1


def test_a_prompt_of_an_unknown_kind_is_left_out_and_named(tmp_path, capsys):
    unknown = {**ROWS[1], "instruction_id_list": ["startend:quotation", "ratio:rhymes"],
               "kwargs": [{}, {"num_words": 3}]}
    task = _open(tmp_path, [*ROWS, unknown, unknown])
    assert len(task.prompts) == 2 and task.left_out == {"ratio:rhymes": 2}
    assert "2 of 4 prompts" in (said := capsys.readouterr().err) and "ratio:rhymes (2)" in said
    with pytest.raises(UserError, match="no prompt has instructions of known kinds alone"):
        _open(tmp_path, [unknown])


@pytest.mark.parametrize("change, fault", [
    ({"prompt": " "}, "needs key, prompt"), ({"instruction_id_list": []}, "needs key"),
    ({"kwargs": []}, "lists of one length"), ({"kwargs": [3]}, "lists of one length"),
    ({"instruction_id_list": [3]}, "needs key"),
    ({"kwargs": [{"num_words": 3}]}, "startend:quotation needs no arguments")])
def test_a_damaged_row_is_refused_with_its_place(tmp_path, change, fault):
    with pytest.raises(UserError, match=rf"input_data\.jsonl, row 2: .*{fault}"):
        _open(tmp_path, [ROWS[0], {**ROWS[1], **change}])


def test_it_has_one_form_without_examples(tmp_path):
    for options in ({"form": "cot"}, {"num_shots": 5}):
        with pytest.raises(UserError, match="one form, without examples"):
            _open(tmp_path, ROWS, **options)
    assert _open(tmp_path, ROWS, num_shots=0).prompts
