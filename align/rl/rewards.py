"""Rewards of answers by name, summed with weights.

    task      the task's own score, the same function as in evaluation
    model     the score of a reward model of `align.reward`
    length    0 up to `max_new_tokens` less `overlong_tokens`, from there linearly to -1 at the
              limit (arXiv 2503.14476, equation 13)
    format    1 where the whole text matches the regular expression `pattern`, else 0
    judge     the score that a chat model gives; see `align.rl.judge`

An answer that did not end by itself loses `missing_end_penalty` as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from align.rl.answers import Answer
from align.rl.judge import Judge, open_judge
from core.errors import UserError
from core.progress import log
from data.answers import Answer as Rendered
from data.answers import cut_prompt
from data.tokenizers.tokenizer import Tokenizer
from eval.measures.generation import grade_answers
from eval.respond.reward import RewardModel, load_reward, score_texts
from eval.tasks.task import Task
from model.execution import Execution
from model.generation.requests import STOP

# `reward(answers) -> one number for each`.
Reward = Callable[[Sequence[Answer]], Sequence[float]]


class Resources(NamedTuple):
    """What rewards are made of.

    Attributes:
        section: of the config.
        tasks: those that the prompts are of, by name.
        reward_model: the folder of a reward model; None without one.
        tokenizer: of the policy.
        execution: how a reward model or a judge runs.
        mesh: that it is sharded over; None holds it on one device.
        batch_size: answers that it scores at once.
        max_length: tokens of a prompt with its answer at most, all of which it must be able to
            read; None leaves out the oldest part of the prompts that are too long for it.
        judge: the folder of a chat model; None without one.
    """

    section: ConfigDict
    tasks: Mapping[str, Task]
    reward_model: Path | None
    tokenizer: Tokenizer
    execution: Execution
    mesh: Mesh | None
    batch_size: int
    max_length: int | None = None
    judge: Path | None = None


def _of_task(given: Resources) -> Reward:
    def reward(answers: Sequence[Answer]) -> list[float]:
        scores: dict[int, float] = {}
        for name, task in given.tasks.items():
            numbers = [number for number, answer in enumerate(answers)
                       if answer.question.meta["task"] == name]
            grades = grade_answers(task, [(answers[number].question, answers[number].text)
                                          for number in numbers])
            scores |= {number: grade.score for number, grade in zip(numbers, grades, strict=True)}
        return [scores[number] for number in range(len(answers))]

    return reward


def _of_model(given: Resources) -> Reward:
    section = given.section
    if given.reward_model is None:
        raise UserError(f"{section.out}.rewards.model={section.rewards.model}",
                        "there is no reward model", f"name one in {section.out}.reward, or set "
                        "the weight to 0")
    model = load_reward(given.reward_model, given.execution, given.mesh)
    if model.tokenizer.fingerprint != given.tokenizer.fingerprint:
        raise UserError(f"{section.out}.reward={section.reward!r}", "has another tokenizer than "
                        "the policy, whose tokens it is to read",
                        "train the reward model from the policy's model or its base")
    longest = given.max_length or model.context_tokens
    if model.context_tokens < longest:
        raise UserError(f"{section.out}.row_length={section.row_length}", f"is more than the "
                        f"{model.context_tokens} tokens that {model.name} reads", "lower it to "
                        f"at most {model.context_tokens - 1}")
    return partial(_score_tokens, model, longest, given.batch_size)


def _score_tokens(model: RewardModel, max_length: int, batch_size: int,
                  answers: Sequence[Answer]) -> np.ndarray:
    """Scores of the tokens as they were drawn: a text might be encoded otherwise."""
    return score_texts(model.params, _fit(answers, max_length, model.name), config=model.config,
                       execution=model.execution, batch_size=batch_size, max_length=max_length)


def _fit(answers: Sequence[Answer], max_length: int, name: str) -> list[list[int]]:
    """Tokens of prompts with their answers, at most so many.

    Where one is longer, all answers to its prompt lose the same, oldest part of it.
    """
    texts = [[*answer.prompt, *answer.tokens] for answer in answers]
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for number, answer in enumerate(answers):
        by_prompt.setdefault(answer.prompt, []).append(number)
    num_cut = 0
    for prompt, numbers in by_prompt.items():
        if max(len(texts[number]) for number in numbers) <= max_length:
            continue
        num_cut += 1
        cut = cut_prompt([Rendered(texts[number], len(prompt)) for number in numbers], max_length)
        if cut is None:
            raise UserError("max_new_tokens", "leaves an answer no room for its question in the "
                            f"{max_length} tokens that {name} reads", "lower it, or train the "
                            "reward model on longer rows")
        for number, (tokens, _) in zip(numbers, cut, strict=True):
            texts[number] = tokens
    if num_cut:
        log(f"warning: answers to {num_cut} prompts are scored without the oldest part of "
            f"these: {name} reads {max_length} tokens")
    return texts


def _of_length(given: Resources) -> Reward:
    limit, span = given.section.max_new_tokens, given.section.overlong_tokens
    if span > limit:
        raise UserError(f"{given.section.out}.overlong_tokens={span}",
                        f"is more than max_new_tokens={limit}", "lower it")
    return lambda answers: [min(0.0, (limit - span - len(answer.tokens)) / span)
                            for answer in answers]


def _of_format(given: Resources) -> Reward:
    section = given.section
    if not section.pattern:
        raise UserError(f"{section.out}.pattern=''", "is the form of no answer",
                        f"give a regular expression, or set {section.out}.rewards.format to 0")
    try:
        pattern = re.compile(section.pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"{section.out}.pattern={section.pattern!r}",
                        f"is no regular expression ({error})", "correct it") from None
    return lambda answers: [float(pattern.fullmatch(answer.text) is not None)
                            for answer in answers]


REWARDS: dict[str, Callable[[Resources], Reward]] = {
    "task": _of_task, "model": _of_model, "length": _of_length, "format": _of_format,
    "judge": lambda given: open_judge(given.section, given.judge, given.execution,
                                      given.mesh)}


class Rewards:
    """The weighted sum of rewards.

    Raises:
        UserError: a name is unknown, none has a weight, or one lacks what it needs.
    """

    def __init__(self, given: Resources):
        self._name, self._penalty = given.section.out, given.section.missing_end_penalty
        weights = given.section.rewards.to_dict()
        for name in weights:
            if name not in REWARDS:
                raise UserError(f"{self._name}.rewards.{name}", "there is no such reward",
                                f"choose among {', '.join(REWARDS)}")
        self._parts = {name: (weight, REWARDS[name](given))
                       for name, weight in weights.items() if weight}
        if not self._parts:
            raise UserError(f"{self._name}.rewards", "has no weight other than 0",
                            f"set {self._name}.rewards.task to 1")

    @property
    def is_task_alone(self) -> bool:
        """Whether a reward is a multiple of the task's own score."""
        return set(self._parts) == {"task"} and not self._penalty

    def __call__(self, answers: Sequence[Answer]) -> tuple[np.ndarray, dict[str, Any]]:
        """Rewards of answers, float64; and the mean of each part, as `reward/NAME`, with what a
        judge counted.

        Raises:
            UserError: a part gives another number of rewards than there are answers.
        """
        total = np.zeros(len(answers))
        means = {}
        for name, (weight, reward) in self._parts.items():
            values = np.asarray(reward(answers), np.float64)
            if values.shape != (len(answers),):
                raise UserError(f"{self._name}.rewards.{name}", f"gave an array of shape "
                                f"{values.shape} for {len(answers)} answers",
                                "return one number for each answer")
            total += weight * values
            finite = values[np.isfinite(values)]
            means[f"reward/{name}"] = float(finite.mean()) if len(finite) else float("nan")
            means |= reward.counts if isinstance(reward, Judge) else {}
        total -= self._penalty * np.array([answer.finish != STOP for answer in answers])
        return total, means
