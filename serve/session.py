"""A conversation with a model, whose turns share one KV cache."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterable, Iterator

from core.errors import UserError
from core.progress import log
from data.chat import Conversation, Message, ask, render_prompt
from eval.respond.loaded import LoadedModel
from eval.respond.local import make_engine
from model.generation.requests import Budget, Request
from model.generation.sampling import Sampling
from model.generation.speculative import Speculation

CHUNK_TOKENS = 4    # that are shown at once


def stream_text(chunks: Iterable[bytes]) -> Iterator[str]:
    """Decodes bytes incrementally; a character is yielded with the last of its bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


class Session:
    """A conversation with a model; a turn extends the KV cache of the turns before it.

    Args:
        model: if it is a base model, each message begins a new text, and the answer is its
            continuation.
        system: the system message; "" for none.
        capacity: tokens that the cache holds, answer included.
        seed: of the random draws.
        speculation: see `Engine`.

    Attributes:
        tokens: all tokens of the conversation so far.
        num_turns: answers given.
        num_tokens: tokens drawn in these.
        num_timed: those of them that `decode_secs` measures: all but the first few of each answer.
        decode_secs: time of these.
        weight_bytes: of the model.

    Raises:
        UserError: the system message and one answer exceed `capacity`, or the model's chat template
            refuses it.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, *, system: str = "",
                 capacity: int = 1024, seed: int = 0, speculation: Speculation | None = None):
        self._model, self._tokenizer = model, model.tokenizer
        self._sampling, self._capacity, self._seed = sampling, capacity, seed
        self._system: tuple[Message, ...] = ()
        self._engine = make_engine(model, num_slots=1, capacity=capacity,
                                   budget=Budget(CHUNK_TOKENS), speculation=speculation)
        self.num_turns = self.num_tokens = self.num_timed = 0
        self.decode_secs, self.weight_bytes = 0.0, model.weight_bytes
        self.reset()
        self.set_system(system)

    def reset(self) -> None:
        """Removes every turn; the system message stays."""
        self._turns: list[tuple[str, list[int]]] = []   # a message, and its answer's tokens
        self.tokens: list[int] = []

    def set_system(self, text: str) -> None:
        """Begins a new conversation with a system message; "" for none.

        Raises:
            UserError: see `Session`; or a base model is given one.
        """
        if text and not self._model.chat:
            raise UserError("--system", "a base model takes no system message", "leave it out")
        before, turns = self._system, self._turns
        self._system, self._turns = ((Message("system", text),) if text else ()), []
        try:
            self._check_fits(self._render(""))
        except UserError:
            self._system, self._turns = before, turns
            raise
        self.reset()

    @property
    def conversation(self) -> Conversation:
        """The system message and all turns."""
        turns = [message for text, drawn in self._turns
                 for message in ask(text, self._tokenizer.decode(drawn)).messages]
        return Conversation((*self._system, *turns))

    def regenerate(self) -> Iterator[str]:
        """Draws another answer to the last message; see `answer`.

        Raises:
            UserError: there is none.
        """
        if not self._turns:
            raise UserError("/regen", "no message was answered yet", "write one first")
        text, _ = self._turns.pop()
        return self.answer(text)

    def answer(self, text: str) -> Iterator[str]:
        """Runs a turn: yields the pieces of the answer to `text` as they are sampled.

        If the caller stops early, the answer ends there and the conversation stays usable.

        Raises:
            UserError: the message is too long for the context.
        """
        if not self._model.chat:
            self.reset()
        self.tokens, drawn = self._make_room(text), []
        self._turns.append((text, drawn))
        self.num_turns += 1
        try:
            yield from stream_text(self._tokenizer.stream(self._draw_answer(drawn)))
        finally:
            # However it ended: an answer that was cut short is read with its end.
            self.tokens += [*drawn, self._tokenizer.end]

    def _render(self, text: str) -> list[int]:
        """The tokens of the conversation up to the start of the answer to `text`."""
        if not self._model.chat:
            return [self._tokenizer.bos, *self._tokenizer.encode(text)]
        conversation = Conversation((*self.conversation.messages, Message("user", text)))
        return render_prompt(conversation, self._tokenizer, [drawn for _, drawn in self._turns])

    def _draw_answer(self, drawn: list[int]) -> Iterator[int]:
        """Draws the answer; yields and adds to `drawn` each token of its text."""
        number = self._engine.submit(Request(
            tuple(self.tokens), self._sampling, self._tokenizer.stops, seed=self._seed,
            sample=self.num_turns))
        num_seen = 0
        try:
            while self._engine.is_running:
                began = time.monotonic()
                completion = self._engine.step()[number]
                new, num_seen = completion.tokens[num_seen:], len(completion.tokens)
                self.num_tokens += len(new)
                if num_seen > len(new):     # the first tokens' time has that of the prompt in it
                    self.decode_secs += time.monotonic() - began
                    self.num_timed += len(new)
                for token in new:
                    if token not in self._tokenizer.special_ids:
                        drawn.append(token)
                        yield token
        finally:
            self._engine.cancel(number)
            while self._engine.is_running:
                self._engine.step()

    def _make_room(self, text: str) -> list[int]:
        """The prompt of `text`, from which the oldest turns are dropped if they do not fit.

        The other turns must be read again, so half of the context is freed at once.
        """
        turns, answer = self._turns, self._sampling.max_new_tokens
        prompt = self._render(text)
        if len(prompt) + answer <= self._capacity:
            return prompt
        for first in range(1, len(turns) + 1):
            self._turns = turns[first:]
            prompt = self._render(text)
            if len(prompt) + answer <= self._capacity // 2:
                break
        if len(prompt) + answer > self._capacity:
            self._turns = turns
        self._check_fits(prompt)
        log(f"the context of {self._capacity} tokens is full: the oldest "
            f"{len(turns) - len(self._turns)} of {len(turns)} turns are dropped")
        return prompt

    def _check_fits(self, prompt: list[int]) -> None:
        given, answer = len(prompt), self._sampling.max_new_tokens
        if given + answer > self._capacity:
            raise UserError(f"--context_tokens={self._capacity}",
                            f"does not hold {given} tokens of message and {answer} of answer",
                            "raise it, lower --max_new_tokens or write less")
