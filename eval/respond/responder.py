"""The interface of what answers prompts in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """A model's answer; `fault` is the reason of a failure, else empty."""

    text: str
    fault: str = ""


class Responder(Protocol):
    """Answers prompts.

    Attributes:
        name: the model's name in records.
    """

    name: str

    def respond(self, prompts: Sequence[str], seed: int) -> list[Reply]:
        """One reply per prompt, in their order. Faults: ``truncated``, ``prompt_too_long``,
        ``rejected_<status>``."""
