"""Which requests come through: those to a server's own name, from its own pages, not too large; and
what pages forbid the browsers that show them."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request

from serve.web.errors import WebError

BODY_SECS = 30.0        # in which a body must have come
HEADERS = {             # what pages forbid a browser
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store"}


def check_host(headers: Headers, names: Collection[str]) -> None:
    """Refuses a request to another name than the server's.

    A page of another site that makes its own name point here (DNS rebinding) is thus refused; an
    address is nobody's name.

    Args:
        names: those of the server, in lower case, beside localhost.
    """
    try:
        name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if name != "localhost" and name not in names:
            ipaddress.ip_address(name)
    except ValueError:
        raise WebError(403, "this server has another name: see --allowed_hosts",
                           "unknown_host") from None


def check_origin(headers: Headers) -> None:
    """Refuses what a page of another site sends."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    is_own = (origin is None
              or origin.partition("://")[2].lower() == headers.get("host", "").lower())
    if not is_own or site not in ("none", "same-origin"):
        raise WebError(403, "pages of other sites may not ask this server", "foreign_origin")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body of a request; raises `WebError` if it is too large or too slow."""
    declared = request.headers.get("content-length", "")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECS):
            if declared.isdecimal() and int(declared) > max_bytes:
                raise _too_large(max_bytes)
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise WebError(408, f"the body did not come within {BODY_SECS:g} s",
                           "timeout") from None
    return bytes(body)


def _too_large(max_bytes: int) -> WebError:
    return WebError(413, f"the body is larger than {max_bytes >> 20} MiB", "body_too_large")
