"""The files that browsers may load, by path: nothing else is read from the disk for a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.page.layout import STYLE
from serve.web.gate import HEADERS

TYPES = {suffix: f"text/{kind}; charset=utf-8"
         for suffix, kind in ((".html", "html"), (".css", "css"), (".js", "javascript"))}
FRAME = Path(__file__).with_name("page.html")       # of all pages: their files are its body
ARENA_LINK = '<a href="/arena">Arena</a>'           # of the chat page, where there is an arena


def _table(path: str, *names: str) -> dict[str, Path]:
    """A page's own path, of the first of the files, and those of the others."""
    page, *others = (Path(__file__).with_name(name) for name in (*names, "page.js"))
    return {path: page, "/page.css": STYLE} | {f"/{file.name}": file for file in others}


LABELLING = _table("/", "label.html", "label.css", "label.js")
CHAT = _table("/", "chat.html", "chat.css", "chat.js", "conversations.js", "settings.js",
              "stream.js", "turns.js")
ARENA = _table("/arena", "arena.html", "arena.css", "arena.js")


def make_routes(table: dict[str, Path]) -> list[Route]:
    """Routes that send the files of a table with `HEADERS`; they are read once, here."""
    gone = "" if "/arena" in table else ARENA_LINK
    return [Route(path, _send(_read(file).replace(gone, ""), TYPES[file.suffix]))
            for path, file in table.items()]


def _read(file: Path) -> str:
    if file.suffix != ".html":
        return file.read_text()
    return FRAME.read_text().format(name=file.stem, body=file.read_text())


def _send(text: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def handle(_request: Request) -> Response:
        return Response(text, media_type=media_type, headers=HEADERS)

    return handle
