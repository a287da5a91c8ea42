"""The load of `scripts.bench.serve`: requests to a server, several at once, timed as clients see
them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

LINE_BYTES = 1 << 20    # of an event


class Timing(NamedTuple):
    """How a request went.

    Attributes:
        first_secs: until its first text.
        secs: until its end.
        num_tokens: of the answer.
        fault: what went wrong, in a word; "" if nothing.
    """

    first_secs: float
    secs: float
    num_tokens: int
    fault: str = ""


async def send(url: str, body: Mapping[str, Any]) -> Timing:
    """Sends a request for a stream, on a connection of its own.

    Args:
        url: of the server, without a path.
    """
    parts, data = urlsplit(url), json.dumps(body).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
    began, first_secs, num_tokens, is_done = time.perf_counter(), 0.0, 0, False
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port,
                                                       limit=LINE_BYTES)
        writer.write(head.encode() + data)
        status = int((await reader.readline()).split()[1])
        async for line in reader:       # those of headers and of chunks' sizes are no events
            if not line.startswith(b"data: "):
                continue
            is_done = line.startswith(b"data: [DONE]")
            event = {} if is_done else json.loads(line[6:])
            text = any(choice["delta"].get("content") for choice in event.get("choices", ()))
            if text and not first_secs:
                first_secs = time.perf_counter() - began
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
        writer.close()
    except (OSError, ValueError, LookupError) as error:
        return Timing(0.0, time.perf_counter() - began, 0, type(error).__name__)
    secs = time.perf_counter() - began
    fault = "" if is_done else f"status_{status}" if status != 200 else "broken_off"
    return Timing(first_secs or secs, secs, num_tokens, fault)


async def send_all(url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int) -> tuple[
        list[Timing], float]:
    """Sends all, each as soon as one of `concurrency` is over; also returns the seconds."""
    waiting, timings = iter(bodies), []

    async def run() -> None:
        for body in waiting:
            timings.append(await send(url, body))

    began = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(concurrency)))
    return timings, time.perf_counter() - began


def summarise(timings: Sequence[Timing], secs: float) -> dict[str, Any]:
    """Tokens per second of all requests that went well, and percentiles of their times."""
    good = [timing for timing in timings if not timing.fault]
    faults = [timing.fault for timing in timings if timing.fault]
    gaps = [(timing.secs - timing.first_secs) / (timing.num_tokens - 1) for timing in good
            if timing.num_tokens > 1]
    num_tokens = sum(timing.num_tokens for timing in good)
    return {"requests": len(timings), "faults": {name: faults.count(name) for name in {*faults}},
            "tokens": num_tokens, "secs": round(secs, 3),
            "tokens_per_sec": round(num_tokens / secs, 2),
            "first_token_secs": percentiles([timing.first_secs for timing in good]),
            "between_tokens_secs": percentiles(gaps)}


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """The median and the 99th percentile."""
    if not len(values):
        return {"p50": None, "p99": None}
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 99)}
