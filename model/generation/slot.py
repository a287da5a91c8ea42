"""What the host knows of the slots of an engine, and what it asks of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import xxhash

from model.generation.generate import Ask
from model.generation.requests import NUM_STOPS, Request
from model.generation.sampling import stack_sampling


@dataclasses.dataclass(eq=False)
class Slot:
    """A slot.

    Attributes:
        held_M: the tokens that it holds, its prompt's unread ones included; -1 behind them.
        length: how many these are.
        num_read: how many of them its cache has; its logits are of the next one.
        request: number of the request that it answers; None if it is idle.
        adapter: with which the tokens are read; see `Request`.
        last_used: time at which it was last filled or freed.
    """

    number: int
    held_M: np.ndarray
    length: int = 0
    num_read: int = 0
    request: int | None = None
    adapter: int = 0
    last_used: int = 0

    @property
    def is_reading(self) -> bool:
        """Whether a part of its prompt is not read."""
        return self.num_read < self.length

    def give(self, request: int, prompt: np.ndarray, num_read: int, adapter: int) -> None:
        """Makes the slot answer a request, whose prompt is read up to there."""
        self.hold(prompt, 0)
        self.request, self.num_read, self.adapter = request, num_read, adapter

    def hold(self, tokens: np.ndarray, start: int) -> None:
        """Makes the slot's tokens, all of them read, end with these, after its first `start`."""
        self.length = self.num_read = start + len(tokens)
        self.held_M[start:self.length] = tokens
        self.held_M[self.length:] = -1

    def free(self, time: int) -> None:
        """Makes the slot idle; what it has read stays for prompts that begin with it."""
        self.hold(self.held_M[:0], self.num_read)
        self.request, self.last_used = None, time


def ask_of(requests: Sequence[Request], num_rows: int) -> Ask:
    """What requests, at least one, ask of as many slots; padded to `num_rows` with the first."""
    padded = [*requests, *requests[:1] * (num_rows - len(requests))]
    stops_BS = np.full((num_rows, NUM_STOPS), -1, np.int32)
    for row, request in enumerate(padded):
        stops_BS[row, :len(request.stops)] = request.stops
    seed_B3 = np.array([_key_words(request) for request in padded], np.uint32)
    limits = [request.sampling.max_new_tokens for request in padded]
    return Ask(stack_sampling([request.sampling for request in padded]), seed_B3, stops_BS,
               np.array(limits, np.int32), np.zeros(num_rows, np.int32))


def _key_words(request: Request) -> tuple[int, int, int]:
    prompt = np.array(request.prompt, np.int64).tobytes()
    return request.seed % 2**32, xxhash.xxh32_intdigest(prompt), request.sample
