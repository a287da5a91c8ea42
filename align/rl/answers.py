"""A sampled answer, as rewards and updates read it."""

from __future__ import annotations

from typing import NamedTuple

from data.chat import Conversation


class Answer(NamedTuple):
    """A sampled answer.

    Attributes:
        question: the solved conversation that it answers.
        prompt: its tokens.
        tokens: that were drawn, the one that ends the answer included.
        logps: their log-probabilities in nats by the sampler, at the sampling temperature.
        text: without that end.
        finish: see `model.generation.requests.Completion`.
    """

    question: Conversation
    prompt: tuple[int, ...]
    tokens: list[int]
    logps: list[float]
    text: str
    finish: str
