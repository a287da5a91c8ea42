"""Multiple choice by log-likelihood: the likeliest continuation is the model's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from data.batch import Batch, pack_examples, stack
from eval.measures.likelihood import batch_logps
from eval.respond.loaded import LoadedModel, warn_beyond_context
from eval.respond.local import make_prompts
from eval.tasks.task import Choice
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params


@dataclasses.dataclass(frozen=True)
class ChoiceScore:
    """A model's scores of the choices of one question.

    Attributes:
        logps_nats: sum of the log-probabilities of each choice's tokens.
        num_bytes: UTF-8 bytes of each choice.
        answer: index of the right choice.
    """

    logps_nats: tuple[float, ...]
    num_bytes: tuple[int, ...]
    answer: int

    @property
    def is_right(self) -> bool:
        """Whether the right choice has the highest log-probability (`acc` of lm-eval)."""
        return int(np.argmax(self.logps_nats)) == self.answer

    @property
    def is_right_per_byte(self) -> bool:
        """The same per byte, so that length does not decide (`acc_bytes` of lm-eval)."""
        per_byte = np.asarray(self.logps_nats) / np.asarray(self.num_bytes)
        return int(np.argmax(per_byte)) == self.answer


@partial(jax.jit, static_argnames=("config", "execution", "max_segments"))
def _segment_logps(params: Params, batch: Batch, *, config: ModelConfig, execution: Execution,
                   max_segments: int) -> jax.Array:
    """Sum of weighted log-probabilities of each packed example: logp_BS, S = segment."""
    logp_BL = batch_logps(params, batch, config=config, execution=execution)
    logp_BL = logp_BL * batch.loss_weights_BL
    one_hot_BLS = jax.nn.one_hot(batch.segment_ids_BL - 1, max_segments)
    return jnp.einsum("BL,BLS->BS", logp_BL, one_hot_BLS)


def continuation_logps(model: LoadedModel,
                       examples: Sequence[tuple[Sequence[int], Sequence[float]]], *,
                       row_length: int, batch_size: int) -> np.ndarray:
    """Sum of log-probabilities, in nats, of the weighted tokens of each example.

    Examples share rows, separated by their segments.

    Raises:
        UserError: an example is longer than a row.
    """
    rows, places = _pack_in_order(examples, row_length)
    warn_beyond_context(model, "questions with a choice", [len(ids) - 1 for ids, _ in examples])
    max_segments = max(segment for _, segment in places) + 1
    empty = jax.tree.map(np.zeros_like, rows[0])
    rows = rows + [empty] * (-len(rows) % batch_size)
    sums = []
    for i in range(0, len(rows), batch_size):
        model.between_batches()
        sums.append(jax.device_get(_segment_logps(
            model.params, stack(rows[i:i + batch_size]), config=model.config,
            execution=model.execution, max_segments=max_segments)))
    logp_BS = np.concatenate(sums)
    return np.array([logp_BS[row, segment] for row, segment in places])


def _pack_in_order(examples: Sequence[tuple[Sequence[int], Sequence[float]]],
                   row_length: int) -> tuple[list[Batch], list[tuple[int, int]]]:
    """Packs examples in order; returns the rows, and each example's row and segment."""
    rows, places, pending, size = [], [], [], 0
    for example in examples:
        if len(example[0]) > row_length + 1:
            raise UserError(f"row_length={row_length}",
                            f"does not hold a question and choice of {len(example[0])} tokens",
                            "set a larger row_length, or leave the task out of `tasks`")
        if size + len(example[0]) > row_length + 1:
            rows += pack_examples(pending, row_length)[0]
            pending, size = [], 0
        places.append((len(rows), len(pending)))
        pending.append(example)
        size += len(example[0])
    return rows + pack_examples(pending, row_length)[0], places


def score_choices(model: LoadedModel, questions: Sequence[Choice], *, row_length: int,
                  batch_size: int) -> list[ChoiceScore]:
    """Scores every choice of every question as the continuation of its prompt."""
    prompts = make_prompts(model, [q.question for q in questions])
    examples = []
    for question, prompt in zip(questions, prompts):
        for choice in question.choices:
            ids = model.tokenizer.encode(choice if model.chat else f" {choice}")
            examples.append(([*prompt, *ids], [0.0] * len(prompt) + [1.0] * len(ids)))
    logps = iter(continuation_logps(model, examples, row_length=row_length,
                                    batch_size=batch_size))
    return [ChoiceScore(tuple(float(next(logps)) for _ in question.choices),
                        tuple(len(choice.encode()) for choice in question.choices),
                        question.answer) for question in questions]
