"""The routes of the server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.json_text import format_json
from serve.api.embeddings import Encoder
from serve.api.job import (
    Asked,
    ClientGone,
    Job,
    ask_worker,
    force_call,
    make_readers,
    read_prompt,
    render_chat,
)
from serve.api.limits import Gate
from serve.api.metrics import Metrics
from serve.api.replies import ChatReply, Reply, event
from serve.api.schema import (
    ChatRequest,
    CompletionRequest,
    Settings,
    parse_chat,
    parse_completion,
    parse_embedding,
)
from serve.api.worker import Worker
from serve.arena.app import PAGES, make_table
from serve.arena.arena import Arena
from serve.pages.static import ARENA, CHAT, make_routes
from serve.web.errors import WebError
from serve.web.fields import parse_body
from serve.web.gate import read_body

MAX_BODY_BYTES = 4 << 20
GONE_STATUS = 499       # of a request whose client is gone, as nginx has it
MAX_EMBEDDING = 64      # requests for embeddings that run or wait


@dataclasses.dataclass
class Served:
    """What a server serves.

    Attributes:
        workers: models that write text, by the names that clients use.
        encoders: models that embed texts.
        request_secs: time that a request has.
        arena: where models meet; None without votes.
        is_closing: whether the server takes no new requests.
    """

    workers: Mapping[str, Worker]
    encoders: Mapping[str, Encoder]
    metrics: Metrics
    request_secs: float
    arena: Arena | None = None
    is_closing: bool = False
    began: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def by_name(self) -> dict[str, Worker]:
        """The workers by the names of models and of adapters."""
        return {**self.workers, **{adapter: worker for worker in self.workers.values()
                                   for adapter in worker.adapters}}

    @property
    def num_open(self) -> int:
        """Answers that are not over."""
        return sum(worker.num_open for worker in self.workers.values())


def make_app(served: Served, *, keys: Sequence[str] = (), hosts: Sequence[str] = ()) -> Gate:
    """The application; see `Gate` for keys and hosts."""
    routes = Routes(served)
    table: dict[str, tuple[str, Callable[[Request], Any]]] = {
        "/health": ("GET", routes.health), "/metrics": ("GET", routes.metrics),
        "/v1/models": ("GET", routes.models), "/v1/completions": ("POST", routes.completions),
        "/v1/chat/completions": ("POST", routes.chat), "/v1/embeddings": ("POST", routes.embed),
        **make_table(served.arena)}
    pages = make_routes(CHAT | ARENA if served.arena else CHAT)
    app = Starlette(
        routes=[*pages,
                *(Route(path, guarded(handler), methods=[method])
                  for path, (method, handler) in table.items()),
                Route("/v1/models/{name:path}", guarded(routes.model), methods=["GET"])],
        exception_handlers={HTTPException: _unknown_route})
    return Gate(app, keys=keys, hosts=hosts, is_closing=lambda: served.is_closing,
                metrics=served.metrics, paths=[*table],
                pages=[*PAGES, *(page.path for page in pages)])


def guarded(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """A handler whose every failure is a response in OpenAI's form."""
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except WebError as error:
            return error_response(error)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=GONE_STATUS)
        except Exception:       # a fault of ours: the client learns no more than that
            traceback.print_exc()
            return error_response(WebError(500, "the server failed", code="internal_error"))

    return handle


def error_response(error: WebError) -> JSONResponse:
    """The response of an error."""
    return JSONResponse(error.body, error.status, error.headers)


async def _unknown_route(_request: Request, error: HTTPException) -> JSONResponse:
    return error_response(WebError(error.status_code, f"{error.detail}: see /v1/models",
                                   code="unknown_url"))


class Routes:
    """The handlers of all paths."""

    def __init__(self, served: Served):
        self._served, self._workers = served, served.by_name()
        self._embedding, self._num_embedding = asyncio.Lock(), 0   # one at a time on the device

    async def health(self, _request: Request) -> Response:
        """Whether requests are taken."""
        is_alive = all(worker.is_alive for worker in self._served.workers.values())
        if self._served.is_closing or not is_alive:
            return JSONResponse({"status": "closing" if self._served.is_closing else "failed"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, _request: Request) -> Response:
        """See `serve.api.metrics`."""
        return PlainTextResponse(self._served.metrics.format(),
                                 media_type="text/plain; version=0.0.4")

    async def models(self, _request: Request) -> Response:
        """The list of models."""
        names = [*self._workers, *self._served.encoders]
        return JSONResponse({"object": "list", "data": list(map(self._describe, names))})

    async def model(self, request: Request) -> Response:
        """One model."""
        name = request.path_params["name"]
        if name not in self._workers and name not in self._served.encoders:
            raise _unknown_model(name)
        return JSONResponse(self._describe(name))

    def _describe(self, name: str) -> dict[str, Any]:
        worker = self._workers.get(name)
        context = worker.capacity if worker else self._served.encoders[name].context_tokens
        task = "embedding" if worker is None else "chat" if worker.model.chat else "completion"
        return {"id": name, "object": "model", "created": self._served.began,
                "owned_by": "heartwood", "task": task, "context_tokens": context}

    def _worker(self, name: str) -> Worker:
        if name in self._served.encoders:
            raise WebError(400, f"{name} is an encoder: use /v1/embeddings", param="model",
                           code="no_language_model")
        if name not in self._workers:
            raise _unknown_model(name)
        return self._workers[name]

    async def chat(self, request: Request) -> Response:
        """Chat completions."""
        asked: ChatRequest = parse_chat(parse_body(await read_body(request, MAX_BODY_BYTES)))
        worker = self._worker(asked.model)
        worker.check_room(asked.settings.num_choices)
        prompt, answers = await asyncio.to_thread(_prepare_chat, worker, asked)
        reply = ChatReply(asked.model, worker.fingerprint(asked.model), worker.model.tokenizer,
                          asked.settings, [""] * len(answers))
        job = Job(worker, answers, asked.settings, self._served.request_secs,
                  make_readers(worker, asked.tools, len(answers)))
        return await _respond(request, job, reply, asked.settings, len(prompt))

    async def completions(self, request: Request) -> Response:
        """Completions."""
        asked: CompletionRequest = parse_completion(
            parse_body(await read_body(request, MAX_BODY_BYTES)))
        worker = self._worker(asked.model)
        worker.check_room(len(asked.prompts) * asked.settings.num_choices)
        prompts, answers = await asyncio.to_thread(_prepare_completion, worker, asked)
        tokenizer = worker.model.tokenizer
        is_plain = asked.echo and not asked.settings.with_logps
        echoes = [(one if isinstance(one, str) else tokenizer.text_of(one)) if is_plain else ""
                  for one in asked.prompts for _ in range(asked.settings.num_choices)]
        reply = Reply(asked.model, worker.fingerprint(asked.model), tokenizer, asked.settings,
                      echoes)
        job = Job(worker, answers, asked.settings, self._served.request_secs)
        return await _respond(request, job, reply, asked.settings, sum(map(len, prompts)))

    async def embed(self, request: Request) -> Response:
        """Embeddings."""
        asked = parse_embedding(parse_body(await read_body(request, MAX_BODY_BYTES)))
        if asked.model in self._workers:
            raise WebError(400, f"{asked.model} writes text: name an encoder", param="model",
                           code="no_encoder")
        if asked.model not in self._served.encoders:
            raise _unknown_model(asked.model)
        if self._num_embedding >= MAX_EMBEDDING:
            raise WebError(429, "the queue is full: try again", code="queue_full")
        self._num_embedding += 1
        try:
            async with self._embedding:
                return JSONResponse(await asyncio.to_thread(
                    self._served.encoders[asked.model].answer, asked))
        finally:
            self._num_embedding -= 1


def _unknown_model(name: str) -> WebError:
    return WebError(404, f"there is no model {name[:100]!r}: see /v1/models", param="model",
                    code="model_not_found")


def _prepare_chat(worker: Worker, asked: ChatRequest) -> tuple[list[int], list[Asked]]:
    prompt = render_chat(worker.model, asked, worker.call_form)
    return prompt, ask_worker(worker, asked.model, prompt, force_call(worker, asked), "messages")


def _prepare_completion(worker: Worker, asked: CompletionRequest) -> tuple[list[list[int]],
                                                                           list[Asked]]:
    prompts = [read_prompt(worker.model, one) for one in asked.prompts]
    return prompts, [made for prompt in prompts for made in ask_worker(
        worker, asked.model, prompt, asked.settings, "prompt", echo=asked.echo)]


async def _respond(request: Request, job: Job, reply: Reply, settings: Settings,
                   num_prompt: int) -> Response:
    """The response to a request whose answers are submitted; a stream begins with their first
    piece, so that what fails before it has a status of its own."""
    if settings.stream:
        pieces = job.pieces()
        with _watched(request, job):
            first = await anext(pieces)
        return EventStream(job, reply, first, pieces, num_prompt)
    with _watched(request, job):
        whole = reply.whole(await job.wholes(), num_prompt)
        return Response(format_json(whole), media_type="application/json")


@contextlib.contextmanager
def _watched(request: Request, job: Job) -> Iterator[None]:
    """Cancels answers when their client is gone, or when something fails."""
    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.leave()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        watcher.cancel()


class EventStream(Response):
    """Answers as server-sent events."""

    def __init__(self, job: Job, reply: Reply, first: Any, pieces: Any, num_prompt: int):
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._job, self._reply, self._first, self._pieces = job, reply, first, pieces
        self._num_prompt = num_prompt

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        with contextlib.suppress(ClientGone, OSError), _watched(Request(scope, receive), self._job):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            begun = b"".join(self._reply.begin(self._num_prompt))
            await write(begun + self._reply.piece(*self._first))
            try:
                async for index, piece in self._pieces:
                    await write(self._reply.piece(index, piece))
                await write(self._reply.end(), more=False)
            except WebError as error:
                self._job.cancel()
                await write(event(error.body), more=False)
