"""Answers of a model to prompts of tasks and files, with their tokens as they were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from align.finetune import open_tokenizer
from align.rl.answers import Answer
from align.rl.rollouts import Prompt, open_prompts, pick_prompts, sample_answers
from core.errors import UserError
from data.tokenizers.tokenizer import Tokenizer
from eval.tasks.task import Task
from model.directory import load_params, read_description
from model.families.registry import Params
from train.setup import Setup, make_setup


class Asked(NamedTuple):
    """Prompts for a model, and what its answers are drawn with.

    Attributes:
        source: the model's folder.
        setup: where and how it runs.
        tokenizer: the model's.
        tasks: those of the prompts, by name.
        prompts: all that there are.
        left_out: prompts that were left out, by reason.
    """

    source: Path
    setup: Setup
    tokenizer: Tokenizer
    tasks: Mapping[str, Task]
    prompts: Sequence[Prompt]
    left_out: Mapping[str, int]


def open_model(section: ConfigDict, mesh: ConfigDict, parents: Mapping[str, Path],
               split: str) -> Asked:
    """The prompts for the parent `model`, whose parameters are not read yet.

    Args:
        section: with the fields that `align.rl.rollouts` reads.
        split: train or test, of the tasks.

    Raises:
        UserError: the model does not chat, or there are fewer prompts than `num_prompts`.
    """
    source = parents["model"]
    described = read_description(source)
    if not described.chat:
        raise UserError(f"{section.out}.model={section.model!r}", "is a base model, which knows no "
                        "end of an answer", "name a model that align.sft wrote")
    setup, tokenizer = make_setup(described.config, section, mesh), open_tokenizer(source, section)
    tasks, prompts, left_out = open_prompts(section, parents.get("corpus"), tokenizer,
                                            num_needed=section.num_prompts, split=split)
    return Asked(source, setup, tokenizer, tasks, prompts, left_out)


def draw(asked: Asked, section: ConfigDict, number: int) -> tuple[Params, list[Answer]]:
    """The model's parameters, and `num_samples` answers to each of `num_prompts` prompts.

    Args:
        number: which of the prompts are taken: those after `number * num_prompts` in passes over
            all of them, each shuffled differently.

    Returns:
        The answers to a prompt are next to each other.
    """
    params = load_params(asked.source, asked.setup.config, asked.setup.mesh)
    with jax.set_mesh(asked.setup.mesh):
        return params, sample_answers(
            params, pick_prompts(asked.prompts, section.num_prompts, number, section.seed), number,
            setup=asked.setup, section=section, tokenizer=asked.tokenizer)
