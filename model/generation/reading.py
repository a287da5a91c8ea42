"""How prompts come into slots: which slot each gets, what need not be read again, and in what
pieces the rest is read. Decided by the host; the engine does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from model.generation.cache import PIECE
from model.generation.requests import Request
from model.generation.slot import Slot

PIECES = (32, 128, PIECE)   # tokens of a prompt that a call reads, padded to one of these lengths
GROUP_SIZE = 8              # prompts that a call reads where there is no limit, or one, or as many
                            # as there are slots
MIN_SHARED_TOKENS = 16      # a shorter beginning of a prompt costs more to copy than to read again
# Tokens whose products take about as long as it takes to read the weights, once a call: much
# arithmetic for little memory, as on a GPU, makes it many.
CALL_TOKENS = {"cpu": 32}
MANY_CALL_TOKENS = 256


class Placed(NamedTuple):
    """A prompt in its slot.

    Attributes:
        num_read: tokens of it that need not be read.
        source: another slot that holds these, to be copied; None if the slot does itself.
    """

    slot: Slot
    num_read: int
    source: Slot | None


class Shape(NamedTuple):
    """The shape of a call that reads: prompts, and tokens of each."""

    num_rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        """Tokens that a call computes, padding included."""
        return self.num_rows * self.length


def list_shapes(num_slots: int, limit: int | None) -> list[Shape]:
    """The shapes that are compiled.

    Args:
        limit: tokens that are read before the next ones are drawn; None is no limit. With one there
            are fewer shapes: many short pieces, or one of any length.
    """
    if limit is None:
        return [Shape(num_rows, length) for length in PIECES
                for num_rows in sorted({num_slots, min(GROUP_SIZE, num_slots), 1})]
    lengths = [length for length in PIECES if length <= limit] or PIECES[:1]
    many = Shape(min(num_slots, max(1, limit // lengths[0])), lengths[0])
    return sorted({many, *(Shape(1, length) for length in lengths)})


def choose_shape(missing: Sequence[int], shapes: Sequence[Shape]) -> Shape:
    """The shape in which all that is missing would be read at the least cost, padding included.

    Args:
        missing: tokens that each prompt still needs; a call takes the first prompts.
    """
    call_tokens = CALL_TOKENS.get(jax.default_backend(), MANY_CALL_TOKENS)

    def cost(shape: Shape) -> int:
        pieces = [-(-num // shape.length) for num in missing]
        num_calls = max(*pieces, -(-sum(pieces) // shape.num_rows))
        return num_calls * (shape.num_tokens + call_tokens)

    return min(shapes, key=cost)


def place_prompts(waiting: deque[int], requests: Mapping[int, Request], slots: Sequence[Slot], *,
                  can_rewind: bool) -> list[Placed]:
    """Gives waiting requests to idle slots, each with the longest beginning that a slot holds.

    A prompt that shares more with one that is not read yet waits until it is, so that several
    answers to one prompt need it to be read once; a slot is kept for it.

    Args:
        waiting: their numbers, of which those that are placed are taken out.
        slots: all of them, which then hold the prompts.
        can_rewind: whether a slot can end earlier than it does.
    """
    placed: list[Placed] = []
    idle = [slot for slot in slots if slot.request is None]
    is_new_B = np.zeros(len(slots), bool)
    later: list[int] = []
    while waiting and len(later) < len(idle):       # which they will have next
        number = waiting.popleft()
        request = requests[number]
        prompt = np.array(request.prompt, np.int32)
        shared_B, readable_B = _shared(slots, prompt, request.adapter, can_rewind)
        readable_B[is_new_B] = 0
        source = slots[int(np.argmax(readable_B))]
        shared = int(readable_B[source.number])
        worthwhile = min(MIN_SHARED_TOKENS, len(prompt))
        if shared < worthwhile:
            source, shared = None, 0
        # Of what is copied anyway every further token is worth to wait for.
        if any(slot.is_reading and num >= shared + (1 if slot is source else worthwhile)
               for slot, num in zip(slots, shared_B)):
            later.append(number)
            continue
        slot = source if source in idle else min(idle, key=lambda slot: slot.last_used)
        idle.remove(slot)
        if source is not None and shared == len(prompt) and source.num_read > shared:
            shared -= 1     # its logits are those after other tokens: the last is read again
        placed.append(Placed(slot, shared, None if source is slot else source))
        slot.give(number, prompt, shared, request.adapter)
        is_new_B[slot.number] = True
    waiting.extendleft(reversed(later))
    return placed


def _shared(slots: Sequence[Slot], prompt: np.ndarray, adapter: int,
            can_rewind: bool) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens each slot has in common with the beginning of a prompt, and how many of
    these need not be read again."""
    held_BL = np.stack([slot.held_M[:len(prompt)] for slot in slots])
    differ_BL = held_BL != prompt[None]
    shared_B = np.where(differ_BL.any(1), differ_BL.argmax(1), len(prompt))
    shared_B[[slot.adapter != adapter for slot in slots]] = 0
    num_read_B = np.array([slot.num_read for slot in slots])
    if can_rewind:
        return shared_B, np.minimum(shared_B, num_read_B)
    return shared_B, np.where(shared_B >= num_read_B, num_read_B, 0)
