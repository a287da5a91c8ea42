"""Runs untrusted Python programs and judges them, several at a time.

What protects the machine, where its kernel has it: `eval.sandbox.confine.LAYERS`. What protects
the verdict: the check runs in another process than the program and compares literal values, so
that no patched builtin, `__eq__` or early exit can make it pass. What remains possible: a bug of
the kernel, whose files and devices are not virtual here as they would be in a virtual machine;
and, as in any test, code that is right for the arguments of the check and no others.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import log
from eval.sandbox.confine import (
    LANDLOCK,
    LAYERS,
    NAMESPACES,
    SECCOMP,
    TREE,
    Limits,
    counts_tasks,
)
from eval.sandbox.frames import receive, send
from eval.sandbox.sides import FAILED

ROOT = str(Path(__file__).resolve().parents[2])
NEEDED = {"files": (TREE, LANDLOCK), "the network": (NAMESPACES, SECCOMP),
          "processes without number": (TREE, SECCOMP)}
# As -I does it, but with a seed of hashes, so that the order of sets is the same in every run.
START = ["-s", "-S", "-P", "-B", "-X", "utf8", "-c",
         f"import sys; sys.path.append({ROOT!r}); from eval.sandbox.server import main; main()"]
GRACE_SECS = 60.0     # for all that the sandbox itself does
ENVIRONMENT = {"PYTHONHASHSEED": "0"}


@dataclasses.dataclass(frozen=True)
class Program:
    """An untrusted program.

    Attributes:
        code: the submitted code.
        check: trusted code that calls functions of it as ``submitted("name")(...)`` and raises
            unless they are right. Where there is none, the program need only run to its end, by
            its own account.
    """

    code: str
    check: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        verdict: one of `eval.sandbox.sides.VERDICTS`: passed, failed (an error, a wrong value or
            an early end), timeout, memory, output, or forbidden (an operation was refused).
        detail: the error, or the limit.
        output: of stdout and stderr, up to the limit.
        cpu_secs: of processor time that the program used.
        secs: of time, with all that the sandbox does.
    """

    verdict: str
    detail: str
    output: str = ""
    cpu_secs: float = 0.0
    secs: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the program is right."""
        return self.verdict == "passed"


class _Server:
    """A server process (`eval.sandbox.server`)."""

    def __init__(self, layers: tuple[str, ...]):
        self.wanted = layers
        self._process = subprocess.Popen(
            [sys.executable, *START, json.dumps(layers)], env=ENVIRONMENT, cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True)
        try:
            self.layers: tuple[str, ...] = tuple(self._receive()["layers"])
        except EOFError as error:
            self.close()
            raise UserError("sandbox", "its process did not start",
                            "check that the sandbox's Python runs by itself") from error

    def run(self, program: Program, limits: Limits) -> dict[str, Any]:
        """Runs one program.

        Raises:
            EOFError, OSError: the server has ended.
        """
        name = "submitted" if program.check else "__main__"
        send(self._process.stdin.fileno(), {
            "code": program.code, "name": name, "limits": dataclasses.asdict(limits)})
        send(self._process.stdin.fileno(), {"check": program.check})
        return self._receive(limits.wall_secs + GRACE_SECS)

    def _receive(self, secs: float = GRACE_SECS) -> Any:
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(secs * 1000):
            raise EOFError("no answer")
        return receive(descriptor)

    def close(self) -> None:
        """Ends the process, with the case that it may be running."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_IDLE: list[tuple[int, _Server]] = []       # with the process that started it
_LOCK = threading.Lock()


def _borrow(layers: tuple[str, ...]) -> _Server:
    with _LOCK:
        for index, (owner, server) in enumerate(_IDLE):
            if owner == os.getpid() and server.wanted == layers:
                del _IDLE[index]
                return server
    return _Server(layers)


def _give_back(server: _Server) -> None:
    with _LOCK:
        _IDLE.append((os.getpid(), server))


@atexit.register
def close_servers() -> None:
    """Ends the servers that wait for programs; the next program starts another."""
    with _LOCK:
        for owner, server in _IDLE:
            if owner == os.getpid():
                server.close()
        _IDLE.clear()


def find_layers(wanted: Sequence[str] = tuple(LAYERS)) -> tuple[str, ...]:
    """The layers of `eval.sandbox.confine.LAYERS` that this machine has, logged in one line."""
    return _find_layers(tuple(wanted))


@functools.lru_cache
def _find_layers(wanted: tuple[str, ...]) -> tuple[str, ...]:
    server = _borrow(wanted)
    _give_back(server)
    without = [text for layer, text in LAYERS.items() if layer not in server.layers]
    log("sandbox: " + "; ".join(LAYERS[layer] for layer in server.layers)
        + (f"; without {'; '.join(without)}" if without else ""))
    return server.layers


def run_programs(programs: Iterable[Program | str], limits: Limits | None = None, *,
                 num_workers: int = 0, layers: Sequence[str] = tuple(LAYERS)) -> list[Outcome]:
    """Runs programs, each for itself; a text is a program without a check.

    Args:
        num_workers: programs at a time; 0 is one for each processor.
        layers: those to use, of the ones that this machine has.

    Raises:
        UserError: nothing here keeps a program from files, the network or processes without
            number, and `Limits.allow_unconfined` is not set; or `Limits.may_fork` is, where
            processes are not counted; or a layer that was there at the start fails.
    """
    limits, layers = limits or Limits(), tuple(layers)
    programs = [Program(each) if isinstance(each, str) else each for each in programs]
    active = find_layers(layers)
    missing = [what for what, kinds in NEEDED.items() if not set(kinds) & set(active)]
    if missing and not limits.allow_unconfined:
        raise UserError("sandbox", f"nothing here keeps programs from {', '.join(missing)}",
                        "run on Linux 5.13 or later, or where user namespaces are allowed; in a "
                        "container of your own, allow unconfined programs in the `Limits`")
    if limits.may_fork and not counts_tasks(active):
        raise UserError("sandbox", "programs that may fork need processes that are counted",
                        "run where user namespaces are allowed, on Linux 5.14 or later")
    num_workers = min(num_workers or os.cpu_count() or 1, len(programs))
    if num_workers <= 1:
        return [_run(program, limits, layers) for program in programs]
    with ThreadPoolExecutor(num_workers) as pool:
        return list(pool.map(lambda program: _run(program, limits, layers), programs))


def run_program(program: Program | str, limits: Limits | None = None) -> Outcome:
    """Runs one program; see `run_programs`."""
    return run_programs([program], limits)[0]


def _run(program: Program, limits: Limits, layers: tuple[str, ...]) -> Outcome:
    began = time.monotonic()
    for _ in range(2):
        server = _borrow(layers)
        try:
            outcome = server.run(program, limits)
        except (EOFError, OSError):
            server.close()
            continue
        _give_back(server)
        if "broken" in outcome:
            raise UserError("sandbox", f"a layer failed ({outcome['broken']})",
                            "lower the number of programs at a time")
        return Outcome(outcome["verdict"], outcome["detail"], outcome["output"],
                       outcome["cpu_secs"], time.monotonic() - began)
    return Outcome(FAILED, "the sandbox ended with it, twice", secs=time.monotonic() - began)
