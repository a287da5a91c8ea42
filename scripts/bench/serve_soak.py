"""The soak of `scripts.bench.serve`: many short requests of all kinds, and what the server keeps.

Some requests are streamed and some are not, some are wrong, some clients leave in the middle; each
kind has an outcome that is right, and any other is counted. The memory is read at twenty points at
which nothing runs, and a line is fitted to those after the first tenth of the requests (Theil-Sen:
the median of the slopes between all pairs, with its 95 % interval).
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import theilslopes

from core.progress import log
from scripts.bench.serve_load import LEFT, Timing, send_all
from scripts.bench.serve_process import NAME, Started, count_files, get, memory_bytes

NUM_SAMPLES = 20
IDLE_SECS = 60.0        # until nothing runs any more
LONG_TOKENS = 32        # of the answers whose clients leave, longer than what comes at once


class Kind(NamedTuple):
    """A kind of request: fields of its body, by chance, and the fault that is right."""

    make: Callable[[random.Random], Mapping[str, Any]]
    outcome: str = ""


WRONG: Sequence[Mapping[str, Any]] = (
    {"temperature": -1}, {"max_tokens": 0}, {"messages": []}, {"unheard": 1}, {"stop": [""]},
    {"guided_regex": "("}, {"messages": [{"role": "user", "content": "long " * 9999}]})

KINDS: Mapping[str, Kind] = {
    "streamed": Kind(lambda rng: {"stream": True, "stream_options": {"include_usage": True}}),
    "whole": Kind(lambda rng: {}),
    "stream_left": Kind(lambda rng: {"stream": True, "max_tokens": LONG_TOKENS}, LEFT),
    "whole_left": Kind(lambda rng: {"max_tokens": LONG_TOKENS}, LEFT),
    "wrong": Kind(lambda rng: {"stream": rng.random() < 0.5} | rng.choice(WRONG), "status_400"),
    "unknown_model": Kind(lambda rng: {"model": "unknown"}, "status_404"),
    "stop_texts": Kind(lambda rng: {"stream": True, "stop": ["e", " the", "\n"]}),
    "logprobs": Kind(lambda rng: {"logprobs": True, "top_logprobs": rng.randrange(5)}),
    "guided": Kind(lambda rng: {"stream": True, "guided_regex": "[0-9]{1,4}", "max_tokens": 8}),
    "choices": Kind(lambda rng: {"n": 3})}


def make_request(place: int) -> tuple[str, dict[str, Any]]:
    """The kind and the body of a request; its seed, lengths and temperature differ by the place."""
    name = [*KINDS][place % len(KINDS)]
    rng = random.Random(place)
    text = f"What is {place} + {rng.randrange(100)}? " * rng.randint(1, 3)
    body = {"model": NAME, "messages": [{"role": "user", "content": text}], "seed": place,
            "temperature": rng.choice((0, 0.7, 1)), "max_tokens": rng.randint(1, 6)}
    return name, body | KINDS[name].make(rng)


def read_counts(url: str) -> tuple[int, dict[str, int]]:
    """From `/metrics`: answers that are drawn or wait, and requests for chats by their status."""
    _, text = get(url, "/metrics")
    busy = re.findall(r"^heartwood_(?:slots_busy|queue_length)\{.*\} (\S+)$", text, re.M)
    statuses = re.findall(r'^heartwood_requests_total\{path="/v1/chat/completions",'
                          r'status="(\d+)"\} (\S+)$', text, re.M)
    return int(sum(map(float, busy))), {status: int(float(count)) for status, count in statuses}


def await_idle(url: str) -> tuple[int, dict[str, int]]:
    """Waits until nothing runs, for some time; returns as `read_counts`."""
    limit = time.monotonic() + IDLE_SECS
    while (found := read_counts(url))[0] and time.monotonic() < limit:
        time.sleep(0.05)
    return found


def fit_growth(samples: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The line through (requests, bytes), per 1,000 requests, without the first tenth of them."""
    counts, sizes = np.transpose([sample for sample in samples if 10 * sample[0] >= samples[-1][0]])
    slope, _, low, high = theilslopes(sizes, counts / 1000)
    return {"growth_bytes_per_1000": round(slope), "growth_interval": [round(low), round(high)]}


def count_outcomes(names: Sequence[str], timings: Sequence[Timing]) -> dict[str, Any]:
    """Requests by kind, and those that did not end as their kind should, by kind and fault."""
    wrong = Counter(f"{name}: {timing.fault or 'answered'}" for name, timing in zip(names, timings)
                    if timing.fault != KINDS[name].outcome)
    return {"kinds": dict(Counter(names)), "unexpected": dict(wrong)}


def soak(server: Started, number: int, concurrency: int) -> dict[str, Any]:
    """Sends requests.

    Args:
        number: of requests, at least `NUM_SAMPLES`.

    Returns:
        The outcomes, the samples and their fit, and `is_clean`.
    """
    names, bodies = zip(*map(make_request, range(number)))
    ends = np.linspace(0, number, NUM_SAMPLES + 1).astype(int).tolist()
    timings: list[Timing] = []
    samples, num_files, secs = [], [], 0.0
    for start, end in pairwise(ends):
        leavers = {place for place, name in enumerate(names[start:end])
                   if KINDS[name].outcome == LEFT}
        more, took = asyncio.run(send_all(server.url, bodies[start:end], concurrency, leavers))
        timings, secs = timings + more, secs + took
        num_busy, statuses = await_idle(server.url)
        samples.append((end, memory_bytes(server.process)))
        num_files.append(count_files(server.process))
        log(f"{end} requests: {samples[-1][1] / 2**20:.1f} MiB, {num_files[-1]} files")
    found = {"requests": number, "secs": round(secs, 1), **count_outcomes(names, timings),
             "statuses": statuses, "busy_or_waiting": num_busy, "memory_bytes": samples,
             "open_files": num_files, **fit_growth(samples)}
    return found | {"is_clean": is_clean(found)}


def is_clean(found: Mapping[str, Any]) -> bool:
    """Whether every request of a soak ended as it should, no response was a fault of the server,
    and all slots were free at the end."""
    return not (found["unexpected"] or found["busy_or_waiting"]
                or any(int(status) >= 500 for status in found["statuses"]))
