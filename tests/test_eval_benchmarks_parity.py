"""Prompts next to lm-evaluation-harness' own task code, on the same rows: byte for byte."""

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest

from eval.benchmarks.registry import BENCHMARKS
from eval.benchmarks.source import Source
from eval.benchmarks.yaml_task import open_yaml
from eval.tasks.task import Choice

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
pytestmark = [pytest.mark.full,
              pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")]
NUM_ROWS = 200
WSC = [("The city councilmen refused the demonstrators a permit because they feared violence.",
        "they", ["The city councilmen", "The demonstrators"], 0),
       ("Sam pulled up a chair to the piano, but it was broken,  so he had to stand instead.",
        "it", ["The chair", "The piano"], 0),
       ("Bob paid for Charlie's college education. His generosity is known.",
        "His", ["Bob", "Charlie"], 0)]
HELLASWAG = [("Home and Garden", "[header] How to paint [title] Clean the wall. [step] Use soap.",
              "", ["[step] Rinse it.", " Wait [substeps] a day.", "Paint  it.", "Stop."], "2"),
             ("Tango", "A man dances.", "THEY smile", ["and bow.", "run.", "sit.", "cry."], "0")]


def read(folder: str, name: str, num: int = NUM_ROWS) -> list[dict]:
    with gzip.open(Path(DATASETS, folder, f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, num)]


def labelled(rows, stem="question", prefix="Question: "):
    return [{stem: row["query"].removeprefix(prefix), "answerKey": "ABCD"[row["gold"]],
             "choices": {"text": row["choices"], "label": list("ABCD")}} for row in rows]


def docs(name: str) -> list[dict]:
    found = {r["doc_id"]: r["doc"] for r in read("olmes_prompts", name) if r["doc_id"] < 1_000_000}
    return list(found.values())


def commonsense_rows() -> list[dict]:
    return [{"question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
             "choices": {"text": doc["choices"], "label": list("ABCDE")},
             "answerKey": "ABCDE"[doc["gold"]]} for doc in docs("csqa__rc_5shot")]


def boolq_rows() -> list[dict]:
    rows = []
    for row in read("icl_tasks", "boolq"):
        passage, question = row["query"].split("\nQuestion: ")
        rows.append({"passage": passage.removeprefix("Passage: "), "label": row["gold"],
                     "question": question.removesuffix("?")})
    return rows


def wsc_rows() -> list[dict]:
    rows = []
    for text, pronoun, options, label in WSC:
        place = text.replace("  ", " ").index(f" {pronoun} ") + 1
        rows.append({"text": text, "pronoun": pronoun, "pronoun_loc": place, "options": options,
                     "label": label})
    return rows


def hellaswag_rows() -> list[dict]:
    names = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    return [dict(zip(names, row)) for row in HELLASWAG]


def truthfulqa_rows() -> list[dict]:
    rows = []
    for number in range(5):
        targets = {"choices": [f"Answer {n} of {number}" for n in range(4)]}
        rows.append({"question": f"What is {number}?",
                     "mc1_targets": {**targets, "labels": [1, 0, 0, 0]},
                     "mc2_targets": {**targets, "labels": [1, 1, 0, 0]}})
    return rows


# Benchmark: file of lm-evaluation-harness, and rows with the columns that it reads.
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", lambda: labelled(read("icl_tasks", "arc_easy"))),
    "arc_challenge": ("arc/arc_challenge.yaml",
                      lambda: labelled(read("icl_tasks", "arc_challenge"))),
    "openbookqa": ("openbookqa/openbookqa.yaml",
                   lambda: labelled(read("icl_tasks", "openbook_qa"), "question_stem", "")),
    "piqa": ("piqa/piqa.yaml", lambda: docs("piqa__rc_5shot")),
    "siqa": ("siqa/siqa.yaml", lambda: docs("socialiqa__rc_5shot")),
    "commonsense_qa": ("commonsense_qa/default.yaml", commonsense_rows),
    "hellaswag": ("hellaswag/hellaswag.yaml", hellaswag_rows),
    "winogrande": ("winogrande/default.yaml", lambda: docs("winogrande__rc_5shot")),
    "wsc273": ("wsc273/default.yaml", wsc_rows),
    "boolq": ("super_glue/boolq/default.yaml", boolq_rows),
    "copa": ("super_glue/copa/default.yaml", lambda: docs("copa__rc_0shot")),
    "sciq": ("sciq/sciq.yaml", lambda: docs("sciq__rc_0shot")),
    "lambada_openai": ("lambada/lambada_openai.yaml", lambda: [
        {"text": f"{row['context']} {row['continuation']}"}
        for row in read("icl_tasks", "lambada_openai")]),
    "agieval_lsat_ar": ("agieval/lsat-ar.yaml", lambda: [
        {**row, "gold": [row["gold"]]} for row in read("icl_tasks", "agi_eval_lsat_ar")]),
    "truthfulqa_mc1": ("truthfulqa/truthfulqa_mc1.yaml", truthfulqa_rows),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", truthfulqa_rows),
}


def open_peer(file: str, splits: dict[str, list[dict]], num_shots: int):
    """lm-evaluation-harness' task as it is but for its rows, with its requests built."""
    lm_eval = pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(tasks_of_peer(lm_eval) / file)
    held = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    config |= {"training_split": "train" if "train" in splits else None, "validation_split": None,
               "test_split": "test", "num_fewshot": num_shots, "dataset_path": "json",
               "custom_dataset": lambda **kwargs: datasets.DatasetDict(held)}
    for name in ("tag", "task_list", "group", "dataset_kwargs"):
        config.pop(name, None)
    if len(splits) == 1:    # named, as else an example may be the item itself
        config["fewshot_split"] = "test"
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return task


def tasks_of_peer(lm_eval) -> Path:
    return Path(lm_eval.__file__).parent / "tasks"


def requests_of_peer(file: str, splits: dict[str, list[dict]], num_shots: int) -> list[tuple]:
    """(context, continuation) of every request."""
    return [instance.args for instance in open_peer(file, splits, num_shots).instances]


def own_requests(name: str, folder: Path, form: str, num_shots: int) -> list[tuple]:
    return to_requests(BENCHMARKS[name](Source(folder, form, num_shots)).choices("test", 0, 0))


def to_requests(asked: list[Choice]) -> list[tuple]:
    return [(choice.contexts[place if len(choice.contexts) > 1 else 0], option)
            for choice in asked for place, option in enumerate(choice.choices)]


@pytest.mark.parametrize("name", TASKS)
def test_requests_are_those_of_lm_evaluation_harness(name, tmp_path):
    file, make_rows = TASKS[name]
    rows = make_rows()
    (tmp_path / f"{BENCHMARKS[name].stems[0]}.jsonl").write_text(
        "\n".join(json.dumps(row) for row in rows))
    expected = requests_of_peer(file, {"test": rows}, 0)
    assert own_requests(name, tmp_path, "harness", 0) == expected
    assert len(expected) >= len(rows)


@pytest.mark.parametrize("form, folder", [("harness", "default"),
                                          ("continuation", "continuation")])
@pytest.mark.parametrize("num_shots", [0, 5])
def test_mmlu_requests_of_every_subject(form, folder, num_shots, tmp_path):
    test, dev = (read("mmlu", f"mmlu_{split}", 20_000) for split in ("test", "dev"))
    subjects = sorted({row["subject"] for row in dev})
    some = [row for subject in subjects
            for row in [row for row in test if row["subject"] == subject][:3]]
    for name, rows in (("mmlu_test", some), ("mmlu_dev", dev)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    expected = []
    for subject in subjects:
        splits = {name: [row for row in rows if row["subject"] == subject]
                  for name, rows in (("test", some), ("dev", dev))}
        expected += requests_of_peer(f"mmlu/{folder}/mmlu_{subject}.yaml", splits, num_shots)
    assert own_requests("mmlu", tmp_path, form, num_shots) == expected
    assert len(subjects) == 57 and len(expected) == 57 * 3 * 4


GSM8K = [{"question": f"What is {n} plus {n}?", "answer": f"It is {n}+{n}.\n#### {2 * n:,}"}
         for n in range(500, 530)]
WITHOUT_CODE = {name: TASKS[name] for name in (
    "arc_easy", "openbookqa", "piqa", "siqa", "commonsense_qa", "boolq", "sciq", "lambada_openai",
    "truthfulqa_mc1")} | {"gsm8k": ("gsm8k/gsm8k.yaml", lambda: GSM8K)}


def open_own_yaml(folder: Path, file: str, splits: dict[str, list[dict]], num_shots: int):
    """The same task file, included in one that names local rows."""
    lm_eval = pytest.importorskip("lm_eval")
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = {name: f"{name}.jsonl" for name in splits}
    shots = {"fewshot_split": "test"} if len(splits) == 1 else {}
    (folder / "mine.yaml").write_text(json.dumps({
        "include": str(tasks_of_peer(lm_eval) / file), "dataset_path": "json",
        "training_split": "train" if "train" in splits else None, "validation_split": None,
        "test_split": "test", "dataset_kwargs": {"data_files": files}, **shots}))    # JSON is YAML
    return open_yaml(Source(folder / "mine.yaml", num_shots=num_shots))


@pytest.mark.parametrize("num_shots, has_train", [(0, False), (3, True), (3, False)])
@pytest.mark.parametrize("name", WITHOUT_CODE)
def test_task_files_ask_what_lm_evaluation_harness_asks(name, num_shots, has_train, tmp_path):
    file, make_rows = WITHOUT_CODE[name]
    rows = make_rows()
    half = len(rows) // 2
    splits = {"test": rows[:half], "train": rows[half:]} if has_train or name == "gsm8k" else {
        "test": rows}
    own = open_own_yaml(tmp_path, file, splits, num_shots)
    peer = open_peer(file, splits, num_shots)
    if name != "gsm8k":
        assert to_requests(own.choices("test", 0, 0)) == [one.args for one in peer.instances]
        return
    asked = own.conversations("test", 0, 0)
    assert [one.meta["prompt"] for one in asked] == [one.args[0] for one in peer.instances]
    generation = peer.instances[0].args[1]
    assert list(own.stops) == generation["until"]


COMPLETIONS = [" 500 and 500 are 1,000.\n#### 1,000", " #### 1000", " It is $1000.", "#### 1,000.",
               " 1000 or 7", "", " none", "#### 7\n#### 1000"]


def test_filters_and_exact_match_are_those_of_lm_evaluation_harness(tmp_path):
    rows = [GSM8K[0]] * len(COMPLETIONS)
    splits = {"test": rows, "train": GSM8K[1:]}
    own = open_own_yaml(tmp_path, "gsm8k/gsm8k.yaml", splits, 0)
    peer = open_peer("gsm8k/gsm8k.yaml", splits, 0)
    for instance, completion in zip(peer.instances, COMPLETIONS):
        instance.resps = [completion]
    peer.apply_filters()
    asked, = own.conversations("test", 1, 0)
    for instance, completion in zip(peer.instances, COMPLETIONS):
        expected = {name: peer.process_results(instance.doc, [text])["exact_match"]
                    for name, text in instance.filtered_resps.items()}
        assert own.grade(asked, completion).measures == expected, completion
