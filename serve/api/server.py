"""A server of HTTP that closes gracefully."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from typing import Any

import uvicorn

from core.progress import log
from serve.api.app import Served, make_app

LAST_SECS = 5       # for connections to end, once their answers have


class Server(uvicorn.Server):
    """Serves until a signal comes (SIGTERM, SIGINT): what runs then is finished within a limit,
    and new requests get 503. A second signal ends it at once.

    Args:
        keys, hosts: see `serve.api.limits.Gate`.
        shutdown_secs: the limit.
    """

    def __init__(self, served: Served, *, keys: Sequence[str] = (), hosts: Sequence[str] = (),
                 shutdown_secs: float = 30.0):
        app = make_app(served, keys=keys, hosts=hosts)
        super().__init__(uvicorn.Config(
            # Its own configuration of logging would close handlers that others have set up.
            app, log_config=None, log_level="warning", access_log=False, server_header=False,
            lifespan="off", timeout_graceful_shutdown=LAST_SECS))
        self._served, self._shutdown_secs = served, shutdown_secs
        self._limit = float("inf")

    def close(self) -> None:
        """Begins to close, from any thread."""
        if not self._served.is_closing:
            self._limit = time.monotonic() + self._shutdown_secs
            self._served.is_closing = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """See `uvicorn.Server`: called with a signal."""
        if self._served.is_closing:
            self._limit, self.force_exit = 0.0, True
        else:
            log(f"{signal.Signals(sig).name}: {self._served.num_open} answers are finished within "
                f"{self._shutdown_secs:g} s, new ones are refused; again ends them")
        self.close()

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server`: called ten times a second; returns whether to end."""
        if self._served.is_closing and (not self._served.num_open
                                        or time.monotonic() > self._limit):
            # Those that are late fail now, so that their clients read why.
            await asyncio.gather(*(asyncio.to_thread(worker.close)
                                   for worker in self._served.workers.values()))
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """See `uvicorn.Server`: called at the end."""
        await super().shutdown(sockets)
        if self._served.arena:
            self._served.arena.store.close()
