"""The answers of one request of HTTP, as its event loop sees them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

from core.errors import UserError
from data.chat import render_prompt
from eval.respond.loaded import LoadedModel
from eval.respond.local import begin_text
from model.generation.requests import Request
from model.generation.sampling import Sampling
from serve.api.schema import ChatRequest, Settings
from serve.api.scoring import Echo
from serve.api.streaming import Mark, Piece, TextWriter
from serve.api.worker import Answer, Worker
from serve.web.errors import WebError


class ClientGone(Exception):
    """Nobody waits for the answers any more."""


@dataclasses.dataclass
class Whole:
    """An answer as a whole, put together from its pieces."""

    text: str = ""
    marks: list[Mark] = dataclasses.field(default_factory=list)
    finish: str = ""
    num_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.text += piece.text
        self.marks += piece.marks
        self.finish, self.num_tokens = piece.finish, piece.num_tokens


def render_chat(model: LoadedModel, request: ChatRequest) -> list[int]:
    """The prompt of a conversation.

    Raises:
        WebError: it is a base model, its template takes no tools, or refuses the conversation.
    """
    if not model.chat:
        raise WebError(400, f"{request.model} is a base model: use /v1/completions", param="model",
                       code="no_chat_model")
    try:
        return render_prompt(request.conversation, model.tokenizer, tools=request.tools)
    except UserError as error:
        param = "tools" if str(error).startswith("tools") else "messages"
        raise WebError(400, str(error), param=param, code="invalid_value") from None


def read_prompt(model: LoadedModel, prompt: str | tuple[int, ...]) -> list[int]:
    """The tokens of a prompt of `/v1/completions`; raises `WebError` if it has none or wrong ones.
    """
    tokens = [*prompt] if not isinstance(prompt, str) else [
        *begin_text(model.tokenizer), *model.tokenizer.encode(prompt)]
    if not tokens or max(tokens) >= model.config.V:
        raise WebError(400, "prompt " + ("has tokens outside the vocabulary" if tokens else
                                         "is empty"), param="prompt", code="invalid_value")
    return tokens


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a worker for one answer.

    Attributes:
        request: to the engine; None draws nothing.
        echo: the prompt, if its scores come before what is drawn.
    """

    request: Request | None
    echo: Echo | None = None


def ask_worker(worker: Worker, prompt: Sequence[int], settings: Settings, param: str, *,
               echo: bool = False) -> list[Asked]:
    """What is asked for each answer to a prompt, which the field `param` holds.

    Args:
        echo: whether the prompt stands before each answer.

    Raises:
        WebError: prompt and answer exceed the context, or a number of the settings is refused.
    """
    room, needed = worker.capacity - len(prompt), settings.max_tokens
    if room < (least := 1 if needed is None else needed):
        raise WebError(
            400, f"the model's context is {worker.capacity} tokens, which {len(prompt)} of the "
            f"prompt and {least} of the answer exceed", param=param,
            code="context_length_exceeded")
    scored = Echo(prompt, settings.num_top) if echo and settings.with_logps else None
    if needed == 0:
        return [Asked(None, scored)] * settings.num_choices
    try:
        sampling = Sampling(needed or room, **settings.draws)
        return [Asked(Request(tuple(prompt), sampling, worker.model.tokenizer.stops,
                              seed=settings.seed, sample=number, num_top=settings.num_top,
                              guide=worker.grammars.make_guide(settings.constraint)), scored)
                for number in range(settings.num_choices)]
    except UserError as error:
        raise WebError(400, str(error), param=str(error).partition("=")[0],
                       code="invalid_value") from None


class Job:
    """Answers that were submitted to a worker together.

    Args:
        asked: for each of them.
        secs: time that they have.

    Raises:
        WebError: the queue is full, or the server is closing.
    """

    def __init__(self, worker: Worker, asked: Sequence[Asked], settings: Settings,
                 secs: float):
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        deadline = time.monotonic() + secs
        tokenizer = worker.model.tokenizer
        self._answers = [
            Answer(one.request, TextWriter(
                tokenizer, tokenizer.stops, settings.stop_texts,
                begin=len(tokenizer.text_of(one.echo.tokens)) if one.echo else 0),
                partial(self._emit, index), deadline, one.echo)
            for index, one in enumerate(asked)]
        worker.submit(self._answers)

    def _emit(self, index: int, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

    def leave(self) -> None:
        """To be called once the client is gone."""
        self._queue.put_nowait(None)

    def cancel(self) -> None:
        """Ends what is not over."""
        self._worker.cancel(self._answers)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces of all answers as they come, each with its answer's index.

        Raises:
            WebError: an answer failed.
            ClientGone: see `leave`.
        """
        num_over = 0
        while num_over < len(self._answers):
            if (found := await self._queue.get()) is None:
                raise ClientGone
            index, piece = found
            if piece.error is not None:
                raise piece.error
            num_over += bool(piece.finish)
            yield index, piece

    async def wholes(self) -> list[Whole]:
        """All answers once they are over; raises as `pieces`."""
        wholes = [Whole() for _ in self._answers]
        async for index, piece in self.pieces():
            wholes[index].add(piece)
        return wholes
