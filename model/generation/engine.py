"""The engine: answers requests in slots of one batch, which start and end independently.

    engine = Engine(unstack(params, execution), config, execution, num_slots=16, capacity=1024)
    completions = engine.run([Request(prompt, Sampling(), stops=(2,)) for prompt in prompts])

or, for answers as they come, `submit`, `step` until nothing `is_running`, and `cancel`. A request's
tokens are a function of itself: neither the other requests nor its slot, the number of slots or the
order of arrival change them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params
from model.generation.cache import layer_capacity
from model.generation.generate import (
    Drawn,
    Slots,
    Top,
    copy,
    decode,
    make_slots,
    mark_seen,
    place,
    prefill,
    rank,
    resize,
    rewind,
    start,
    stop,
)
from model.generation.reading import Shape, choose_shape, list_shapes, place_prompts
from model.generation.requests import (
    CANCELLED,
    DEFAULT_BUDGET,
    FAILED,
    LENGTH,
    NUM_STOPS,
    REFUSED,
    STOP,
    Budget,
    Completion,
    Request,
    RequestFailed,
)
from model.generation.sampling import Sampling
from model.generation.slot import Slot, ask_of
from model.generation.speculative import (
    DraftModel,
    Speculation,
    decode_drafted,
    make_draft_state,
    prefill_draft,
    start_draft,
)
from model.layers.embed import check_length

SMALLEST_SIZE = 256     # of a slot's cache; it doubles when a request needs more


class Engine:
    """Slots in which requests are answered.

    Args:
        params: see `model.generation.weights.unstack` and `add_adapters`.
        num_slots: requests that are answered at once.
        capacity: tokens of prompt and answer of a request.
        budget: what a step does.
        to_text: text of tokens, without special ones; needed for stop texts.
        speculation: how tokens are drafted; None drafts none.

    Attributes:
        counts: tokens `read`, `reused` and `drawn`, with speculation `drafted` and of these
            `accepted`; requests `refused`, `cut` and `cancelled`.

    Raises:
        UserError: a number breaks a rule, the capacity exceeds the model's table of positions,
            the draft model has another vocabulary, or there are adapters where tokens are drafted.
    """

    def __init__(self, params: Params, config: ModelConfig, execution: Execution, *,
                 num_slots: int, capacity: int, budget: Budget = DEFAULT_BUDGET,
                 to_text: Callable[[Sequence[int]], str] | None = None,
                 speculation: Speculation | None = None):
        sizes = dict(num_slots=(num_slots, 1), capacity=(capacity, 2),
                     draw_tokens=(budget.draw_tokens, 1),
                     prefill_tokens=(budget.prefill_tokens, 1))
        for name, (size, least) in sizes.items():
            if size is not None and size < least:
                raise UserError(f"{name}={size}", f"must be at least {least}",
                                f"choose another {name}")
        self._num_adapters = _count_adapters(params)
        if speculation is not None and self._num_adapters:
            raise UserError("adapters", "are not known where tokens are drafted",
                            "make the engine without speculation")
        check_length(config, capacity)
        self._params, self._bound = params, {"config": config, "execution": execution}
        self._capacity, self._budget = capacity, budget
        self._shapes = list_shapes(num_slots, budget.prefill_tokens)
        self._piece = max(shape.length for shape in self._shapes)
        self._to_text = to_text
        self._held_BM = np.full((num_slots, capacity), -1, np.int32)
        self._slots = [Slot(number, held_M) for number, held_M in enumerate(self._held_BM)]
        self._all_BV = jnp.ones((num_slots, config.V), bool)
        self._size = min(capacity, SMALLEST_SIZE)
        self._state = make_slots(config, execution, num_slots, self._size, num_stops=NUM_STOPS,
                                 piece=self._piece)
        self._speculation, self._can_rewind = speculation, self._rewinds(config)
        if speculation is not None:
            self._state = place(self._state.replace(draft=make_draft_state(
                speculation, config, execution, num_slots, self._size, piece=self._piece)))
            if isinstance(speculation, DraftModel):
                self._can_rewind &= self._rewinds(speculation.config)
        self._waiting: deque[int] = deque()
        self._requests: dict[int, Request] = {}
        self._completions: dict[int, Completion] = {}
        self._faults: deque[Exception] = deque()
        self._num_submitted = self._clock = 0
        self.counts: Counter[str] = Counter()

    @property
    def is_running(self) -> bool:
        """Whether a request is not finished."""
        return bool(self._completions)

    @property
    def num_busy(self) -> int:
        """Slots in which a request is answered."""
        return sum(slot.request is not None for slot in self._slots)

    @property
    def num_waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    def warm_up(self) -> None:
        """Compiles what requests need of an engine without speculation; before the first one."""
        num_slots, none = len(self._slots), self._rows([])
        sizes = [min(self._capacity, SMALLEST_SIZE)]
        while sizes[-1] < self._capacity:
            sizes.append(min(2 * sizes[-1], self._capacity))
        for size in sizes:
            self._resize(size)
            for shape in self._shapes:
                self._read([], shape)
            self._state = rewind(self._state, none, *[self._column([])] * 3)
            self._state = copy(self._state, none, none, 0)
            self._state = stop(self._state, none)
            self._state = mark_seen(self._state, 0, np.zeros(self._bound["config"].V, bool))
            self._state = start(self._state, none, ask_of([Request((0,), Sampling())],
                                                          num_slots))
            for is_close in (False, True):      # none draws, as all slots are idle
                self._decode([], num_slots, 1, is_close=is_close)
            for other in sizes:
                if not size // 4 < other <= size:
                    self._resized(other)
        self._resize(sizes[0])

    def submit(self, request: Request) -> int:
        """Queues a request; returns its number.

        Raises:
            UserError: it has stop texts and the engine no `to_text`, or a token or an adapter that
                the model does not have, or asks of speculation what that does not know.
        """
        num_tokens = self._bound["config"].V
        if not 0 <= min(request.prompt) <= max(request.prompt) < num_tokens:
            raise UserError("prompt", f"has tokens outside the vocabulary of {num_tokens}",
                            "encode it with the model's own tokenizer")
        if request.adapter > self._num_adapters:
            raise UserError(f"adapter={request.adapter}", f"the engine has {self._num_adapters}",
                            "number them from 1 on")
        if request.stop_texts and self._to_text is None:
            raise UserError("stop texts", "need an engine that knows the text of tokens",
                            "make it with to_text")
        if self._speculation is not None and request.is_close:
            raise UserError("a guide, or the likeliest tokens", "are not known where tokens are "
                            "drafted", "make the engine without speculation")
        number, self._num_submitted = self._num_submitted, self._num_submitted + 1
        self._completions[number] = Completion()
        room = self._capacity - request.sampling.max_new_tokens
        if room < 1 or (len(request.prompt) > room and request.overlong == "refuse"):
            self._completions[number].finish = REFUSED
            self.counts["refused"] += 1
        elif num_cut := max(0, len(request.prompt) - room):
            kept = request.prompt[:1] + request.prompt[num_cut + 1:]
            request = dataclasses.replace(request, prompt=kept)
            self._completions[number].num_cut = num_cut
            self.counts["cut"] += 1
        self._requests[number] = request
        self._waiting.append(number)
        return number

    def cancel(self, number: int) -> None:
        """Ends a request; its answer so far comes with the next `step`. A finished one is left."""
        if number in self._completions and not self._completions[number].finish:
            self._completions[number].finish = CANCELLED
            self.counts["cancelled"] += 1

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers requests; completions come in their order."""
        numbers = [self.submit(request) for request in requests]
        finished: dict[int, Completion] = {}
        while self.is_running:
            finished |= {number: completion for number, completion in self.step().items()
                         if completion.finish}
        return [finished[number] for number in numbers]

    def step(self) -> dict[int, Completion]:
        """Admits what fits and draws a chunk in every busy slot.

        Returns:
            The requests whose completions changed, by their number; those that are finished come
            here for the last time.

        Raises:
            RequestFailed: `to_text` or a guide raised an exception. Its request has failed and its
                slot is idle; the others go on, and what is finished comes with the next call.
        """
        changed = self._end_undrawn()
        self._admit()
        if busy := [slot for slot in self._slots
                    if slot.request is not None and not slot.is_reading]:
            changed |= self._draw(busy)
        if self._faults:
            raise RequestFailed from self._faults.popleft()
        finished = [number for number in changed if self._completions[number].finish]
        result = {number: self._completions[number] for number in changed}
        for number in finished:
            del self._completions[number], self._requests[number]
        return result

    def _end_undrawn(self) -> set[int]:
        """Frees slots of cancelled requests; returns their numbers and those of refused ones."""
        ended = {number for number, completion in self._completions.items() if completion.finish}
        for number in ended:
            with self._contained(number):
                self._add_text(number)
        self._waiting = deque(number for number in self._waiting if number not in ended)
        self._free([slot for slot in self._slots if slot.request in ended], are_active=True)
        return ended

    def _free(self, slots: Sequence[Slot], *, are_active: bool = False) -> None:
        """Makes slots idle; what they hold stays for prompts that begin with it.

        Args:
            are_active: whether they are still drawn in.
        """
        if are_active and slots:
            self._state = stop(self._state, self._rows(slots))
        for slot in slots:
            slot.free(self._tick())

    def _admit(self) -> None:
        """Fills idle slots, reads their prompts within the budget, and begins answers."""
        left = self._budget.prefill_tokens or math.inf
        while left > 0:
            self._place()
            reading = sorted((slot for slot in self._slots if slot.is_reading),
                             key=lambda slot: slot.last_used)
            if not reading:
                return
            shape = choose_shape([slot.length - slot.num_read for slot in reading], self._shapes)
            self._resize(0)
            self._read(reading[:shape.num_rows], shape)
            self._start([slot for slot in reading if not slot.is_reading])
            left -= shape.num_tokens

    def _place(self) -> None:
        """Gives waiting requests to idle slots."""
        placed = place_prompts(self._waiting, self._requests, self._slots,
                               can_rewind=self._can_rewind)
        if not placed:
            return
        if copied := [one for one in placed if one.source is not None]:
            # No slot that is new here is a source, so that their order does not matter.
            self._state = copy(self._state, self._rows([one.source for one in copied]),
                               self._rows([one.slot for one in copied]), len(copied))
        slots = [one.slot for one in placed]
        for slot in slots:
            slot.last_used = self._tick()
        newest = [slot.held_M[slot.num_read - 1] if slot.num_read else -1 for slot in slots]
        self._state = rewind(self._state, self._rows(slots),
                             self._column([slot.num_read for slot in slots]),
                             self._column(newest), self._column([slot.adapter for slot in slots]))
        self.counts["reused"] += sum(slot.num_read for slot in slots)
        self._start([slot for slot in slots if not slot.is_reading])

    def _read(self, slots: Sequence[Slot], shape: Shape) -> None:
        """Reads the next piece of the prompts of slots, as many as the shape has rows at most."""
        rows_P = np.full(shape.num_rows, len(self._slots), np.int32)
        tokens_PL, count_P = np.zeros(shape, np.int32), np.zeros(shape.num_rows, np.int32)
        for row, slot in enumerate(slots):
            piece = slot.held_M[slot.num_read:min(slot.num_read + shape.length, slot.length)]
            rows_P[row], count_P[row] = slot.number, len(piece)
            tokens_PL[row, :len(piece)] = piece
            slot.num_read += len(piece)
        self.counts["read"] += int(count_P.sum())
        self._state = prefill(self._params, self._state, rows_P, tokens_PL, count_P, **self._bound)
        if isinstance(self._speculation, DraftModel):
            self._state = prefill_draft(self._speculation, self._state, rows_P, tokens_PL, count_P,
                                        execution=self._bound["execution"])

    def _start(self, slots: Sequence[Slot]) -> None:
        """Begins the answers of requests whose prompts are read."""
        if not slots:
            return
        for slot in slots:
            if self._requests[slot.request].sampling.repetition_penalty != 1:
                seen_V = np.zeros(self._state.seen_BV.shape[1], bool)
                seen_V[slot.held_M[:slot.length]] = True
                self._state = mark_seen(self._state, slot.number, seen_V)
        ask = ask_of([self._requests[slot.request] for slot in slots], len(self._slots))
        self._state = start(self._state, self._rows(slots), ask)
        if self._speculation is not None:
            rows = self._rows(slots)
            self._state = start_draft(self._state, rows,
                                      self._held_BM[rows % len(rows), :self._size])

    def _draw(self, busy: Sequence[Slot]) -> set[int]:
        """Draws a chunk; returns the numbers of the busy slots' requests."""
        is_close = any(self._requests[slot.request].is_close for slot in busy)
        step_tokens = 1 if self._speculation is None else 1 + self._speculation.num_tokens
        num_steps = 1 if is_close else -(-self._budget.draw_tokens // step_tokens)
        self._resize(max(slot.length for slot in busy) + num_steps * step_tokens)
        num_slots = len(self._slots)
        # With requests waiting, a quarter of idle slots is worth a look.
        num_idle = num_slots - 3 * len(busy) // 4 if self._waiting else num_slots
        drawn, top = self._decode(busy, num_idle, num_steps, is_close=is_close)
        self.counts["drawn"] += int(drawn.count_B.sum())
        numbers = {slot.request for slot in busy}
        self._free([slot for slot in busy if self._take(slot, drawn, top)], are_active=True)
        self._free([slot for slot in busy if slot.request is not None
                    and self._completions[slot.request].finish])
        return numbers

    def _decode(self, busy: Sequence[Slot], num_idle: int, num_steps: int, *,
                is_close: bool) -> tuple[Drawn, Top | None]:
        """Draws tokens in the busy slots.

        Args:
            num_idle: see `decode`.
            is_close: whether one is drawn, by the guides of the requests, and the likeliest ones
                are returned as well.
        """
        top = rank(self._state.logits_BV) if is_close else None
        if self._speculation is None:
            allowed_BV = self._allowed(busy) if is_close else self._all_BV
            self._state, drawn = decode(self._params, self._state, num_idle, num_steps, allowed_BV,
                                        most=self._budget.draw_tokens, **self._bound)
        else:
            self._state, drawn, counts = decode_drafted(
                self._params, self._speculation, self._state, num_idle, num_steps=num_steps,
                **self._bound)
            self.counts.update({name: int(count) for name, count in counts.items()})
        return jax.device_get((drawn, top))

    def _allowed(self, busy: Sequence[Slot]) -> jax.Array:
        """is_allowed_BV: the tokens that the guides of the busy slots' requests allow."""
        is_allowed_BV = np.ones(self._all_BV.shape, bool)
        for slot in busy:
            if (guide := self._requests[slot.request].guide) is not None:
                with self._contained(slot.request):
                    is_allowed_BV[slot.number] = guide.allowed()
        return jnp.asarray(is_allowed_BV)

    def _take(self, slot: Slot, drawn: Drawn, top: Top | None) -> bool:
        """Adds a chunk to a slot's completion; returns whether it ended by a text or a failure,
        that is while the slot is still drawn in."""
        request, completion = self._requests[slot.request], self._completions[slot.request]
        count, is_over = drawn.count_B[slot.number], drawn.left_B[slot.number] == 0
        tokens = drawn.tokens_BT[slot.number, :count]
        # The last token of an answer is drawn, but not read.
        slot.hold(tokens[:-1] if is_over else tokens, slot.length)
        first_new = len(completion.tokens)
        completion.tokens += tokens.tolist()
        completion.logps += drawn.logps_BT[slot.number, :count].tolist()
        if request.num_top:
            completion.tops.append([*zip(top.tokens_BN[slot.number, :request.num_top].tolist(),
                                         top.logps_BN[slot.number, :request.num_top].tolist())])
        if is_over and not completion.finish:
            completion.finish = STOP if completion.tokens[-1] in request.stops else LENGTH
        is_cut = False
        with self._contained(slot.request):
            for token in tokens.tolist() if request.guide is not None else ():
                request.guide.take(token)
            is_cut = bool(request.stop_texts) and self._cut_at_text(request, completion, first_new)
            if completion.finish:
                self._add_text(slot.request)
        return (is_cut or completion.finish == FAILED) and not is_over

    @contextlib.contextmanager
    def _contained(self, number: int) -> Iterator[None]:
        """Makes an exception the end of its request alone; `step` raises it."""
        try:
            yield
        except Exception as error:      # of code that others wrote
            self._completions[number].finish = FAILED
            self._faults.append(error)

    def _cut_at_text(self, request: Request, completion: Completion, first_new: int) -> bool:
        """Ends an answer at the first stop text that the new tokens complete, if they do."""
        for count in range(first_new + 1, len(completion.tokens) + 1):
            text = self._text(request, completion.tokens[:count])
            places = [text.find(stop) for stop in request.stop_texts]
            if found := [place for place in places if place >= 0]:
                completion.text, completion.finish = text[:min(found)], STOP
                del completion.tokens[count:], completion.logps[count:]
                return True
        return False

    def _add_text(self, number: int) -> None:
        completion = self._completions[number]
        if self._to_text is not None and completion.text is None and completion.finish != FAILED:
            completion.text = self._text(self._requests[number], completion.tokens)

    def _text(self, request: Request, tokens: Sequence[int]) -> str:
        return self._to_text([token for token in tokens if token not in request.stops])

    def _rows(self, slots: Sequence[Slot]) -> np.ndarray:
        """Their numbers, padded with the number of no slot."""
        return self._column([slot.number for slot in slots], len(self._slots))

    def _column(self, values: Sequence[int], padding: int = 0) -> np.ndarray:
        """One number for each slot."""
        column = np.full(len(self._slots), padding, np.int32)
        column[:len(values)] = values
        return column

    def _resize(self, num_tokens: int) -> None:
        """Makes the cache hold so many tokens of a row, and what slots that answer hold, and not
        much more: every token that is drawn reads the whole of it."""
        num_tokens = max(num_tokens, *(slot.length for slot in self._slots
                                       if slot.request is not None), 0)
        size = min(self._capacity, SMALLEST_SIZE)
        while size < min(num_tokens, self._capacity):
            size = min(2 * size, self._capacity)
        if self._size // 4 < size <= self._size:
            return
        self._state, self._size = self._resized(size), size
        for slot in self._slots:
            if slot.length > size:      # an idle one
                slot.hold(slot.held_M[:0], 0)

    def _resized(self, size: int) -> Slots:
        return resize(self._state, config=self._bound["config"], capacity=size, piece=self._piece)

    def _rewinds(self, config: ModelConfig) -> bool:
        """Whether a slot can end earlier: windows and recurrent states forget what came before."""
        return config.family != "lstm" and all(
            layer_capacity(config, n, self._capacity, self._piece) == self._capacity
            for n in range(config.N))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _count_adapters(params: Params) -> int:
    """Adapters that requests may name; see `model.adapters.lora.stack_adapters`."""
    stacked = jax.tree.leaves(params.get("adapters", {}))
    return stacked[0].shape[1] - 1 if stacked else 0
