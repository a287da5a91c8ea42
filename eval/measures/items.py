"""A task put to a model: a record of every item, and the scores that follow from the records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from core.errors import UserError
from eval.measures.choices import score_choices
from eval.measures.generation import answer_task, pick_examples
from eval.records import choice_record, summarise_answers, summarise_choices
from eval.respond.loaded import LoadedModel
from eval.tasks.task import ChoiceTask, Task
from model.generation.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Asking:
    """How tasks are put to a model.

    Attributes:
        seed: of what tasks draw.
        max_new_tokens: of an answer, where the task has no limit of its own.
        batch_size: answers at once.
        batch_tokens: of log-likelihoods at once.
        split: of the tasks' items.
        in_turns: whether literal prompts are put as a user's message, in the model's template.
    """

    seed: int = 0
    max_new_tokens: int = 32
    batch_size: int = 16
    batch_tokens: int = 4096
    split: str = "test"
    in_turns: bool = False


def measure_task(model: LoadedModel, task: Task, count: int,
                 asking: Asking) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records of a task's items, and its scores.

    A task with options is scored by their log-probabilities, any other by greedy answers. A base
    model sees solved examples of the same task before questions without a literal prompt.

    Raises:
        UserError: the task has no item in the split, or a base model is asked in turns.
    """
    if asking.in_turns and not model.chat:
        raise UserError("prompts='turns'", f"{model.name} is a base model, which no template was "
                        "taught", "set --config.eval.prompts=literal")
    ask = _measure_choices if isinstance(task, ChoiceTask) else _measure_answers
    return ask(model, task, count, asking)


def _measure_choices(model: LoadedModel, task: ChoiceTask, count: int,
                     asking: Asking) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    questions = task.choices(asking.split, count, asking.seed)
    _check_any(task, questions, asking)
    needs_examples = not model.chat and not all(question.contexts for question in questions)
    examples = (pick_examples(task, [question.question for question in questions])
                if needs_examples else ())
    scores = score_choices(model, questions, examples=examples, batch_tokens=asking.batch_tokens,
                           in_turns=asking.in_turns)
    normalisation = getattr(task, "normalisation", "byte")
    records = [choice_record(question, score, number, normalisation, asking.in_turns)
               for number, (question, score) in enumerate(zip(questions, scores))
               if score is not None]
    if not records:
        raise UserError(f"tasks.{task.name}", "has no question whose options fit into the model's "
                        f"context of {model.context_tokens} tokens", "set it to 0")
    return records, summarise_choices(records) | {"left_out": len(questions) - len(records)}


def _measure_answers(model: LoadedModel, task: Task, count: int,
                     asking: Asking) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    solved = task.conversations(asking.split, count, asking.seed)
    _check_any(task, solved, asking)
    greedy = Sampling(asking.max_new_tokens, temperature=0.0)
    records = answer_task(model, task, solved, greedy, seed=asking.seed,
                          batch_size=asking.batch_size, in_turns=asking.in_turns)
    return records, summarise_answers(records)


def _check_any(task: Task, questions: Sequence[Any], asking: Asking) -> None:
    """Raises `UserError` where a task has no question in the split."""
    if not questions:
        raise UserError(f"tasks.{task.name}", f"has no question in the {asking.split} split",
                        "give it more items, or set it to 0")
