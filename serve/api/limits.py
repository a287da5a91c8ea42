"""Who may ask: keys, hosts, origins, and how many at once."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from core.errors import UserError, require_file
from serve.api.metrics import Metrics
from serve.web.errors import WebError
from serve.web.gate import check_host, check_origin

MAX_REQUESTS = 512      # in progress at once
OPEN_PATHS = ("/health",)

App = Callable[[Any, Any, Any], Awaitable[None]]


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; blank lines and those that begin with # are none.

    Raises:
        UserError: there is no such file, no key in it, or one that no header can hold.
    """
    require_file("--api_keys", path, "name a file with a key on each line")
    try:
        lines = [line.strip() for line in Path(path).read_text("ascii").splitlines()]
    except ValueError:
        raise UserError(f"--api_keys={path}", "holds other characters than ASCII",
                        "write other keys") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or not all(key.isprintable() for key in keys):
        raise UserError(f"--api_keys={path}", "holds no key, or one that is not printable",
                        "write a key on each line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Gate:
    """Lets requests through to an application that may pass; see `check`.

    Args:
        keys: of which each request must have one, `OPEN_PATHS` and pages aside; none are needed
            without.
        hosts: see `serve.web.gate.check_host`.
        is_closing: whether nothing new is begun.
        metrics: counts the responses, by the paths that exist.
        pages: paths of files of pages. They hold no secret, and a link on another site may lead
            to them.
    """

    def __init__(self, app: App, *, keys: Sequence[str], hosts: Sequence[str],
                 is_closing: Callable[[], bool], metrics: Metrics, paths: Sequence[str],
                 pages: Sequence[str]):
        self._app, self._is_closing, self._metrics = app, is_closing, metrics
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._num_requests = 0
        self._hosts = {host.lower() for host in hosts}
        self._paths, self._pages = {*paths, *pages}, {*pages}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._metrics.count_request(path, message["status"])
            await send(message)

        self._num_requests += 1
        try:
            self.check(scope)
            await self._app(scope, receive, counted)
        except WebError as error:
            response = JSONResponse(error.body, error.status, error.headers)
            await response(scope, receive, counted)
        finally:
            self._num_requests -= 1

    def check(self, scope: Any) -> None:
        """Raises `WebError` if a request may not pass."""
        headers = Headers(scope=scope)
        check_host(headers, self._hosts)
        if scope["path"] in self._pages and scope["method"] in ("GET", "HEAD"):
            return
        check_origin(headers)
        if scope["path"] not in OPEN_PATHS and self._digests:
            self._check_key(headers.get("authorization", ""))
        if scope["method"] == "POST" and self._is_closing():
            raise WebError(503, "the server is closing", "closing")
        if self._num_requests > MAX_REQUESTS:
            raise WebError(429, "too many requests are in progress: try again", "queue_full")

    def _check_key(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # All are compared, so that the time says nothing about any.
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            raise WebError(401, "a valid key is needed: Authorization: Bearer KEY",
                           code="invalid_api_key")
