"""Which requests reach the labelling page, and what every response forbids a browser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from serve.web.errors import WebError
from serve.web.gate import HEADERS, check_host, check_origin

App = Callable[[Any, Any, Any], Awaitable[None]]


class Gate:
    """Lets requests through to an application, and adds `HEADERS` to every response.

    Args:
        hosts: see `serve.web.gate.check_host`.
        open_paths: that a link on another site may lead to; all others answer own pages alone.
    """

    def __init__(self, app: App, *, hosts: Sequence[str], open_paths: Sequence[str]):
        self._app, self._open_paths = app, {*open_paths}
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return

        async def send_safe(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check(scope)
        except WebError as error:
            await JSONResponse(error.body, error.status)(scope, receive, send_safe)
        else:
            await self._app(scope, receive, send_safe)

    def _check(self, scope: Any) -> None:
        headers = Headers(scope=scope)
        check_host(headers, self._hosts)
        if scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths:
            return
        check_origin(headers)
        # A form of another site cannot have this type, whatever its browser says of its origin.
        kind = headers.get("content-type", "").partition(";")[0].strip()
        if scope["method"] == "POST" and kind != "application/json":
            raise WebError(415, "the body must be application/json", "invalid_type")
