"""Which requests come through: those to this server's own name, from its own pages, not too large.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse

from serve.labelling.forms import MAX_BODY_BYTES, Refused

BODY_SECS = 30.0        # in which a body must have come
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store"}

App = Callable[[Any, Any, Any], Awaitable[None]]


class Gate:
    """Lets requests through to an application, and adds `HEADERS` to every response.

    Args:
        hosts: names in the header `Host` that are accepted beside localhost and its addresses. A
            page of another site that makes its own name point here (DNS rebinding) is refused.
        open_paths: that a link on another site may lead to; all others answer own pages alone.
    """

    def __init__(self, app: App, *, hosts: Sequence[str], open_paths: Sequence[str]):
        self._app, self._open_paths = app, {*open_paths}
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

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
        except Refused as error:
            await JSONResponse(error.body, error.status)(scope, receive, send_safe)
        else:
            await self._app(scope, receive, send_safe)

    def _check(self, scope: Any) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host):
            raise Refused(403, "this server has another name: see --allowed_hosts", "unknown_host")
        if scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        is_own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if not is_own or site not in ("none", "same-origin"):
            raise Refused(403, "pages of other sites may not ask this server", "foreign_origin")

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._hosts or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


async def read_body(request: Request) -> bytes:
    """The JSON body of a request; raises `Refused` if it is none, too large or too slow."""
    # A form of another site cannot have this type, whatever its browser says of its origin.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "the body must be application/json", "invalid_type")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB",
                                  "body_too_large")
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_SECS:g} s", "timeout") from None
    return bytes(body)
