"""Multiple-choice benchmarks and task files: examples, definitions, and what is left out."""

import json
import os
import re
from pathlib import Path

import pytest

from core.errors import UserError
from eval.benchmarks.commonsense import open_copa, open_hellaswag, open_winogrande
from eval.benchmarks.mmlu import open_mmlu
from eval.benchmarks.reading import open_boolq, open_lambada_openai
from eval.benchmarks.registry import BENCHMARKS, definition
from eval.benchmarks.science import open_arc_easy, open_openbookqa
from eval.benchmarks.sciq import open_sciq
from eval.benchmarks.source import Source
from eval.benchmarks.truthfulqa import open_truthfulqa_mc1, open_truthfulqa_mc2
from eval.tasks.task import ChoiceTask

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
ARC = [{"query": f"Question: What is {n}?", "choices": [f"{n} {letter}" for letter in "abc"],
        "gold": n % 3} for n in range(12)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def mmlu_files(folder: Path, dev_subjects=("law", "art")) -> Path:
    write(folder / "mmlu_test.jsonl", [
        {"subject": subject, "question": f" Q{n} of {subject}?", "choices": list("wxyz"),
         "answer": n % 4} for subject in ("law", "art") for n in range(3)])
    write(folder / "mmlu_dev.jsonl", [
        {"subject": subject, "question": f"D{n} of {subject}?", "choices": list("wxyz"),
         "answer": n % 4} for subject in dev_subjects for n in range(6)])
    return folder


def shots_of(choice, between="\n\n") -> list[str]:
    return choice.contexts[0].split(between)[:-1]


def test_forms_of_mmlu_word_for_word(tmp_path):
    folder = mmlu_files(tmp_path)
    first = {form: open_mmlu(Source(folder, form, 1)).choices("test", 1, 0)[0]
             for form in open_mmlu.forms}
    about = "The following are multiple choice questions (with answers) about"
    listed = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert first["original"].contexts == (
        f"{about}  law.\n\nD0 of law?{listed} A\n\n Q0 of law?{listed}",)
    assert first["harness"].contexts == (
        f"{about} law.\n\nD0 of law?{listed} A\n\nQ0 of law?{listed}",)
    assert first["helm"].contexts == (
        f"{about} law.\n\nQuestion: D0 of law?{listed} A\n\nQuestion:  Q0 of law?{listed}",)
    assert first["continuation"].contexts == (
        "The following are questions (with answers) about law.\n\n"
        "Question: D0 of law?\nAnswer: w\n\nQuestion: Q0 of law?\nAnswer:",)
    assert first["letter"].contexts == (
        f"{about} law.\n\nQuestion: D0 of law?\n A. w\n B. x\n C. y\n D. z\nAnswer: A\n\n"
        "Question: Q0 of law?\n A. w\n B. x\n C. y\n D. z\nAnswer:",)
    assert first["helm"].choices == (" A", " B", " C", " D")
    assert first["continuation"].choices == first["cloze"].choices == (" w", " x", " y", " z")
    assert first["harness"].question.meta == {
        "task": "mmlu", "family": "law", "id": "mmlu/0", "group": "law"}


def test_examples_of_mmlu_are_of_the_subject_and_five(tmp_path):
    for choice in open_mmlu(Source(mmlu_files(tmp_path))).choices("test", 0, 0):
        shots = re.findall(r"D(\d) of (\w+)\?", choice.contexts[0])
        assert shots == [(str(n), choice.question.meta["group"]) for n in range(5)]


def test_a_subject_without_examples_is_refused_by_name(tmp_path):
    task = open_mmlu(Source(mmlu_files(tmp_path, dev_subjects=("law",))))
    with pytest.raises(UserError, match="num_shots=5: mmlu has only 0 examples of art"):
        task.choices("test", 0, 0)
    assert len(task.choices("test", 3, 0)) == 3


@pytest.mark.parametrize("form, examples", [
    ("harness", "first"), ("harness", "seeded"), ("core", "first")])
def test_examples_never_hold_the_item(form, examples, tmp_path):
    write(tmp_path / "arc_easy.jsonl", ARC)
    asked = open_arc_easy(Source(tmp_path, form, 11, examples)).choices("test", 0, 0)
    for n, choice in enumerate(asked):
        shots = re.findall(r"What is (\d+)\?\nAnswer: \1 (.)", choice.contexts[0])
        assert sorted(int(number) for number, _ in shots) == [m for m in range(12) if m != n]
        assert all(letter == "abc"[int(number) % 3] for number, letter in shots)
    with pytest.raises(UserError, match="num_shots=12: arc_easy has only 11 examples"):
        open_arc_easy(Source(tmp_path, form, 12, examples)).choices("test", 0, 0)


def test_a_twin_of_the_item_is_no_example(tmp_path):
    write(tmp_path / "arc_easy.jsonl", [ARC[0], ARC[1], ARC[0], ARC[2]])
    for examples in ("first", "seeded"):
        asked = open_arc_easy(Source(tmp_path, num_shots=2, examples=examples)).choices("", 0, 0)
        assert not any("What is 0?" in shot for shot in shots_of(asked[0]) + shots_of(asked[2]))


def test_seeded_examples_differ_by_item_and_not_by_how_many_are_asked(tmp_path):
    write(tmp_path / "arc_easy.jsonl", ARC)
    source = Source(tmp_path, num_shots=3, examples="seeded")
    asked = open_arc_easy(source).choices("test", 0, 0)
    assert open_arc_easy(source).choices("test", 4, 9) == asked[:4]
    assert len({tuple(shots_of(choice)) for choice in asked}) > 6
    other = Source(tmp_path, num_shots=3, examples="seeded", seed=1)
    assert open_arc_easy(other).choices("test", 0, 0) != asked


def test_partial_evaluation_has_a_context_for_each_option(tmp_path):
    write(tmp_path / "winogrande.jsonl", [{
        "sentence": "The cup fell off the table because the _ was tilted.", "option1": "cup",
        "option2": "table", "answer": "2"}])
    choice, = open_winogrande(Source(tmp_path)).choices("test", 0, 0)
    assert choice.contexts == ("The cup fell off the table because the cup",
                               "The cup fell off the table because the table")
    assert choice.choices == (" was tilted.",) * 2 and choice.answer == 1


def test_a_last_word_is_one_option(tmp_path):
    write(tmp_path / "lambada_openai.jsonl", [{"text": "He cared about signs"}])
    choice, = open_lambada_openai(Source(tmp_path)).choices("test", 0, 0)
    assert (choice.contexts, choice.choices) == (("He cared about",), (" signs",))


def test_copa_is_connected_and_hellaswag_cleaned(tmp_path):
    write(tmp_path / "copa.jsonl", [{"premise": "It fell. ", "choice1": "It broke.",
                                     "choice2": "It flew.", "question": "effect", "label": 0}])
    choice, = open_copa(Source(tmp_path, "cloze")).choices("test", 0, 0)
    assert choice.contexts + choice.choices == ("It fell therefore", " it broke.", " it flew.")
    write(tmp_path / "hellaswag.jsonl", [{
        "activity_label": "Home", "ctx_a": "[header] How to paint [title] Clean it. [step] Wait.",
        "ctx_b": "THE wall", "endings": ["[step] dries.", "is  wet."], "label": "1"}])
    choice, = open_hellaswag(Source(tmp_path)).choices("test", 0, 0)
    assert choice.contexts == ("Home: How to paint. Clean it. Wait. The wall",)
    assert choice.choices == ("  dries.", " is wet.") and choice.answer == 1


def test_truthfulqa_has_one_best_answer_or_all_true_ones(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text(
        "Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "Why?,Best,Best; Good,Bad; Worse\n")
    best, = open_truthfulqa_mc1(Source(tmp_path)).choices("test", 0, 0)
    assert (best.choices, best.answers) == ((" Best", " Bad", " Worse"), ())
    every, = open_truthfulqa_mc2(Source(tmp_path)).choices("test", 0, 0)
    assert (every.choices, every.answers) == ((" Best", " Good", " Bad", " Worse"), (0, 1))
    assert best.contexts[0].count("\nA: ") == 6 and best.contexts[0].endswith("\n\nQ: Why?\nA:")


def test_what_no_score_may_count_is_left_out_by_reason(tmp_path, capfd):
    rows = [ARC[0] | {"gold": 3}, ARC[1] | {"gold": -1}, ARC[2] | {"choices": ["a", " ", "c"]},
            ARC[3] | {"choices": ["a", "a", "c"]}, ARC[4]]
    write(tmp_path / "arc_easy.jsonl", rows)
    task = open_arc_easy(Source(tmp_path))
    assert [c.question.meta["id"] for c in task.choices("test", 0, 0)] == [
        "arc_easy/3", "arc_easy/4"]
    assert task.left_out == {"gold_out_of_range": 2, "empty_choice": 1}
    assert task.noted == {"equal_choices": 1}
    logged = capfd.readouterr().err
    assert "arc_easy: left out: 2 rows (gold_out_of_range), the first" in logged
    assert "arc_easy.jsonl, line 1" in logged
    write(tmp_path / "arc_easy.jsonl", rows[:1])
    with pytest.raises(UserError, match=r"arc_easy\.jsonl: holds no question of arc_easy"):
        open_arc_easy(Source(tmp_path))


@pytest.mark.parametrize("row, message", [
    ({"question": "Q?"}, r"line 2: has the fields question, which are no layout of arc_easy"),
    (ARC[0] | {"gold": "x"}, r"line 2: is no question of arc_easy \(ValueError"),
    (ARC[0] | {"gold": True}, r"line 2: is no question of arc_easy \(TypeError: True is no index"),
    (ARC[0] | {"choices": "abc"}, "line 2: .* where a list of texts should be"),
    (ARC[0] | {"choices": ["a", 1]}, "line 2: .* a int where a text should be"),
    (ARC[0] | {"query": None}, "line 2: is no question of arc_easy"),
], ids=str)
def test_a_row_that_is_no_question_ends_the_run_by_its_line(row, message, tmp_path):
    write(tmp_path / "arc_easy.jsonl", [ARC[0], row])
    with pytest.raises(UserError, match=message):
        open_arc_easy(Source(tmp_path))


@pytest.mark.parametrize("source, message", [
    ({"form": "chat"}, "form='chat': is no form of openbookqa: choose among harness, cloze"),
    ({"examples": "best"}, "examples='best': is none of first, seeded"),
    ({"form": "cloze", "num_shots": 6}, "openbookqa has only 5 examples besides"),
    ({"form": "core"}, "has not what the form core of openbookqa is made of .query.")], ids=str)
def test_impossible_settings_are_refused(source, message, tmp_path):
    row = {"question_stem": "Q", "answerKey": "A",
           "choices": {"text": ["a", "b"], "label": ["A", "B"]}}
    write(tmp_path / "openbookqa.jsonl", [row])
    write(tmp_path / "olmes_examples.jsonl", [
        row | {"benchmark": "openbookqa", "question_stem": f"Q{n}"} for n in range(5)])
    with pytest.raises(UserError, match=message):
        open_openbookqa(Source(tmp_path, **source)).choices("test", 0, 0)


def test_a_definition_changes_with_what_decides_the_prompts(tmp_path):
    write(tmp_path / "arc_easy.jsonl", ARC)

    def defined(**settings):
        return definition(open_arc_easy(Source(tmp_path, **settings)))

    hashes = [defined(), defined(form="core"), defined(num_shots=2),
              defined(num_shots=2, examples="seeded"), defined(num_shots=2, seed=2,
                                                               examples="seeded")]
    assert len(set(hashes)) == 5 and hashes[0] == defined()
    write(tmp_path / "arc_easy.jsonl", [*ARC[:-1], ARC[-1] | {"gold": 0}])
    assert defined() != hashes[0]


def test_a_benchmark_is_one_small_file(tmp_path):
    write(tmp_path / "sciq.jsonl", [{
        "question": "Who?", "support": "", "distractor1": "a", "distractor2": "b",
        "distractor3": "c", "correct_answer": "d"}])
    harness, cloze = (open_sciq(Source(tmp_path, form)).choices("test", 0, 0)[0]
                      for form in ("harness", "cloze"))
    assert harness.contexts == ("\nQuestion: Who?\nAnswer:",)
    assert cloze.contexts == ("Question: Who?\nAnswer:",) and cloze.answer == 3
    from eval.benchmarks import sciq
    assert Path(sciq.__file__).read_text().count("\n") <= 60


def test_boolq_reads_both_datasets(tmp_path):
    texts = {"passage": "Salt is salty.", "question": "is salt salty"}
    for row in ({**texts, "label": 1}, {**texts, "answer": True, "title": "Salt"},
                {"query": "Passage: Salt is salty.\nQuestion: is salt salty?",
                 "choices": ["no", "yes"], "gold": 1}):
        write(tmp_path / "boolq.jsonl", [row])
        choice, = open_boolq(Source(tmp_path)).choices("test", 0, 0)
        assert choice.contexts == ("Salt is salty.\nQuestion: is salt salty?\nAnswer:",)
        assert (choice.choices, choice.answer) == ((" no", " yes"), 1)
        letter, = open_boolq(Source(tmp_path, "letter", 0)).choices("test", 0, 0)
        assert letter.contexts[0].endswith("\n A. yes\n B. no\nAnswer:") and letter.answer == 0


@pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
@pytest.mark.parametrize("name, form, folder, num", [
    ("arc_easy", "harness", "icl_tasks", 2376), ("arc_challenge", "core", "icl_tasks", 1172),
    ("piqa", "harness", "icl_tasks", 1838), ("winogrande", "harness", "icl_tasks", 1267),
    ("wsc273", "harness", "icl_tasks", 273), ("boolq", "harness", "icl_tasks", 3270),
    ("copa", "harness", "icl_tasks", 100), ("openbookqa", "harness", "icl_tasks", 500),
    ("commonsense_qa", "core", "icl_tasks", 1221), ("siqa", "core", "icl_tasks", 1954),
    ("lambada_openai", "harness", "icl_tasks", 5153), ("agieval_lsat_ar", "core", "icl_tasks", 230),
    ("bigbench_operators", "core", "icl_tasks", 210), ("hellaswag", "harness", "hellaswag", 1000),
    ("truthfulqa_mc2", "harness", "truthfulqa", 817), ("mmlu", "harness", "mmlu", 14042)])
def test_real_files_are_read_whole(name, form, folder, num):
    task = BENCHMARKS[name](Source(Path(DATASETS, folder), form))
    assert isinstance(task, ChoiceTask) and not task.left_out
    assert len(task.choices("test", 0, 0)) == num
