"""Stage: evaluates one model.

    python -m eval.run --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.eval.model=dpo --config.eval.out=eval_dpo --config.eval.against=eval_sft

Writes for each of `tasks` a file of its name: log-probabilities of every choice, or the literal
prompt, completion and score of every answer; and `open.jsonl` for the sampled answers to
`open_tasks`. With `against`, an earlier evaluation, it computes the win rate over that model on
the same open questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import read_jsonl, write_jsonl
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.tokens.rows import check_tokenizer
from eval.measures.choices import score_choices
from eval.measures.generation import answer_and_score
from eval.measures.likelihood import (
    bits_per_byte,
    has_heldout,
    unigram_bits_per_byte,
    xz_bits_per_byte,
)
from eval.respond.loaded import LoadedModel, load_model
from eval.statistics import mean_and_stderr, win_rate
from eval.tasks.registry import open_tasks
from eval.tasks.task import ChoiceTask, Task
from model.directory import read_description
from model.execution import make_execution
from model.generation.requests import LENGTH, REFUSED
from model.generation.sampling import Sampling


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Runs all measurements, with numbers of items and standard errors.

    Bits per byte are None where the corpus holds no page out.
    """
    section = config.eval
    tasks = open_tasks(section.tasks, parents.get("corpus"), section.inputs)
    check_tokenizer(parents["tokens"], read_description(parents["model"]).tokenizer, "eval.tokens")
    model = load_model(parents["model"], make_execution(section, also=("batch_size",)),
                       weights=section.weights)
    log(f"eval: {section.model}, prompts in {'turns' if model.chat else 'plain text'}")
    metrics = {"weight_bytes": model.weight_bytes} | _measure_bits(model, section, parents)
    for task, count in tasks:
        measure = _measure_choices if isinstance(task, ChoiceTask) else _measure_answers
        scores = measure(model, task, count, section, folder)
        metrics |= {f"{task.name}_{name}": value for name, value in scores.items()}
    metrics["tasks"] = [task.name for task, _ in tasks]
    return metrics | _measure_open(model, section, folder, parents)


def _measure_bits(model: LoadedModel, section: ConfigDict,
                  parents: Mapping[str, Path]) -> dict[str, Any]:
    """Bits per byte of the model and of two baselines on the held-out pages."""
    tokens = parents["tokens"]
    if not has_heldout(tokens):
        log("eval: the corpus holds no page out: no bits per byte")
        return dict.fromkeys(("bpb", "unigram_bpb", "xz_bpb"))
    return {"bpb": bits_per_byte(model, tokens, row_length=section.row_length,
                                 batch_size=section.run.batch_size),
            "unigram_bpb": unigram_bits_per_byte(tokens),
            "xz_bpb": xz_bits_per_byte(parents["corpus"])}


def _measure_choices(model: LoadedModel, task: ChoiceTask, count: int, section: ConfigDict,
                     folder: Path) -> dict[str, Any]:
    """Accuracy by the likeliest choice, per byte and unnormalised (`acc_raw`)."""
    questions = task.choices("test", count, section.seed)
    if not questions:
        raise UserError(f"tasks.{task.name}", "has no multiple-choice question in the test split",
                        "curate more packages, or set it to 0")
    scores = score_choices(model, questions, row_length=section.row_length,
                           batch_size=section.run.batch_size)
    write_jsonl(folder / f"{task.name}.jsonl", (
        {"question": q.question.messages[0].content, "choices": q.choices, "answer": q.answer,
         "logps_nats": s.logps_nats} for q, s in zip(questions, scores)))
    accuracy, stderr = mean_and_stderr([s.is_right_per_byte for s in scores])
    raw, _ = mean_and_stderr([s.is_right for s in scores])
    chance, _ = mean_and_stderr([1 / len(q.choices) for q in questions])
    return {"acc": accuracy, "stderr": stderr, "acc_raw": raw, "chance": chance,
            "items": len(scores)}


def _measure_answers(model: LoadedModel, task: Task, count: int, section: ConfigDict,
                     folder: Path) -> dict[str, Any]:
    """The task's own score of greedy answers."""
    solved = task.conversations("test", count, section.seed)
    greedy = Sampling(section.max_new_tokens, temperature=0.0)
    rows = answer_and_score(model, [task], solved, greedy, seed=section.seed,
                            batch_size=section.run.batch_size)
    write_jsonl(folder / f"{task.name}.jsonl", rows)
    accuracy, stderr = mean_and_stderr([row["score"] for row in rows])
    by_family = defaultdict(list)
    for row in rows:
        by_family[row["family"]].append(row["score"])
    return {"acc": accuracy, "stderr": stderr, "items": len(rows), **count_unfinished(rows),
            "by_family": {name: mean_and_stderr(scores)[0]
                          for name, scores in sorted(by_family.items())}}


def count_unfinished(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many answers ran into the limit, and how many prompts were refused as too long."""
    return {"unfinished": sum(row["finish"] == LENGTH for row in rows),
            "refused": sum(row["finish"] == REFUSED for row in rows)}


def _measure_open(model: LoadedModel, section: ConfigDict, folder: Path,
                  parents: Mapping[str, Path]) -> dict[str, Any]:
    """Sampled answers to unseen questions of `open_tasks`, with their tasks' scores."""
    opened = open_tasks(section.open_tasks, parents.get("corpus"))
    if not opened:
        return {}
    # Another seed than for greedy answers, so that the questions are independent.
    solved = [c for task, count in opened
              for c in task.conversations("test", count, section.seed + 1)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    rows = answer_and_score(model, [task for task, _ in opened], solved, sampling,
                            seed=section.seed, batch_size=section.run.batch_size)
    write_jsonl(folder / "open.jsonl", rows)
    mean, stderr = mean_and_stderr([row["score"] for row in rows])
    metrics: dict[str, Any] = {"open_score": mean, "open_stderr": stderr, "open_items": len(rows)}
    metrics |= {f"open_{name}": count for name, count in count_unfinished(rows).items()}
    if "against" in parents:
        theirs = read_jsonl(parents["against"] / "open.jsonl")
        if [row["question"] for row in theirs] != [row["question"] for row in rows]:
            raise UserError(f"eval.against={section.against!r}", "answered other questions",
                            "evaluate it with the same corpus and eval section")
        rate, interval = win_rate([row["score"] for row in rows],
                                  [row["score"] for row in theirs])
        metrics |= {"against": section.against, "win_rate": rate, "win_rate_ci": interval}
    return metrics


STAGE = Stage("eval", build, parents=("model", "corpus", "tokens", "against"))

if __name__ == "__main__":
    run_stage(STAGE)
