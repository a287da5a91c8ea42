"""Generated answers, scored by their tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from data.chat import Conversation, ask
from eval.respond.loaded import LoadedModel
from eval.respond.local import answer, complete, make_prompts
from eval.tasks.task import AnswerTask, Grade, ProgramTask, Task, question_of
from model.generation.requests import Completion
from model.generation.sampling import Sampling

NUM_EXAMPLES = 4  # solved examples in the prompt of a base model


class Answered(NamedTuple):
    """A question with an answer as it was drawn and as it was scored.

    Attributes:
        question: the solved conversation.
        prompt: its tokens.
        completion: the answer.
        row: see `answer_task`.
    """

    question: Conversation
    prompt: Sequence[int]
    completion: Completion
    row: dict[str, Any]


def answer_and_score(model: LoadedModel, tasks: Sequence[Task], solved: Sequence[Conversation],
                     sampling: Sampling, *, seed: int, batch_size: int) -> list[Answered]:
    """Answers of `answer_task` to conversations of several tasks, each by its own, in their order.
    """
    found: dict[int, Answered] = {}
    for task in tasks:
        numbers = [n for n, one in enumerate(solved) if one.meta["task"] == task.name]
        answered = _answer_task(model, task, [solved[n] for n in numbers], sampling, seed=seed,
                                batch_size=batch_size)
        found |= dict(zip(numbers, answered))
    return [found[n] for n in range(len(solved))]


def answer_task(model: LoadedModel, task: Task, solved: Sequence[Conversation],
                sampling: Sampling, *, seed: int, batch_size: int,
                in_turns: bool = False) -> list[dict[str, Any]]:
    """Answers the questions of a task's solved conversations and scores the answers.

    To a base model solved examples of the task are shown before a question; a benchmark's literal
    prompt brings its own, and its stop texts and longest answer hold instead of those of
    `sampling`.

    Args:
        in_turns: whether a literal prompt is put as a user's message, in the model's template.

    Returns:
        One row per conversation, in their order: its `id`, messages up to the question, question,
        reference, literal prompt, completion, how it ended (`finish`, see `Completion`), its tokens
        and their log-probability in nats, what was extracted of it, its score and other measures.
    """
    return [one.row for one in _answer_task(model, task, solved, sampling, seed=seed,
                                            batch_size=batch_size, in_turns=in_turns)]


def _answer_task(model: LoadedModel, task: Task, solved: Sequence[Conversation],
                 sampling: Sampling, *, seed: int, batch_size: int,
                 in_turns: bool = False) -> list[Answered]:
    asked = [question_of(conversation) for conversation in solved]
    if isinstance(task, AnswerTask):
        prompts = make_prompts(model, [_as_turn(one) for one in asked] if in_turns else asked)
        sampling = dataclasses.replace(sampling, max_new_tokens=task.max_new_tokens)
        completions = complete(model, prompts, sampling, seed=seed, batch_size=batch_size,
                               stop_texts=task.stops)
    else:
        examples = () if model.chat else pick_examples(task, asked)
        prompts = make_prompts(model, asked, examples)
        completions = answer(model, prompts, sampling, seed=seed, batch_size=batch_size)
    answered = []
    grades = grade_answers(task, [(conversation, completion.text) for conversation, completion
                                  in zip(solved, completions)])
    for n, (conversation, prompt, completion, grade) in enumerate(
            zip(solved, prompts, completions, grades)):
        answered.append(Answered(conversation, prompt, completion, {
            "id": conversation.meta.get("id", str(n)), "task": task.name,
            "family": conversation.meta["family"],
            "messages": question_of(conversation).to_dict()["messages"],
            "question": conversation.messages[-2].content,
            "reference": conversation.messages[-1].content,
            "prompt": model.tokenizer.decode(prompt), "completion": completion.text,
            "finish": completion.finish, "num_tokens": len(completion.tokens),
            "logp_nats": sum(completion.logps), "extracted": grade.extracted,
            "score": grade.score, "measures": dict(grade.measures)}))
    return answered


def _as_turn(question: Conversation) -> Conversation:
    """The question with its literal prompt, if it has one, as the user's message."""
    return ask(question.meta["prompt"]) if "prompt" in question.meta else question


def pick_examples(task: Task, asked: Sequence[Conversation]) -> list[Conversation]:
    """Solved conversations of a task's training split, none of which asks one of the questions."""
    questions = {conversation.messages[-1].content for conversation in asked}
    solved = task.conversations("train", NUM_EXAMPLES + len(questions), 0)
    return [one for one in solved if one.messages[-2].content not in questions][:NUM_EXAMPLES]


def grade_answers(task: Task, answers: Sequence[tuple[Conversation, str]]) -> list[Grade]:
    """A task's judgement of answers; where it gives a score alone, all of each was compared."""
    if isinstance(task, ProgramTask):
        return task.grade_all(answers)
    if isinstance(task, AnswerTask):
        return [task.grade(conversation, completion) for conversation, completion in answers]
    return [Grade(task.score(conversation, completion), completion)
            for conversation, completion in answers]
