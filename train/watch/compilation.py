"""Counts compilations, their time, and hits of the persistent cache.

A program that is compiled twice in a run has a shape or a sharding that changes, which can cost
hours on a large model.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"     # reported after a cache hit as well
CACHE_HIT = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Program:
    """Compilations of the programs of one name.

    Attributes:
        num_compiled: times that it was compiled, for any shapes, cache hits included.
        num_cached: how many of these were read from the persistent cache.
        secs: time in the compiler or in reading the cache.
    """

    num_compiled: int = 0
    num_cached: int = 0
    secs: float = 0.0


class Compilations:
    """Counts compilations of this process from its creation until `close`.

    Args:
        on_compiled: called with the seconds of each, on the thread that compiled.

    Attributes:
        programs: by name, e.g. ``jit(train_step)``.
    """

    def __init__(self, on_compiled: Callable[[float], None] | None = None):
        self.programs: dict[str, Program] = {}
        self._on_compiled = on_compiled
        self._lock = threading.Lock()       # checkpointing compiles on threads of its own
        self._thread = threading.local()    # a hit is reported just before its program
        self._is_open = True
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)

    def __enter__(self) -> Compilations:
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        self.close()

    def summary(self) -> dict[str, float]:
        """Number of programs compiled, of those from the cache, and seconds, as metrics."""
        with self._lock:
            programs = list(self.programs.values())
        return {"num_programs_compiled": sum(program.num_compiled for program in programs),
                "num_programs_cached": sum(program.num_cached for program in programs),
                "compile_secs": sum(program.secs for program in programs)}

    def line(self) -> str:
        """The summary as a line of the log."""
        summary = self.summary()
        return (f"compiled {summary['num_programs_compiled']} programs in "
                f"{summary['compile_secs']:.1f} s ({summary['num_programs_cached']} from the "
                "cache)")

    def close(self) -> None:
        """Stops counting. The listeners stay registered: JAX has no public way to remove them."""
        self._is_open = False

    def _on_event(self, event: str, **labels: str | int) -> None:
        if event == CACHE_HIT:
            self._thread.hit = True

    def _on_duration(self, event: str, secs: float, **labels: str | int) -> None:
        if event != COMPILED or not self._is_open:
            return
        hit, self._thread.hit = getattr(self._thread, "hit", False), False
        with self._lock:
            program = self.programs.setdefault(str(labels.get("fun_name", "?")), Program())
            program.num_compiled += 1
            program.num_cached += hit
            program.secs += secs
        if self._on_compiled:
            self._on_compiled(secs)
