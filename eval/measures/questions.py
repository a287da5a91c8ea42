"""A task's accuracy, by multiple choice or by generated answers."""

from __future__ import annotations

from eval.measures.choices import score_choices
from eval.measures.generation import NUM_EXAMPLES, answer_and_score
from eval.respond.loaded import LoadedModel
from eval.statistics import mean_and_stderr
from eval.tasks.task import ChoiceTask, Task
from model.generation.sampling import Sampling

MAX_NEW_TOKENS = 32


def score_questions(model: LoadedModel, task: Task, *, split: str, count: int, seed: int,
                    row_length: int, batch_size: int) -> float:
    """Mean score: accuracy per byte of a `ChoiceTask`, else the task's score of greedy answers."""
    if isinstance(task, ChoiceTask):
        examples = () if model.chat else task.conversations("train", NUM_EXAMPLES, 0)
        scores = score_choices(model, task.choices(split, count, seed), examples=examples,
                               batch_tokens=row_length * batch_size)
        return mean_and_stderr([score.is_right("byte") for score in scores])[0]
    rows = answer_and_score(model, [task], task.conversations(split, count, seed),
                            Sampling(MAX_NEW_TOKENS, temperature=0.0), seed=seed,
                            batch_size=batch_size)
    return mean_and_stderr([row["score"] for row in rows])[0]
