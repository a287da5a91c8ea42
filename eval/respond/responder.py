"""What answers prompts in bulk, whatever is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """A model's answer; `fault` says why it is none, and is empty otherwise."""

    text: str
    fault: str = ""


class Responder(Protocol):
    """Answers prompts.

    Attributes:
        name: what records call the model.
    """

    name: str

    def respond(self, prompts: Sequence[str], seed: int) -> list[Reply]:
        """One reply per prompt, in their order. Faults: ``truncated``, ``prompt_too_long``,
        ``rejected_<status>``."""
