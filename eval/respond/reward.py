"""A reward model: scores of answers, for evaluation, best-of-n and reinforcement learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core.artifacts import read_lineage
from core.errors import UserError
from core.progress import log
from data.answers import cut_prompt, lay_out_answers, render_answer
from data.chat import Conversation
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import load_params, read_description
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.scalar import score_last
from model.parallel.sharding import constrain

SHORTEST_BUCKET = 64    # tokens of a row; others are twice as long, and so on


def answer_scores(params: Params, tokens_BL: jax.Array, positions_BL: jax.Array,
                  segment_ids_BL: jax.Array, *, config: ModelConfig,
                  execution: Execution) -> jax.Array:
    """The score of each row's text: score_B in float32; see `model.heads.scalar.score_last`."""
    x_BLD = forward(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                    execution=execution)
    return score_last(params, x_BLD, segment_ids_BL, config=config)


@partial(jax.jit, static_argnames=("config", "execution"))
def _fetched_scores(params: Params, rows: Any, *, config: ModelConfig,
                    execution: Execution) -> jax.Array:
    score_B = answer_scores(params, *rows, config=config, execution=execution)
    return constrain(score_B, "B", {"B": None})     # every process needs all


def score_texts(params: Params, texts: Sequence[Sequence[int]], *, config: ModelConfig,
                execution: Execution, batch_size: int, max_length: int,
                place: Callable[[Any], Any] = lambda rows: rows) -> np.ndarray:
    """Scores of token rows, in their order.

    Rows are padded to powers of two, so that a few programs serve all lengths.

    Args:
        max_length: of a row; no text is longer.
        place: puts a batch on the devices, and may raise to end the measurement.

    Returns:
        float32, one for each text.
    """
    scores = np.zeros(len(texts), np.float32)
    order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    for first in range(0, len(order), batch_size):
        picked = order[first:first + batch_size]
        length = SHORTEST_BUCKET
        while length < len(texts[picked[0]]):
            length *= 2
        rows = lay_out_answers([texts[number] for number in picked]
                               + [()] * (batch_size - len(picked)), min(length, max_length))
        scores[picked] = jax.device_get(_fetched_scores(
            params, place(rows), config=config, execution=execution))[:len(picked)]
    return scores


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model in memory.

    Attributes:
        params: parameters.
        config: the architecture.
        execution: how it runs here.
        tokenizer: the tokenizer that it was trained with.
        context_tokens: the longest text that it reads.
        name: for records: its folder's name and fingerprint.
    """

    params: Params
    config: ModelConfig
    execution: Execution
    tokenizer: Tokenizer
    context_tokens: int
    name: str = ""

    def score(self, conversations: Sequence[Conversation], *,
              batch_size: int = 16) -> np.ndarray:
        """Scores of the last answers of conversations, float32.

        Where a conversation is longer than `context_tokens`, the oldest part of it is left out,
        and how many are so is logged.

        Raises:
            UserError: a conversation does not end with an answer, or its answer alone is longer.
        """
        rendered = [render_answer(conversation, self.tokenizer,
                                  is_encoder=self.config.family == "encoder")
                    for conversation in conversations]
        texts, num_cut = [], 0
        for number, answer in enumerate(rendered, start=1):
            cut = cut_prompt([answer], self.context_tokens)
            if cut is None:
                raise UserError(f"answer {number}", f"is longer than the {self.context_tokens} "
                                f"tokens that {self.name or 'the model'} reads", "leave it out")
            num_cut += len(cut[0].tokens) < len(answer.tokens)
            texts.append(cut[0].tokens)
        if num_cut:
            log(f"warning: {num_cut} of {len(texts)} conversations are scored without their "
                f"oldest part: {self.name or 'the model'} reads {self.context_tokens} tokens")
        return score_texts(self.params, texts, config=self.config, execution=self.execution,
                           batch_size=batch_size, max_length=self.context_tokens)


def load_reward(folder: Path, execution: Execution, mesh: Mesh | None = None) -> RewardModel:
    """Opens the directory of a reward model.

    Args:
        mesh: to shard the parameters over; without one they are on one device.

    Raises:
        UserError: it is no model directory, is damaged, or a model without a scalar head.
    """
    folder = Path(folder)
    described = read_description(folder)
    if not described.config.score_head:
        raise UserError(str(folder), "is no reward model", "name a folder that align.reward wrote")
    return RewardModel(load_params(folder, described.config, mesh), described.config, execution,
                       load_tokenizer(folder / "tokenizer"), described.context_tokens,
                       f"{folder.name}@{read_lineage(folder)['fingerprint']}")
