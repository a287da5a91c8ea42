"""Stage: evaluates one model.

    python -m eval.run --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.eval.model=dpo --config.eval.out=eval_dpo --config.eval.against=eval_sft

Writes `choices.jsonl` (log-probabilities of every choice), `verifiable.jsonl` and `open.jsonl`
(literal prompt, completion, score). With `against`, an earlier evaluation, it counts wins over
that model on the same open questions.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from core.progress import log
from data.chat import Conversation
from data.tokenizer import Tokenizer, load_tokenizer
from eval.measures.choices import score_choices
from eval.measures.likelihood import bits_per_byte, unigram_bits_per_byte, xz_bits_per_byte
from eval.respond.local import answer, make_prompts
from eval.statistics import mean_and_stderr, win_rate
from eval.tasks.documentation import NUM_CHOICES, load_documentation
from eval.tasks.task import Task, question_of
from eval.tasks.verifiable import Verifiable
from model.config import ModelConfig
from model.directory import is_chat_model, load_model
from model.families.decoder import Params
from model.generation.generate import Sampling

NUM_EXAMPLES = 4  # solved examples in the prompt of a base model


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A loaded model and how it is spoken to."""

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    chat: bool


def load_evaluated(folder: Path) -> Evaluated:
    """Loads a model directory for evaluation."""
    params, config = load_model(folder)
    return Evaluated(params, config, load_tokenizer(folder / "tokenizer"), is_chat_model(folder))


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Runs all measurements; every one names its number of items and its error."""
    section = config.eval
    model = load_evaluated(parents["model"])
    documentation, verifiable = load_documentation(parents["corpus"]), Verifiable()
    log(f"eval: {section.model}, prompts in {'turns' if model.chat else 'plain text'}")
    metrics: dict[str, Any] = {
        "bpb": bits_per_byte(model.params, model.config, parents["tokens"],
                             row_length=section.row_length, batch_size=section.batch_size),
        "unigram_bpb": unigram_bits_per_byte(parents["tokens"]),
        "xz_bpb": xz_bits_per_byte(parents["corpus"])}
    metrics |= _measure_choices(model, documentation, section, folder)
    metrics |= _measure_verifiable(model, verifiable, section, folder)
    metrics |= _measure_open(model, (documentation, verifiable), section, folder,
                             parents.get("against"))
    return metrics


def _measure_choices(model: Evaluated, documentation, section: ConfigDict,
                     folder: Path) -> dict[str, Any]:
    questions = documentation.choices("test", section.num_choices, section.seed)
    if not questions:
        raise UserError("corpus questions", "none belongs to the test split",
                        "curate more packages")
    scores = score_choices(model.params, model.config, model.tokenizer, questions,
                           chat=model.chat, row_length=section.row_length,
                           batch_size=section.batch_size)
    write_rows(folder / "choices.jsonl", (
        {"question": q.question.messages[0].content, "choices": q.choices, "answer": q.answer,
         "logps_nats": s.logps_nats} for q, s in zip(questions, scores)))
    accuracy, stderr = mean_and_stderr([s.is_right_per_byte for s in scores])
    raw, _ = mean_and_stderr([s.is_right for s in scores])
    return {"mc_acc": accuracy, "mc_stderr": stderr, "mc_acc_raw": raw,
            "mc_chance": 1 / NUM_CHOICES, "mc_items": len(scores)}


def _measure_verifiable(model: Evaluated, task: Verifiable, section: ConfigDict,
                        folder: Path) -> dict[str, Any]:
    solved = task.conversations("test", section.num_verifiable, section.seed)
    greedy = Sampling(section.max_new_tokens, temperature=0.0)
    rows = answer_and_score(model, [task], solved, greedy, section)
    write_rows(folder / "verifiable.jsonl", rows)
    accuracy, stderr = mean_and_stderr([row["score"] for row in rows])
    by_family = defaultdict(list)
    for row in rows:
        by_family[row["family"]].append(row["score"])
    return {"verifiable_acc": accuracy, "verifiable_stderr": stderr,
            "verifiable_items": len(rows),
            "verifiable_by_family": {name: mean_and_stderr(scores)[0]
                                     for name, scores in sorted(by_family.items())}}


def _measure_open(model: Evaluated, tasks: Sequence[Task], section: ConfigDict, folder: Path,
                  against: Path | None) -> dict[str, Any]:
    """Sampled answers to unseen questions of all tasks, scored by the tasks' own measure."""
    # Another seed than the verifiable measurement's, so that the two are independent.
    solved = [c for task in tasks
              for c in task.conversations("test", section.num_open, section.seed + 1)]
    sampling = Sampling(section.max_new_tokens, temperature=section.temperature)
    rows = answer_and_score(model, tasks, solved, sampling, section)
    write_rows(folder / "open.jsonl", rows)
    mean, stderr = mean_and_stderr([row["score"] for row in rows])
    metrics: dict[str, Any] = {"open_score": mean, "open_stderr": stderr, "open_items": len(rows)}
    if against is not None:
        theirs = read_rows(against / "open.jsonl")
        if [row["question"] for row in theirs] != [row["question"] for row in rows]:
            raise UserError(f"eval.against={section.against!r}", "answered other questions",
                            "evaluate it with the same corpus and eval section")
        rate, interval = win_rate([row["score"] for row in rows],
                                  [row["score"] for row in theirs])
        metrics |= {"against": section.against, "win_rate": rate, "win_rate_ci": interval}
    return metrics


def answer_and_score(model: Evaluated, tasks: Sequence[Task], solved: Sequence[Conversation],
                     sampling: Sampling, section: ConfigDict) -> list[dict[str, Any]]:
    """Answers the questions of solved conversations and scores each by its own task.

    Args:
        section: config with `seed` and `batch_size`.

    Returns:
        One row per conversation: question, reference, literal prompt, completion, score.
    """
    by_name = {task.name: task for task in tasks}
    examples = [c for task in tasks for c in task.conversations("train", NUM_EXAMPLES, 0)]
    examples = examples[-NUM_EXAMPLES:]
    questions = [question_of(c) for c in solved]
    prompts = make_prompts(questions, model.tokenizer, chat=model.chat, examples=examples)
    completions = answer(model.params, model.config, model.tokenizer, questions, sampling,
                         chat=model.chat, seed=section.seed, batch_size=section.batch_size,
                         examples=examples)
    return [{"task": c.meta["task"], "family": c.meta["family"],
             "question": c.messages[0].content, "reference": c.messages[-1].content,
             "prompt": model.tokenizer.decode(prompt), "completion": completion,
             "score": by_name[c.meta["task"]].score(c, completion)}
            for c, prompt, completion in zip(solved, prompts, completions)]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    entry.run_stage("eval", build, parents=("model", "corpus", "tokens", "against"))
