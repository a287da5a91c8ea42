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
from serve.api.calls import Call, CallForm, CallReader
from serve.api.schema import ChatRequest, Settings
from serve.api.scoring import Echo
from serve.api.streaming import Mark, Piece, TextWriter
from serve.api.tools import Tools, with_objects
from serve.api.worker import Answer, Worker
from serve.web.errors import WebError


class ClientGone(Exception):
    """Nobody waits for the answers any more."""


@dataclasses.dataclass
class Whole:
    """An answer as a whole, put together from its pieces."""

    text: str = ""
    calls: list[Call] = dataclasses.field(default_factory=list)
    marks: list[Mark] = dataclasses.field(default_factory=list)
    finish: str = ""
    num_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self.text += piece.text
        self.calls += piece.calls
        self.marks += piece.marks
        self.finish, self.num_tokens = piece.finish, piece.num_tokens


def render_chat(model: LoadedModel, request: ChatRequest, form: CallForm | None) -> list[int]:
    """The prompt of a conversation.

    Args:
        form: of calls of tools, where it is known.

    Raises:
        WebError: it is a base model, its template takes no tools, or refuses the conversation.
    """
    if not model.chat:
        raise WebError(400, f"{request.model} is a base model: use /v1/completions", param="model",
                       code="no_chat_model")
    conversation = request.conversation
    if form is None or not form.takes_texts:
        conversation = with_objects(conversation)
    try:
        return render_prompt(conversation, model.tokenizer, tools=request.tools.offered)
    except UserError as error:
        param = "tools" if str(error).startswith("tools") else "messages"
        raise WebError(400, str(error), param=param, code="invalid_value") from None


def make_readers(worker: Worker, tools: Tools, count: int) -> list[CallReader]:
    """What reads the calls in each of so many answers; none where calls are text."""
    form = worker.call_form
    if form is None or not tools.offered:
        return []
    return [CallReader(form, tools.names, None if tools.is_parallel else 1) for _ in range(count)]


def force_call(worker: Worker, request: ChatRequest) -> Settings:
    """The settings of a request, with a grammar of a call if one must be made.

    Raises:
        WebError: the form of the model's calls is not known.
    """
    tools, form = request.tools, worker.call_form
    if not tools.forced:
        return request.settings
    if form is None:
        raise WebError(400, "tool_choice must be auto or none: this model's chat template does not "
                       "tell how a call is written", param="tool_choice", code="invalid_value")
    grammar = form.grammar(tools.forced, worker.model.tokenizer, is_parallel=tools.is_parallel)
    return dataclasses.replace(request.settings, constraint=("lark", grammar))


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


def ask_worker(worker: Worker, name: str, prompt: Sequence[int], settings: Settings, param: str, *,
               echo: bool = False) -> list[Asked]:
    """What is asked for each answer to a prompt, which the field `param` holds.

    Args:
        name: of the worker's model, or of one of its adapters.
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
    adapter = worker.adapters.get(name, 0)
    scored = (Echo(prompt, settings.num_top, adapter) if echo and settings.with_logps else None)
    if needed == 0:
        return [Asked(None, scored)] * settings.num_choices
    try:
        sampling = Sampling(needed or room, **settings.draws)
        return [Asked(Request(tuple(prompt), sampling, worker.model.tokenizer.stops,
                              seed=settings.seed, sample=number, num_top=settings.num_top,
                              adapter=adapter,
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
        readers: of the calls of tools in each answer; none where these are text.

    Raises:
        WebError: the queue is full, or the server is closing.
    """

    def __init__(self, worker: Worker, asked: Sequence[Asked], settings: Settings, secs: float,
                 readers: Sequence[CallReader] = ()):
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._readers, spoken = readers, worker.call_form.spoken if readers else ()
        self._queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        deadline = time.monotonic() + secs
        tokenizer = worker.model.tokenizer
        self._answers = [
            Answer(one.request, TextWriter(
                tokenizer, tokenizer.stops, settings.stop_texts,
                begin=len(tokenizer.text_of(one.echo.tokens)) if one.echo else 0, spoken=spoken),
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
        over: set[int] = set()
        while len(over) < len(self._answers):
            if (found := await self._queue.get()) is None:
                raise ClientGone
            index, piece = found
            if index in over:
                continue
            if piece.error is not None:
                raise piece.error
            if self._readers:
                piece = self._read_calls(index, piece)
            if piece.finish:
                over.add(index)
            if piece.text or piece.marks or piece.calls or piece.finish:
                yield index, piece

    def _read_calls(self, index: int, piece: Piece) -> Piece:
        """A piece whose calls are apart from its text. An answer ends with its last call if it may
        have no further one."""
        reader, finish = self._readers[index], piece.finish
        text, calls = reader.push(piece.text)
        if finish:
            rest, more = reader.end()
            text, calls = text + rest, calls + more
        elif reader.is_full:
            self._worker.cancel(self._answers[index:index + 1])
            finish = "stop"
        if finish == "stop" and reader.num_calls:
            finish = "tool_calls"
        return dataclasses.replace(piece, text=text, calls=calls, finish=finish)

    async def wholes(self) -> list[Whole]:
        """All answers once they are over; raises as `pieces`."""
        wholes = [Whole() for _ in self._answers]
        async for index, piece in self.pieces():
            wholes[index].add(piece)
        return wholes
