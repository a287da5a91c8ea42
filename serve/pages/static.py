"""The files that browsers may load, by path: nothing else is read from the disk for a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.page.layout import STYLE
from serve.web.gate import HEADERS

HTML, CSS, SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
FOLDER = Path(__file__).parent
COMMON = {"/page.css": (STYLE, CSS)}        # of all pages
LABELLING = COMMON | {
    "/": (FOLDER / "label.html", HTML), "/label.js": (FOLDER / "label.js", SCRIPT),
    "/label.css": (FOLDER / "label.css", CSS)}
CHAT = COMMON | {
    "/": (FOLDER / "chat.html", HTML), "/chat.js": (FOLDER / "chat.js", SCRIPT),
    "/chat.css": (FOLDER / "chat.css", CSS)}


def make_routes(table: dict[str, tuple[Path, str]]) -> list[Route]:
    """Routes that send the files of a table with `HEADERS`; they are read once, here."""
    return [Route(path, _send(file.read_bytes(), kind)) for path, (file, kind) in table.items()]


def _send(body: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def handle(_request: Request) -> Response:
        return Response(body, media_type=media_type, headers=HEADERS)

    return handle
