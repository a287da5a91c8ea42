"""Literal prompts of the multiple-choice benchmarks: byte for byte those that models were asked."""

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from eval.benchmarks.core import CHOICES, CONTINUATIONS, SCHEMAS
from eval.benchmarks.registry import BENCHMARKS
from eval.benchmarks.source import Source
from scripts.olmes_examples import write_examples

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
needs_files = pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")

# Request file of OLMo: benchmark and form; folder of its rows, where they are at hand in full.
OLMES = {
    "arc_easy__test_rc_5shot": ("arc_easy", "cloze", "icl_tasks"),
    "arc_easy__test_mc_5shot": ("arc_easy", "letter", "icl_tasks"),
    "arc_challenge__test_rc_5shot": ("arc_challenge", "cloze", "icl_tasks"),
    "arc_challenge__test_mc_5shot": ("arc_challenge", "letter", "icl_tasks"),
    "boolq__rc_5shot": ("boolq", "cloze", ""),
    "boolq__mc_5shot": ("boolq", "letter", ""),
    "copa__rc_0shot": ("copa", "cloze", ""),
    "csqa__rc_5shot": ("commonsense_qa", "cloze", ""),
    "csqa__mc_5shot": ("commonsense_qa", "letter", ""),
    "hellaswag__rc_5shot": ("hellaswag", "cloze", "hellaswag"),
    "hellaswag__mc_5shot": ("hellaswag", "letter", "hellaswag"),
    "openbookqa__test_rc_5shot": ("openbookqa", "cloze", "icl_tasks"),
    "openbookqa__test_mc_5shot": ("openbookqa", "letter", "icl_tasks"),
    "piqa__rc_5shot": ("piqa", "cloze", ""),
    "piqa__mc_5shot": ("piqa", "letter", ""),
    "sciq__rc_0shot": ("sciq", "cloze", ""),
    "socialiqa__rc_5shot": ("siqa", "cloze", ""),
    "socialiqa__mc_5shot": ("siqa", "letter", ""),
    "winogrande__rc_5shot": ("winogrande", "cloze", "icl_tasks"),
    "winogrande__mc_5shot": ("winogrande", "letter", ""),
}
# LLM-Foundry's file has another answer than the dataset: key "2" of options 1 to 4 became gold 2.
WRONG_GOLD = {("arc_easy", 14): 2}


def read_gzip(*parts: str) -> list[dict]:
    with gzip.open(Path(DATASETS).joinpath(*parts), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def to_row(benchmark: str, doc: dict) -> dict:
    """The question of a request in the columns of its Hugging Face dataset."""
    if benchmark == "commonsense_qa":
        question, *lines = doc["query"].removesuffix("\nAnswer:").split("\n ")
        texts = [line[3:] for line in lines] or doc["choices"]
        return {"question": question.removeprefix("Question: "), "answerKey": "ABCDE"[doc["gold"]],
                "choices": {"text": texts, "label": list("ABCDE")}}
    if benchmark == "boolq":
        passage, question = doc["query"].split("\n A.")[0].split("\nQuestion: ")
        return {"passage": passage, "question": question.split("?\nAnswer")[0].removesuffix("?"),
                "label": 1 - doc["gold"]}
    return {name: value for name, value in doc.items() if name not in ("query", "choices", "gold")}


@pytest.fixture(scope="module")
def olmes_examples(tmp_path_factory):
    """The file of solved examples, as the command makes it of the request files."""
    path = tmp_path_factory.mktemp("examples") / "olmes_examples.jsonl"
    assert write_examples(Path(DATASETS, "olmes_prompts"), path) == 45
    return path


@needs_files
@pytest.mark.parametrize("file", OLMES)
def test_olmes_requests_byte_for_byte(file, tmp_path, olmes_examples):
    name, form, folder = OLMES[file]
    requests = read_gzip("olmes_prompts", f"{file}.jsonl.gz")
    if not folder:
        docs = {r["doc_id"]: r["doc"] for r in requests if r["doc_id"] < 1_000_000}
        rows = [json.dumps(to_row(name, doc)) for doc in docs.values()]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    else:
        for path in Path(DATASETS, folder).iterdir():
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / olmes_examples.name).symlink_to(olmes_examples)
    task = BENCHMARKS[name](Source(tmp_path, form))
    asked = task.choices("test", 0, 0)
    by_request = {(context, option): choice for choice in asked for context in choice.contexts
                  for option in choice.choices}
    found = {}
    for request in requests:
        context, continuation = request["request"]["context"], request["request"]["continuation"]
        if request["doc_id"] >= 1_000_000:
            choice = found[request["doc_id"] - 1_000_000]
            assert context == choice.baseline
        else:
            choice = found[request["doc_id"]] = by_request[context, continuation]
            place = request["idx"] if len(choice.contexts) > 1 else 0
            assert context == choice.contexts[place]
        assert continuation == choice.choices[request["idx"]]
        number = request["doc_id"] % 1_000_000
        assert choice.answer == WRONG_GOLD.get((name, number), request["label"])
    has_baseline = any(request["doc_id"] >= 1_000_000 for request in requests)
    assert len(found) == 20 and has_baseline == bool(choice.baseline)
    assert len(requests) == 20 * len(choice.choices) * (1 + has_baseline)


@needs_files
def test_core_shots_and_delimiters_are_those_of_the_table():
    kinds = {"multiple_choice": CHOICES, "schema": SCHEMAS, "language_modeling": CONTINUATIONS}
    with open(Path(DATASETS, "dclm_core", "core_tasks.csv")) as file:
        rows = list(csv.DictReader(file))
    for kind, table in kinds.items():
        assert table == {row["task"]: (int(row["num_fewshot"]),
                                       json.loads(row["continuation_delimiter"]))
                         for row in rows if row["type"] == kind}
