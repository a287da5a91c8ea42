"""What the engine is asked, and what it answers."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from core.errors import UserError
from model.generation.sampling import Sampling, is_whole

NUM_STOPS = 8       # stop tokens that a request may have
NUM_TOP = 20        # likeliest tokens that it may ask for
OVERLONG = ("refuse", "cut")

STOP, LENGTH, REFUSED, CANCELLED = "stop", "length", "refused", "cancelled"
FAILED = "failed"


class Budget(NamedTuple):
    """What a step of the engine does, before it looks at new, stopped and cancelled requests.

    Attributes:
        draw_tokens: tokens that are drawn in each slot.
        prefill_tokens: tokens of prompts after which no further call reads, so that a long one
            holds up the answers of others for a moment only; None reads all.
    """

    draw_tokens: int = 16
    prefill_tokens: int | None = None


DEFAULT_BUDGET = Budget()


class Guide(Protocol):
    """Follows one answer, and knows which tokens may come next, e.g. by a grammar."""

    def allowed(self) -> np.ndarray:
        """is_allowed_V of the next token; at least one is."""

    def take(self, token: int) -> None:
        """Adds a token to the answer."""


class RequestFailed(Exception):
    """Code that belongs to one request raised an exception, the cause of this one."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and how it is answered.

    Attributes:
        prompt: tokens, at least one.
        sampling: settings of the draws.
        stops: tokens that end the answer.
        stop_texts: texts that end it; they are no part of the answer's text.
        seed: of the draws, with the prompt and `sample`; modulo 2^32.
        sample: number among several answers to the same prompt and seed.
        overlong: what happens if prompt and answer exceed the engine's capacity: refuse, or cut
            the prompt, of which the first token and the newest ones stay.
        num_top: the likeliest tokens that are reported at each place, with their probabilities.
        adapter: place among the engine's adapters of the one that it is answered with; 0 is none.
        guide: restricts what is drawn; of this answer alone. With it or `num_top` the tokens of all
            slots are drawn one by one, each after a look by the host.

    Raises:
        UserError: the prompt is empty or holds what is no token, a stop text is empty, there are
            too many stop tokens or one that no model has, `seed`, `sample`, `adapter` or `num_top`
            is no such number, or `overlong` is another word.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[int, ...] = ()
    stop_texts: tuple[str, ...] = ()
    seed: int = 0
    sample: int = 0
    overlong: str = "refuse"
    adapter: int = 0
    num_top: int = dataclasses.field(default=0, repr=False)
    guide: Guide | None = dataclasses.field(default=None, repr=False)

    @property
    def is_close(self) -> bool:
        """Whether the host looks at each place of the answer."""
        return self.num_top > 0 or self.guide is not None

    def __post_init__(self):
        if not self.prompt:
            raise UserError("prompt", "has no token", "begin it with the tokenizer's bos")
        if not all(self.stop_texts):
            raise UserError("a stop text", "is empty, and would end every answer",
                            "leave it out")
        if len(self.stops) > NUM_STOPS:
            raise UserError(f"stops: {len(self.stops)} tokens", f"are more than {NUM_STOPS}",
                            "name fewer")
        # Arrays hold these: what they cannot is refused here, before a slot is given to it.
        if not all(map(is_whole, self.prompt)):
            raise UserError("prompt", "has tokens that are no whole numbers",
                            "encode it with the model's own tokenizer")
        if not all(is_whole(stop) and abs(stop) < 2**31 for stop in self.stops):
            raise UserError(f"stops={self.stops}", "must be whole numbers of 32 bits",
                            "name tokens of the model")
        if not is_whole(self.seed):
            raise UserError(f"seed={self.seed}", "must be a whole number", "choose another seed")
        if not (is_whole(self.sample) and 0 <= self.sample < 2**32):
            raise UserError(f"sample={self.sample}", "must be a whole number from 0 to 2^32 - 1",
                            "number the samples from 0 on")
        if not (is_whole(self.adapter) and self.adapter >= 0):
            raise UserError(f"adapter={self.adapter}", "must be a whole number from 0 on",
                            "name the adapter's place, or 0 for none")
        if not (is_whole(self.num_top) and 0 <= self.num_top <= NUM_TOP):
            raise UserError(f"num_top={self.num_top}", f"must be a whole number up to {NUM_TOP}",
                            "ask for fewer")
        if self.overlong not in OVERLONG:
            raise UserError(f"overlong={self.overlong!r}", f"is none of {', '.join(OVERLONG)}",
                            "choose one of them")


@dataclasses.dataclass
class Completion:
    """An answer, complete once it has a `finish`.

    Attributes:
        tokens: drawn tokens; the last one is the stop token if `finish` is so.
        logps: their log-probabilities under the model, in nats.
        finish: stop (a stop token or text was drawn), length (the limit was reached), refused (the
            prompt does not fit), cancelled, failed (see `Engine.step`); "" while it is drawn.
        text: of the tokens, without stop tokens; None if the engine has no `to_text`.
        num_cut: tokens of the prompt that were cut off.
        tops: of each token, the likeliest ones in its place with their log-probabilities, if the
            request asks for them.
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    logps: list[float] = dataclasses.field(default_factory=list)
    finish: str = ""
    text: str | None = None
    num_cut: int = 0
    tops: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
