"""Task files of lm-evaluation-harness: what they ask, and what of them is refused."""

import json
from pathlib import Path

import pytest

from core.errors import UserError
from eval.benchmarks.registry import definition
from eval.benchmarks.source import Source
from eval.benchmarks.yaml_task import open_yaml
from eval.tasks.task import AnswerTask, ChoiceTask

pytest.importorskip("yaml")
pytest.importorskip("jinja2")

ROWS = [{"q": f"What is {n}?", "options": [f"a{n}", f"b{n}"], "gold": n % 2, "n": str(n)}
        for n in range(6)]
CHOICES = """\
task: mine
dataset_path: json
dataset_kwargs:
  data_files: {test: rows.jsonl}
test_split: test
output_type: multiple_choice
description: "Answer.\\n\\n"
doc_to_text: "Q: {{q}}\\nA:"
doc_to_choice: options
doc_to_target: gold
"""
ANSWERS = """\
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: q
doc_to_target: "{{n}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, do_sample: false}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "= (\\\\d+)"}, {function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: "(\\\\d+)", group_select: -1}]}
metric_list: [{metric: exact_match, ignore_case: true}]
"""


def write(folder: Path, text: str, rows=ROWS) -> Source:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "task.yaml").write_text(text)
    return Source(folder / "task.yaml")


def test_a_file_of_multiple_choice(tmp_path):
    task = open_yaml(write(tmp_path, CHOICES))
    assert isinstance(task, ChoiceTask) and task.name == "mine"
    asked = task.choices("test", 2, 0)
    assert asked[1].contexts == ("Answer.\n\nQ: What is 1?\nA:",)
    assert (asked[1].choices, asked[1].answer) == ((" a1", " b1"), 1)
    assert asked[1].question.meta == {"task": "mine", "family": "mine", "id": "mine/1"}


def test_examples_of_a_task_file_never_hold_the_item(tmp_path):
    source = write(tmp_path, CHOICES + "num_fewshot: 5\n")
    for n, choice in enumerate(open_yaml(source).choices("test", 0, 0)):
        shots = choice.contexts[0].removeprefix("Answer.\n\n").split("\n\n")[:-1]
        assert len(shots) == 5 and not any(f"What is {n}?" in shot for shot in shots)
    first = write(tmp_path, CHOICES + "num_fewshot: 2\nfewshot_config: {sampler: first_n}\n")
    assert open_yaml(first).choices("test", 0, 0)[0].contexts == (
        "Answer.\n\nQ: What is 1?\nA: b1\n\nQ: What is 2?\nA: a2\n\nQ: What is 0?\nA:",)
    with pytest.raises(UserError, match="num_shots=6: mine has only 5 examples"):
        open_yaml(Source(source.folder, num_shots=6)).choices("test", 0, 0)


def test_options_may_be_contexts_of_one_continuation(tmp_path):
    text = CHOICES.replace('"Q: {{q}}\\nA:"', "gold").replace("doc_to_target: gold",
                                                             'doc_to_target: "is {{n}}"')
    choice = open_yaml(write(tmp_path, text)).choices("test", 1, 0)[0]
    assert choice.contexts == ("Answer.\n\na0", "Answer.\n\nb0")
    assert (choice.choices, choice.answer) == ((" is 0", " is 0"), 0)


def test_a_file_of_generated_answers(tmp_path):
    task = open_yaml(write(tmp_path, ANSWERS))
    assert isinstance(task, AnswerTask)
    assert (task.stops, task.max_new_tokens) == (("\n",), 12)
    asked = task.conversations("test", 0, 0)[3]
    assert asked.meta["prompt"] == "What is 3?" and asked.messages[-1].content == "3"
    grade = task.grade(asked, " 1 + 2 = 3, not 4")
    assert (grade.score, grade.extracted, grade.measures) == (1.0, "3", {"strict": 1, "last": 0})
    assert task.grade(asked, "three").extracted is None
    assert task.score(asked, "three") == 0.0


def test_a_last_word_is_asked_by_loglikelihood(tmp_path):
    text = CHOICES.replace("multiple_choice", "loglikelihood").replace(
        "doc_to_choice: options\n", "").replace("doc_to_target: gold", 'doc_to_target: " {{n}}"')
    choice = open_yaml(write(tmp_path, text)).choices("test", 1, 0)[0]
    assert (choice.contexts, choice.choices) == (("Answer.\n\nQ: What is 0?\nA:",), (" 0",))


def test_files_are_included_and_own_fields_count(tmp_path):
    (tmp_path / "base.yaml").write_text(CHOICES)
    task = open_yaml(write(tmp_path, "include: base.yaml\ntask: other\ndescription: ''\n"))
    assert task.name == "other"
    assert task.choices("test", 1, 0)[0].contexts == ("Q: What is 0?\nA:",)


def test_definitions_of_task_files(tmp_path):
    first = definition(open_yaml(write(tmp_path, CHOICES)))
    assert first == definition(open_yaml(write(tmp_path, CHOICES)))
    assert first != definition(open_yaml(write(tmp_path, CHOICES.replace("Answer.", "Say."))))
    stop = definition(open_yaml(write(tmp_path, ANSWERS)))
    assert stop != definition(open_yaml(write(tmp_path, ANSWERS.replace("toks: 12", "toks: 13"))))


def test_a_gold_that_is_no_option_is_left_out(tmp_path, capfd):
    rows = [ROWS[0] | {"gold": 7}, ROWS[1] | {"options": ["", "b"]}, ROWS[2]]
    asked = open_yaml(write(tmp_path, CHOICES, rows)).choices("test", 0, 0)
    assert [choice.question.meta["id"] for choice in asked] == ["mine/2"]
    logged = capfd.readouterr().err
    assert "mine: left out: 1 rows (gold_out_of_range)" in logged and "empty_choice" in logged


@pytest.mark.parametrize("change, message", [
    (("gold\n", "!function utils.gold\n"), r"line 10: calls !function utils.gold, and no code"),
    (("json", "allenai/ai2_arc"), "reads the dataset 'allenai/ai2_arc' of a hub"),
    (("rows.jsonl", "none.jsonl"), "names the file none.jsonl, which does not exist"),
    (("{test: rows", "{dev: rows"), "names no files of its split test"),
    (("multiple_choice", "loglikelihood_rolling"),
     "asks for the output type 'loglikelihood_rolling'"),
    (("doc_to_choice: options\n", ""), "lacks doc_to_choice"),
    (("doc_to_target: gold\n", ""), "lacks doc_to_target"),
    (("task: mine", "process_docs: x"), "has the field process_docs, which is not supported"),
    (("task: mine", "task: [mine"), "is no YAML"),
    (("{{q}}", "{{q"), "has a template that is no Jinja"),
    (("{{q}}", "{{nothing}}"), "its template .* fails on a row .*'nothing' is undefined"),
    (("{{q}}", "{{''.__class__.__mro__}}"), "its template .* fails on a row .*unsafe"),
    (("task: mine", "fewshot_config: {sampler: best}"), "asks for the sampler 'best'"),
    (("task: mine", "metric_list: [{metric: bleu}]"), "asks for the metric 'bleu'"),
    (("task: mine", "generation_kwargs: {do_sample: true}"), "samples its answers"),
    (("task: mine", "include: task.yaml"), "includes itself"),
    (("doc_to_choice: options", "doc_to_choice: '{{n}}'"), "which is no list of texts"),
], ids=str)
def test_what_a_task_file_may_not_do_is_refused(change, message, tmp_path):
    assert change[0] in CHOICES
    source = write(tmp_path, CHOICES.replace(*change))
    with pytest.raises(UserError, match=message):
        open_yaml(source).choices("test", 0, 0)
