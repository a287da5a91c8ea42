"""The interface of what answers prompts in bulk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from data.chat import Conversation, ask

Prompt = str | Conversation


class Reply(NamedTuple):
    """A model's answer.

    Attributes:
        text: the answer.
        fault: the reason of a failure, else empty.
        num_tokens: of the prompt and of the answer; None if unknown.
    """

    text: str
    fault: str = ""
    num_tokens: tuple[int, int] | None = None


class Responder(Protocol):
    """Answers prompts.

    Attributes:
        name: the model's name in records.
    """

    name: str

    def respond(self, prompts: Sequence[Prompt], seed: int,
                keep: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """One reply per prompt, in their order. Faults: ``truncated``, ``prompt_too_long``,
        ``rejected_<status>``, ``unreachable``.

        Args:
            prompts: conversations whose last message is the user's, or that message's text alone.
            keep: called with each prompt's index and its reply, as soon as there is one.
        """


def as_conversation(prompt: Prompt) -> Conversation:
    """A prompt as a conversation."""
    return ask(prompt) if isinstance(prompt, str) else prompt
