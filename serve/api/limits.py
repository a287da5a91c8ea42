"""Who may ask, and how much: keys, hosts, origins, and sizes of bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.errors import UserError, require_file
from serve.api.errors import ApiError
from serve.api.metrics import Metrics

MAX_BODY_BYTES = 4 << 20
MAX_REQUESTS = 512      # in progress at once
BODY_SECS = 30.0        # in which a body must have come
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
        keys: of which each request must have one, `OPEN_PATHS` aside; none are needed without.
        hosts: names in the header `Host` that are accepted beside addresses and localhost. A page
            of another site that makes its own name point here (DNS rebinding) is thus refused.
        is_closing: whether nothing new is begun.
        metrics: counts the responses, by the paths that exist.
    """

    def __init__(self, app: App, *, keys: Sequence[str], hosts: Sequence[str],
                 is_closing: Callable[[], bool], metrics: Metrics, paths: Sequence[str]):
        self._app, self._is_closing, self._metrics = app, is_closing, metrics
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._num_requests = 0
        self._hosts, self._paths = {"localhost", *(host.lower() for host in hosts)}, {*paths}

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

        from starlette.responses import JSONResponse

        self._num_requests += 1
        try:
            self.check(scope)
            await self._app(scope, receive, counted)
        except ApiError as error:
            response = JSONResponse(error.body, error.status, error.headers)
            await response(scope, receive, counted)
        finally:
            self._num_requests -= 1

    def check(self, scope: Any) -> None:
        """Raises `ApiError` if a request may not pass."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not self._is_known(host):
            raise ApiError(403, "this server has another name: see --allowed_hosts",
                           code="unknown_host")
        self._check_origin(headers, host)
        if scope["path"] not in OPEN_PATHS and self._digests:
            self._check_key(headers.get(b"authorization", ""))
        if scope["method"] == "POST" and self._is_closing():
            raise ApiError(503, "the server is closing", code="closing")
        if self._num_requests > MAX_REQUESTS:
            raise ApiError(429, "too many requests are in progress: try again", code="queue_full")

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._hosts:
                return True
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return False

    def _check_origin(self, headers: dict[bytes, str], host: str) -> None:
        """Refuses what a page of another site sends."""
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", "none")
        is_own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if not is_own or site not in ("none", "same-origin"):
            raise ApiError(403, "pages of other sites may not ask this server",
                           code="foreign_origin")

    def _check_key(self, header: str) -> None:
        scheme, _, key = header.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()
        # All are compared, so that the time says nothing about any.
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(found):
            raise ApiError(401, "a valid key is needed: Authorization: Bearer KEY",
                           code="invalid_api_key")


async def read_body(request: Any) -> bytes:
    """The body of a request; raises `ApiError` if it is too large or too slow."""
    try:
        declared = int(request.headers.get("content-length", 0))
    except ValueError:
        declared = 0
    if declared > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECS:g} s",
                       code="timeout") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB",
                    code="body_too_large")
