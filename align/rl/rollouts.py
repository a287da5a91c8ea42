"""Rollouts: prompts, their sampled answers, and the rows that an update reads.

An answer's tokens are those that were drawn, behind those of the prompt: no text is encoded again.
What is sampled follows from the seed, the iteration and the parameters alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from ml_collections import ConfigDict

from align.losses.preference import at_temperature
from align.rl.answers import Answer
from core.errors import UserError
from data.batch import Batch, make_row, stack
from data.chat import Conversation, render_prompt
from data.layouts.faults import Faults
from data.tokenizers.tokenizer import Tokenizer
from eval.tasks.registry import open_tasks
from eval.tasks.task import Task, question_of
from model.families.registry import Params
from model.generation.engine import Engine
from model.generation.requests import Completion, Request
from model.generation.sampling import Sampling
from model.generation.weights import unstack
from train.setup import Setup
from train.signals import leave_if_stopping

# Words of a seed, so that draws for different purposes are independent.
SAMPLING, ORDER = 1, 2


class Prompt(NamedTuple):
    """A question to be answered.

    Attributes:
        question: the solved conversation, by which answers are scored.
        tokens: of the prompt.
    """

    question: Conversation
    tokens: tuple[int, ...]


def open_prompts(section: ConfigDict, corpus: Path | None, tokenizer: Tokenizer, *,
                 num_needed: int, split: str = "train"
                 ) -> tuple[dict[str, Task], list[Prompt], dict[str, int]]:
    """The tasks by name, their prompts of a split, and how many were left out by reason.

    Args:
        num_needed: the fewest prompts that will do.

    Raises:
        UserError: there are fewer.
    """
    room = section.row_length + 1 - section.max_new_tokens
    if room < 1:
        raise UserError(f"{section.out}.row_length={section.row_length}",
                        f"has no room for an answer of max_new_tokens={section.max_new_tokens}",
                        "raise it, or lower max_new_tokens")
    tasks, prompts, faults = {}, [], Faults(section.out)
    for task, count in open_tasks(section.tasks, corpus, section.inputs):
        tasks[task.name] = task
        for number, question in enumerate(task.conversations(split, count, section.seed), 1):
            tokens = tuple(render_prompt(question_of(question), tokenizer))
            if len(tokens) > room:
                faults.add("too_long", f"{task.name}, question {number}", f"has {len(tokens)} "
                           f"tokens, and {room} fit beside an answer")
            else:
                prompts.append(Prompt(question, tokens))
    faults.report()
    if len(prompts) < num_needed:
        raise UserError(f"{section.out}.tasks: {len(prompts)} prompts", f"are fewer than the "
                        f"{num_needed} that are asked at once",
                        "raise a count in tasks, or lower num_prompts")
    return tasks, prompts, dict(faults.counts)


def pick_prompts(prompts: Sequence[Prompt], count: int, iteration: int,
                 seed: int) -> list[Prompt]:
    """The prompts of an iteration: the next ones of passes that are shuffled differently."""
    passes = grain.MapDataset.source(range(len(prompts))).seed(seed).shuffle().repeat()
    first = iteration * count
    return [prompts[int(passes[place])] for place in range(first, first + count)]


def sample_answers(params: Params, prompts: Sequence[Prompt], iteration: int, *, setup: Setup,
                   section: ConfigDict, tokenizer: Tokenizer) -> list[Answer]:
    """`num_samples` answers to each prompt, next to each other.

    The logits are divided by the temperature in the model, so that the log-probabilities are those
    that the trainer computes. A signal to stop ends it with `train.signals.Interrupted`.

    Args:
        params: the policy's, whole or adapted.
    """
    params, config = at_temperature(params, setup.config, section.temperature)
    num_answers = len(prompts) * section.num_samples
    engine = Engine(unstack(params, setup.execution), config, setup.execution,
                    num_slots=min(section.run.num_slots, num_answers),
                    capacity=section.row_length + 1, to_text=tokenizer.text_of)
    seed = int(np.random.SeedSequence([section.seed, SAMPLING, iteration]).generate_state(1)[0])
    sampling = Sampling(section.max_new_tokens)
    repeated = [prompt for prompt in prompts for _ in range(section.num_samples)]
    # Numbered through, so that a prompt that comes twice gets other answers.
    numbers = [engine.submit(Request(prompt.tokens, sampling, tokenizer.stops, seed=seed,
                                     sample=sample)) for sample, prompt in enumerate(repeated)]
    finished: dict[int, Completion] = {}
    while engine.is_running:
        leave_if_stopping()
        finished |= {number: completion for number, completion in engine.step().items()
                     if completion.finish}
    return [Answer(prompt.question, prompt.tokens, one.tokens, one.logps, one.text, one.finish)
            for prompt, one in zip(repeated, (finished[number] for number in numbers))]


def make_rows(answers: Sequence[Answer], row_length: int) -> Batch:
    """A row for each answer: its prompt and its tokens, which have weight 1, then padding."""
    rows = []
    for answer in answers:
        tokens, weights, segments = np.zeros((3, row_length + 1), np.int32)
        start, end = len(answer.prompt), len(answer.prompt) + len(answer.tokens)
        tokens[:start], tokens[start:end] = answer.prompt, answer.tokens
        weights[start:end], segments[:end] = 1, 1
        rows.append(make_row(tokens, weights, segments))
    return stack(rows)


def sampled_logps(answers: Sequence[Answer], row_length: int) -> np.ndarray:
    """The sampler's log-probabilities in the places of `make_rows`' targets: logp_BL."""
    logp_BL = np.zeros((len(answers), row_length), np.float32)
    for row, answer in enumerate(answers):
        start = len(answer.prompt) - 1
        logp_BL[row, start:start + len(answer.tokens)] = answer.logps
    return logp_BL


def pick_minibatch(num_examples: int, section: ConfigDict, iteration: int,
                   update: int) -> np.ndarray:
    """Numbers of the answers, or pairs, of an update: a part of its epoch's permutation."""
    epoch, part = divmod(update, section.num_minibatches)
    order = np.random.default_rng([section.seed, ORDER, iteration, epoch]).permutation(
        num_examples)
    return order.reshape(section.num_minibatches, -1)[part]
