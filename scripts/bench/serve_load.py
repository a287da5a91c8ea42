"""The load of `scripts.bench.serve`: requests to a server, several at once, timed as clients see
them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

LINE_BYTES = 1 << 20    # of an event
LEFT = "left"           # the fault of a request whose client has gone
LEAVE_SECS = 0.05       # after which a client goes that waits for no stream


class Timing(NamedTuple):
    """How a request went.

    Attributes:
        first_secs: until its first text.
        secs: until its end.
        num_tokens: of the answer.
        fault: what went wrong, in a word; "" if nothing.
        num_prompt_tokens: where the server counts them.
    """

    first_secs: float
    secs: float
    num_tokens: int
    fault: str = ""
    num_prompt_tokens: int = 0


async def send(url: str, body: Mapping[str, Any], *, leaves: bool = False) -> Timing:
    """Sends a request for a chat, on a connection of its own.

    A server that counts no tokens of a stream, as that of llama-cpp-python, sends one a piece, and
    the pieces with text are counted.

    Args:
        url: of the server, without a path.
        leaves: whether the client closes the connection at the first text, or, of an answer that
            comes as a whole, after a moment.
    """
    parts, data = urlsplit(url), json.dumps(body).encode()
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
    began, first_secs, num_pieces, usage, is_done = time.perf_counter(), 0.0, 0, {}, False
    writer = None
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port,
                                                       limit=LINE_BYTES)
        writer.write(head.encode() + data)
        if leaves and not body.get("stream"):
            await writer.drain()
            await asyncio.sleep(LEAVE_SECS)
            return Timing(0.0, time.perf_counter() - began, 0, LEFT)
        status = int((await reader.readline()).split()[1])
        async for line in reader:       # those of headers and of chunks' sizes hold no object
            if line.startswith(b"data: [DONE]"):
                is_done = True
            found = _read_object(line)
            num_pieces += _has_text(found)
            if num_pieces and not first_secs:
                first_secs = time.perf_counter() - began
                if leaves:
                    return Timing(first_secs, first_secs, 0, LEFT)
            usage = found.get("usage") or usage
            is_done |= found.get("object") == "chat.completion"
    except (OSError, ValueError, LookupError) as error:
        return Timing(0.0, time.perf_counter() - began, 0, type(error).__name__)
    finally:
        if writer is not None:
            writer.close()
    secs = time.perf_counter() - began
    fault = "" if is_done else f"status_{status}" if status != 200 else "broken_off"
    return Timing(first_secs or secs, secs, usage.get("completion_tokens", num_pieces), fault,
                  usage.get("prompt_tokens", 0))


def _read_object(line: bytes) -> dict[str, Any]:
    """The object of an event or of a whole answer; an empty one if the line holds neither."""
    text = line.removeprefix(b"data: ")
    return json.loads(text) if text.startswith(b"{") else {}


def _has_text(found: Mapping[str, Any]) -> bool:
    """Whether it is a piece of an answer, with text."""
    return any(choice.get("delta", {}).get("content") for choice in found.get("choices") or ())


async def send_all(url: str, bodies: Sequence[Mapping[str, Any]], concurrency: int,
                   leavers: Collection[int] = ()) -> tuple[list[Timing], float]:
    """Sends all, each as soon as one of `concurrency` is over.

    Args:
        leavers: places of the requests whose clients leave; see `send`.

    Returns:
        How each went, in their order; and the seconds that all took.
    """
    waiting, timings = iter(enumerate(bodies)), {}

    async def run() -> None:
        for place, body in waiting:
            timings[place] = await send(url, body, leaves=place in leavers)

    began = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(concurrency)))
    return [timings[place] for place in range(len(bodies))], time.perf_counter() - began


def summarise(timings: Sequence[Timing], secs: float) -> dict[str, Any]:
    """Tokens per second of all requests that went well, and percentiles of their times."""
    good = [timing for timing in timings if not timing.fault]
    faults = [timing.fault for timing in timings if timing.fault]
    gaps = [(timing.secs - timing.first_secs) / (timing.num_tokens - 1) for timing in good
            if timing.num_tokens > 1]
    num_tokens = sum(timing.num_tokens for timing in good)
    return {"requests": len(timings), "faults": {name: faults.count(name) for name in {*faults}},
            "prompt_tokens": sum(timing.num_prompt_tokens for timing in good),
            "tokens": num_tokens, "secs": round(secs, 3),
            "tokens_per_sec": round(num_tokens / secs, 2),
            "first_token_secs": percentiles([timing.first_secs for timing in good]),
            "between_tokens_secs": percentiles(gaps)}


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float | None]:
    """The median and the 99th percentile."""
    if not len(values):
        return {"p50": None, "p99": None}
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 99)}
