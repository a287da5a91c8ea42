"""Counts of a server, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

SECS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
RATE_SECS = 10.0    # that the rate of tokens is averaged over


class Number:
    """A number that grows (`add`) or is set."""

    def __init__(self) -> None:
        self.value = 0.0
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0) -> None:
        """Adds an amount."""
        with self._lock:
            self.value += amount

    def set(self, value: float) -> None:
        """Sets the value."""
        self.value = value


class Rate(Number):
    """A number that grows, and how fast it does."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: deque[tuple[float, float]] = deque()

    def add(self, amount: float = 1.0) -> None:
        """Adds an amount."""
        super().add(amount)
        with self._lock:
            self._recent.append((time.monotonic(), amount))
            self._forget()

    def per_sec(self) -> float:
        """What was added per second, over the latest seconds."""
        with self._lock:
            self._forget()
            return sum(amount for _, amount in self._recent) / RATE_SECS

    def _forget(self) -> None:
        while self._recent and self._recent[0][0] < time.monotonic() - RATE_SECS:
            self._recent.popleft()


class Histogram:
    """Counts of seconds at most as long as each bound."""

    def __init__(self, bounds: Sequence[float] = SECS_BUCKETS):
        self._bounds, self._counts = bounds, [0] * (len(bounds) + 1)
        self._sum, self._lock = 0.0, threading.Lock()

    def observe(self, secs: float) -> None:
        """Counts a duration."""
        with self._lock:
            self._counts[bisect.bisect_left(self._bounds, secs)] += 1
            self._sum += secs

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """The lines of the format."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum:g}"
        yield f"{name}_count{{{labels}}} {total}"


class ModelMetrics:
    """What is counted of a model.

    Attributes:
        tokens: of prompts that were `read`, of prompts that were `reused` from the prefix cache,
            and `drawn`.
        busy, waiting: answers in slots, and those that wait for one.
        first_token: seconds to an answer's first tokens.
    """

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self.tokens = {"read": Number(), "reused": Number(), "drawn": Rate()}
        self.busy, self.waiting, self.first_token = Number(), Number(), Histogram()

    @property
    def hit_ratio(self) -> float:
        """Part of all tokens of prompts that were reused."""
        reused, read = (self.tokens[name].value for name in ("reused", "read"))
        return reused / (reused + read) if reused else 0.0


class Metrics:
    """What is counted of a server; `models` by name."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self._requests: dict[tuple[str, int], Number] = {}
        self._lock = threading.Lock()

    def count_request(self, path: str, status: int) -> None:
        """Counts a request by the status of its response."""
        with self._lock:
            self._requests.setdefault((path, status), Number()).add()

    @property
    def num_requests(self) -> int:
        """Requests until now."""
        with self._lock:
            return int(sum(number.value for number in self._requests.values()))

    def format(self) -> str:
        """The text of `/metrics`."""
        lines = []

        def begin(name: str, kind: str, text: str) -> str:
            lines.extend((f"# HELP heartwood_{name} {text}", f"# TYPE heartwood_{name} {kind}"))
            return f"heartwood_{name}"

        name = begin("requests_total", "counter", "Requests by path and status of HTTP.")
        with self._lock:
            counted = [(path, status, number.value)
                       for (path, status), number in sorted(self._requests.items())]
        lines += [f'{name}{{path="{path}",status="{status}"}} {value:g}'
                  for path, status, value in counted]
        labelled = [(f'model="{escape(model)}"', own) for model, own in self.models.items()]
        for name, kind, text, value in _MODEL_METRICS:
            name = begin(name, kind, text)
            lines += [f"{name}{{{labels}}} {value(own):.12g}" for labels, own in labelled]
        name = begin("time_to_first_token_seconds", "histogram", "From request to first tokens.")
        for labels, own in labelled:
            lines.extend(own.first_token.lines(name, labels))
        return "\n".join(lines) + "\n"


_MODEL_METRICS = (
    ("slots", "gauge", "Answers that can be drawn at once.", lambda own: own.num_slots),
    ("slots_busy", "gauge", "Answers that are drawn.", lambda own: own.busy.value),
    ("queue_length", "gauge", "Answers that wait for a slot.", lambda own: own.waiting.value),
    ("prompt_tokens_total", "counter", "Tokens of prompts that were read.",
     lambda own: own.tokens["read"].value),
    ("prefix_cache_tokens_total", "counter", "Tokens of prompts that a slot held already.",
     lambda own: own.tokens["reused"].value),
    ("prefix_cache_hit_ratio", "gauge", "Part of all tokens of prompts that a slot held already.",
     lambda own: own.hit_ratio),
    ("generated_tokens_total", "counter", "Tokens that were drawn.",
     lambda own: own.tokens["drawn"].value),
    ("generated_tokens_per_second", "gauge", f"Mean of the latest {RATE_SECS:g} seconds.",
     lambda own: own.tokens["drawn"].per_sec()))


def escape(text: str) -> str:
    """A label's value."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
