"""The routes of the labelling page, and its server."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from serve.labelling.forms import (
    FLAGS,
    MAX_BODY_BYTES,
    SKIPS,
    parse_label,
    parse_name,
    parse_skip,
    parse_undo,
)
from serve.labelling.gate import Gate
from serve.labelling.progress import Agreement, render_progress
from serve.labelling.store import Event
from serve.labelling.work import Work
from serve.pages.static import LABELLING, make_routes
from serve.web.errors import WebError
from serve.web.fields import parse_body
from serve.web.gate import read_body

LAST_SECS = 5       # for connections to end when the server is stopped


def make_app(work: Work, *, hosts: Sequence[str] = ()) -> Gate:
    """The application; see `Gate` for hosts."""
    routes = Routes(work)
    posts = {"/api/label": routes.label, "/api/skip": routes.skip, "/api/undo": routes.undo}
    app = Starlette(
        routes=[*make_routes(LABELLING), Route("/progress", _guarded(routes.progress)),
                Route("/api/next", _guarded(routes.next)),
                *(Route(path, _guarded(handler), methods=["POST"])
                  for path, handler in posts.items())],
        exception_handlers={HTTPException: _unknown})
    return Gate(app, hosts=hosts, open_paths=("/", "/progress"))


class Routes:
    """The handlers; all that change something run in one thread, one after the other."""

    def __init__(self, work: Work):
        self._work, self._agreement = work, Agreement()

    async def next(self, request: Request) -> Response:
        """The item that an annotator is at."""
        return self._show(self._check(parse_name(
            request.query_params.get("annotator") or self._work.settings.annotator)))

    async def label(self, request: Request) -> Response:
        """Stores a label, and gives the next item."""
        sent = parse_label(parse_body(await read_body(request, MAX_BODY_BYTES)))
        self._check(sent.annotator)
        self._work.label(sent)
        return self._show(sent.annotator)

    async def skip(self, request: Request) -> Response:
        """Skips an item, and gives the next one."""
        sent = parse_skip(parse_body(await read_body(request, MAX_BODY_BYTES)))
        self._check(sent.annotator)
        self._work.skip(sent)
        return self._show(sent.annotator)

    async def undo(self, request: Request) -> Response:
        """Undoes the last label or skipping, and gives its item."""
        name = self._check(parse_undo(parse_body(await read_body(request, MAX_BODY_BYTES))))
        return self._show(name, self._work.undo(name))

    async def progress(self, request: Request) -> Response:
        """The page of counts, speed and agreement."""
        measured = await self._agreement.measure(self._work)
        name = request.query_params.get("annotator", "")
        return HTMLResponse(render_progress(self._work, measured, name))

    def _check(self, annotator: str) -> str:
        """The name, if it may label here."""
        only = self._work.settings.annotator
        if only and annotator != only:
            raise WebError(403, f"only {only} labels here", "other_annotator")
        return annotator

    def _show(self, annotator: str, undone: Event | None = None) -> Response:
        shown = self._work.show(annotator, undone)
        return JSONResponse(shown | {"flags": FLAGS, "skips": SKIPS})


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C; a second one does not wait for open connections."""

    def __init__(self, app: Gate):
        super().__init__(uvicorn.Config(
            # Its own configuration of logging would close handlers that others have set up.
            app, log_config=None, log_level="warning", access_log=False, server_header=False,
            lifespan="off", timeout_graceful_shutdown=LAST_SECS))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """See `uvicorn.Server`: called with a signal."""
        self.force_exit, self.should_exit = self.should_exit, True


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Any:
    """A handler whose every failure is a line for the annotator."""
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except WebError as error:
            return JSONResponse(error.body, error.status)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:       # a fault of ours: the page learns no more than that
            traceback.print_exc()
            return JSONResponse(WebError(500, "the server failed: see its log",
                                         "internal_error").body, 500)

    return handle


async def _unknown(_request: Request, error: HTTPException) -> Response:
    return JSONResponse(WebError(error.status_code, error.detail, "unknown_url").body,
                        error.status_code)
