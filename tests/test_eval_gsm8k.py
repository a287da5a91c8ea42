"""GSM8K: literal prompts, both extractions, what is unparsed, and bad files."""

import gzip
import json
import os
from pathlib import Path

import pytest

from core.errors import UserError
from eval.benchmarks.gsm8k import CHAIN_OF_THOUGHT, open_gsm8k
from eval.benchmarks.source import Source
from eval.tasks.task import AnswerTask, answer_of

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")


def _write(folder: Path, split: str, rows: list[dict]) -> None:
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path) -> Path:
    for split, size in (("train", 7), ("test", 3)):
        _write(tmp_path, split, [{"question": f"{split} {n} + 1,000?",
                                  "answer": f"{n} + 1,000 = {n + 1000}.\n#### 1,00{n}"}
                                 for n in range(size)])
    return tmp_path


def test_the_base_prompt_is_that_of_lm_eval(folder):
    task = open_gsm8k(Source(folder, num_shots=2))
    assert isinstance(task, AnswerTask) and task.name == "gsm8k"
    first, *rest = task.conversations("test", 0, 0)
    assert len(rest) == 2
    assert first.meta["prompt"] == (
        "Question: train 0 + 1,000?\nAnswer: 0 + 1,000 = 1000.\n#### 1,000\n\n"
        "Question: train 1 + 1,000?\nAnswer: 1 + 1,000 = 1001.\n#### 1,001\n\n"
        "Question: test 0 + 1,000?\nAnswer:")
    assert first.meta["id"] == "gsm8k/0" and first.messages[0].content == "test 0 + 1,000?"


def test_the_prompt_of_chains_of_thought(folder):
    (folder / "train.jsonl").unlink()       # its examples are its own
    [one] = open_gsm8k(Source(folder, form="cot")).conversations("test", 1, 0)
    prompt = one.meta["prompt"]
    assert prompt.startswith(f"Q: {CHAIN_OF_THOUGHT[0][0]}\nA: There are 15 trees originally.")
    assert prompt.count("The answer is ") == prompt.count("\n\nQ: ") == 8
    assert prompt.endswith("The answer is 8.\n\nQ: test 0 + 1,000?\nA:")


@pytest.mark.parametrize("examples", ["first", "seeded"])
def test_no_question_is_its_own_example(folder, examples):
    task = open_gsm8k(Source(folder, num_shots=6, examples=examples))
    solved = task.conversations("train", 0, 0)
    assert all(c.meta["prompt"].count(c.messages[0].content) == 1 for c in solved)
    assert len({c.meta["id"] for c in [*solved, *task.conversations("test", 0, 0)]}) == 10
    with pytest.raises(UserError, match="num_shots=7: the file has 6 examples"):
        open_gsm8k(Source(folder, num_shots=7)).conversations("train", 1, 0)


def test_seeded_examples_are_drawn_for_each_item(folder):
    drawn = {seed: [c.meta["prompt"] for c in open_gsm8k(
        Source(folder, num_shots=3, examples="seeded", seed=seed)).conversations("test", 0, 0)]
        for seed in (1, 2)}
    assert drawn[1] != drawn[2]
    heads = {prompt.split("Question: test")[0] for prompt in drawn[1]}
    assert len(heads) == 3


@pytest.mark.parametrize("form, completion, strict, flexible, unparsed", [
    ("base", " 1 + 1,000 = 1001.\n#### 1,001", 1, 1, 0), ("base", "#### 1001.0", 1, 1, 0),
    ("base", " It is $1,001.", 0, 1, 1), ("base", " Many.", 0, 0, 1), ("base", "", 0, 0, 1),
    ("base", "#### 7\nso 1001", 0, 1, 0), ("base", "#### 1001 and 7 more", 1, 0, 0),
    ("cot", "It is so. The answer is 1001", 1, 1, 0), ("cot", "#### 1001", 0, 1, 1),
    ("cot", "The answer is 1,001.", 1, 1, 0)])
def test_strict_and_flexible_stand_side_by_side(folder, form, completion, strict, flexible,
                                                unparsed):
    task = open_gsm8k(Source(folder, form=form))
    solved = task.conversations("test", 2, 0)[1]
    grade = task.grade(solved, completion)
    assert grade.measures == {"strict": strict, "flexible": flexible, "unparsed": unparsed}
    assert grade.score == strict == task.score(solved, completion)
    assert (grade.extracted is None) == bool(unparsed)


def test_what_is_refused(folder):
    with pytest.raises(UserError, match="form='chat': is none of base, cot"):
        open_gsm8k(Source(folder, form="chat"))
    with pytest.raises(UserError, match="examples='last'"):
        open_gsm8k(Source(folder, examples="last")).conversations("test", 1, 0)
    with pytest.raises(UserError, match="split='dev'"):
        open_gsm8k(Source(folder)).conversations("dev", 1, 0)
    _write(folder, "test", [{"question": "1?", "answer": "#### 1"}, {"question": "2?"}])
    with pytest.raises(UserError, match=r"test\.jsonl, row 2: lacks a question, or an answer"):
        open_gsm8k(Source(folder)).conversations("test", 0, 0)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match="has 0 files named test"):
        open_gsm8k(Source(folder))


@needs_files
def test_the_real_files():
    for form, name in (("base", "gsm8k"), ("cot", "gsm8k_cot")):
        task = open_gsm8k(Source(DATASETS / "gsm8k", form=form))
        solved = task.conversations("test", 0, 0)
        assert len(solved) == 1319 and solved[7].meta["id"] == f"{name}/7"
        if form == "base":
            assert all(task.score(c, answer_of(c)) == 1 for c in solved)
            assert solved[0].meta["prompt"].count("Question:") == 6
            assert len(task.conversations("train", 0, 0)) == 7473


@needs_files
def test_the_examples_of_chains_of_thought_are_those_that_olmes_has_too():
    """allenai/OLMo@59a53e3 words their last sentence otherwise."""
    file = DATASETS / "olmes_prompts" / "gsm8k__gold_bpb_5shot.jsonl.gz"
    with gzip.open(file) as lines:
        context = json.loads(lines.readline())["request"]["context"]
    ours = "".join(f"Question: {question}\nAnswer: {answer}\n\n".replace(
        "The answer is", "So the answer is") for question, answer in CHAIN_OF_THOUGHT)
    assert context.startswith(ours)


def test_files_in_a_linked_folder_are_found(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("data")
    (linked / "gsm8k").symlink_to(folder)
    assert len(open_gsm8k(Source(linked)).conversations("test", 0, 0)) == 3
