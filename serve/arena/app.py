"""The routes of the arena: its pages, prompts, votes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from serve.api.job import ClientGone, Job
from serve.api.replies import event
from serve.arena.arena import Arena
from serve.arena.battles import VERDICTS, Battle
from serve.arena.ranking import Ranking
from serve.arena.steps import Change
from serve.labelling.forms import parse_name
from serve.web.errors import WebError
from serve.web.fields import Fields, parse_body
from serve.web.gate import HEADERS, read_body

MAX_BODY_BYTES = 1 << 20
MAX_PROMPT_CHARS = 16_000
MARK = re.compile(r"[0-9a-f]{32}")      # of battles
PAGES = ("/arena", "/leaderboard")      # that need no key, and to which other sites may link
# The ranking has styles in itself, and nothing else that a browser would load or run.
RANKING_HEADERS = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"}

Handler = Callable[[Request], Awaitable[Response]]


def make_table(arena: Arena | None) -> dict[str, tuple[str, Handler]]:
    """Methods and handlers by path, the page's files aside; without an arena, those that say so."""
    if arena is None:
        return {path: ("GET", _no_arena) for path in PAGES}
    routes = Routes(arena)
    return {
        "/leaderboard": ("GET", routes.leaderboard), "/arena/ask": ("POST", routes.ask),
        "/arena/vote": ("POST", routes.vote), "/arena/battle": ("GET", routes.battle)}


class Routes:
    """The handlers of an arena."""

    def __init__(self, arena: Arena):
        self._arena, self._ranking = arena, Ranking()

    async def ask(self, request: Request) -> Response:
        """Both answers to a prompt, as events."""
        fields = await _read(request)
        mark, prompt = _mark(fields.text("battle", "")), fields.text("prompt")
        fields.end()
        if not prompt.strip() or len(prompt) > MAX_PROMPT_CHARS:
            raise fields.wrong("prompt", f"must be a text of 1 to {MAX_PROMPT_CHARS:,} characters")
        return BattleStream(self._arena, *await self._arena.ask(mark, prompt))

    async def vote(self, request: Request) -> Response:
        """Stores a verdict; the battle with the models' names."""
        fields = await _read(request)
        mark, verdict = _mark(fields.text("battle")), fields.one_of("verdict", "", VERDICTS)
        name = fields.text("annotator", "")
        fields.end()
        battle = await self._arena.vote(mark, verdict, parse_name(name) if name.strip() else "")
        return JSONResponse(battle.describe(), headers=HEADERS)

    async def battle(self, request: Request) -> Response:
        """A battle as far as it has come."""
        found = self._arena.find(_mark(request.query_params.get("id", "")))
        return JSONResponse(found.describe(), headers=HEADERS)

    async def leaderboard(self, _request: Request) -> Response:
        """The ranking."""
        page = await self._ranking.render(self._arena.store, self._arena.names)
        return HTMLResponse(page, headers=RANKING_HEADERS)


class BattleStream(Response):
    """Both answers as server-sent events: pieces of both, then how the battle stands."""

    def __init__(self, arena: Arena, battle: Battle, jobs: Sequence[Job]):
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        del self.headers["content-length"]
        self._arena, self._battle, self._jobs = arena, battle, jobs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        async def write(data: Mapping[str, Any], *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": event(data), "more_body": more})

        async def write_change(change: Change) -> None:
            await write(dataclasses.asdict(change))

        gone = asyncio.create_task(_until_gone(receive))
        try:
            with contextlib.suppress(ClientGone, OSError):
                await send({"type": "http.response.start", "status": 200,
                            "headers": self.raw_headers})
                await write({"battle": self._battle.id})
                try:
                    await self._arena.answer(self._battle, self._jobs, gone, write_change)
                    await write({"state": self._battle.state}, more=False)
                except WebError as error:
                    await write(error.body, more=False)
        finally:
            gone.cancel()


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request) -> Fields:
    """The fields of a body, which no form of another site can send."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise WebError(415, "the body must be application/json", "invalid_type")
    return Fields(parse_body(await read_body(request, MAX_BODY_BYTES)))


def _mark(value: str) -> str:
    if value and not MARK.fullmatch(value):
        raise WebError(400, "battle must be the id that came with the first answer",
                       "invalid_value", param="battle")
    return value


async def _no_arena(_request: Request) -> Response:
    raise WebError(404, "there is no arena: begin the server with --votes=DIR", "no_arena")
