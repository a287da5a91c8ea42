"""Answers of a model to prompts of tasks and files, with their tokens as they were drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from align.finetune import open_tokenizer
from align.rl.rollouts import Answer, open_prompts, pick_prompts, sample_answers
from core.errors import UserError
from data.tokenizers.tokenizer import Tokenizer
from eval.tasks.task import Task
from model.directory import load_params, read_description
from model.families.registry import Params
from train.setup import Setup, make_setup


class Sampled(NamedTuple):
    """Answers, and what they were drawn with.

    Attributes:
        answers: `num_samples` to each prompt, next to each other.
        params: the model's.
        setup: where and how it runs.
        tokenizer: the model's.
        tasks: those of the prompts, by name.
        left_out: prompts that were left out, by reason.
    """

    answers: list[Answer]
    params: Params
    setup: Setup
    tokenizer: Tokenizer
    tasks: Mapping[str, Task]
    left_out: Mapping[str, int]


def sample(section: ConfigDict, mesh: ConfigDict, parents: Mapping[str, Path], *, split: str,
           round_: int) -> Sampled:
    """Samples answers of the parent `model`.

    Args:
        section: with the fields that `align.rl.rollouts` reads.
        split: train or test, of the tasks.
        round_: which of the prompts are taken: those after `round_ * num_prompts` in passes over
            all of them, each shuffled differently.

    Raises:
        UserError: the model does not chat, or there are fewer prompts than `num_prompts`.
    """
    source = parents["model"]
    described = read_description(source)
    if not described.chat:
        raise UserError(f"{section.out}.model={section.model!r}", "is a base model, which knows no "
                        "end of an answer", "name a model that align.sft wrote")
    setup, tokenizer = make_setup(described.config, section, mesh), open_tokenizer(source, section)
    tasks, prompts, left_out = open_prompts(section, parents.get("corpus"), tokenizer, split)
    params = load_params(source, setup.config, setup.mesh)
    with jax.set_mesh(setup.mesh):
        answers = sample_answers(params, pick_prompts(prompts, section, round_), round_,
                                 setup=setup, section=section, tokenizer=tokenizer)
    return Sampled(answers, params, setup, tokenizer, tasks, left_out)
