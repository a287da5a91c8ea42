"""The process from which cases are forked; it holds the standard library alone, and no threads.

    evaluation -> server -> case -> check           trusted; calls the program, compares literals
                                 -> program         untrusted; the first of its process namespace

The server enters its namespaces once. A case reads the submitted code, forks the check, which
itself reads the check's text, so that no copy of it is in the program's memory, then the program.
The case holds the clock, caps the output and ends both.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from eval.sandbox import kernel, landlock, namespaces, seccomp, sides
from eval.sandbox.confine import LANDLOCK, LIMITS, NAMESPACES, SECCOMP, TREE, Limits, confine
from eval.sandbox.frames import receive, send

END_SECS = 5.0      # that the end of what a case started may take


def main() -> None:
    """Enters the layers that the first argument names and this machine has; then serves cases."""
    wanted = json.loads(sys.argv[1])
    sys.path = [path for path in sys.path if path.startswith(sys.base_prefix)]
    layers = _enter(wanted)
    send(1, {"layers": layers})
    while True:
        select.select([0], [], [])
        if not _is_waiting():
            return
        pid = os.fork()
        if pid == 0:
            _serve_case(layers)
        if os.waitpid(pid, 0)[1] != 0:
            return          # the messages' order is lost: the evaluation starts another server


def _is_waiting() -> bool:
    """Whether there is a request, and not the end of all."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    events = dict(poll.poll(0)).get(0, 0)
    return bool(events & select.POLLIN)


def _enter(wanted: Collection[str]) -> list[str]:
    """Enters namespaces; returns the layers that each case will have."""
    active = []
    ways = ([NAMESPACES, TREE], [NAMESPACES], [])
    for way in ways:
        if set(way) <= set(wanted) and (not way or _works(lambda way=way: _try(way))):
            active += way
            break
    if NAMESPACES in active:
        namespaces.enter(has_files=TREE in active)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    others = {LIMITS: True, LANDLOCK: landlock.find_abi() > 0,
              SECCOMP: seccomp.is_known() and _works(lambda: confine([SECCOMP], Limits(), None))}
    return active + [layer for layer, has in others.items() if has and layer in wanted]


def _try(way: Collection[str]) -> None:
    namespaces.enter(has_files=TREE in way)
    namespaces.enter_case(1 << 20 if TREE in way else 0)
    pid = os.fork()         # the first process of the namespace, without which there is none
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _works(step: Callable[[], None]) -> bool:
    """Whether a step succeeds, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            step()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _serve_case(layers: Collection[str]) -> NoReturn:
    try:
        request = receive(0)
        limits = Limits(**request["limits"])
        outcome = _run_case(request, limits, layers)
        send(1, outcome)
    except BaseException:
        os._exit(1)
    os._exit(0)


def _run_case(request: dict, limits: Limits, layers: Collection[str]) -> dict[str, Any]:
    os.setsid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    work = namespaces.WORK if TREE in layers else tempfile.mkdtemp(prefix="sandbox-")
    output, calls, replies, result = os.pipe(), os.pipe(), os.pipe(), os.pipe()
    try:
        checker = os.fork()
        if checker == 0:
            _check(layers, limits, calls[1], replies[0], result[1])
        if NAMESPACES in layers:
            namespaces.enter_case(limits.file_bytes if TREE in layers else 0)
        else:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        program = os.fork()
        if program == 0:
            _submit(request, layers, limits, work, (calls[0], replies[1], output[1]))
        for descriptor in (output[1], *calls, *replies, result[1]):
            os.close(descriptor)
        outcome, text = _watch(output[0], result[0], limits)
        status, used = _end(program)
        checked, _ = _end(checker)
        _end_others()
        if outcome.pop("ended", False):
            outcome |= _explain(status, used, limits)
        elif outcome.pop("lost", False):
            outcome |= _explain(checked, used, limits)
        return outcome | {"output": text.decode(errors="replace"),
                          "cpu_secs": used.ru_utime + used.ru_stime}
    finally:
        if TREE not in layers:
            shutil.rmtree(work, ignore_errors=True)


def _check(layers: Collection[str], limits: Limits, calls: int, replies: int,
           result: int) -> NoReturn:
    """The process of the check."""
    try:
        check = receive(0)["check"]
        _keep_only(os.open(os.devnull, os.O_RDWR), (calls, replies, result))
        confine(layers, Limits(cpu_secs=limits.cpu_secs, memory_bytes=limits.memory_bytes), None)
        outcome = sides.run_check(check, 3, 4)
    except BaseException as error:
        outcome = {"broken": f"{type(error).__name__}: {error}"}
    send(5, outcome)
    os._exit(0)


def _submit(request: dict, layers: Collection[str], limits: Limits, work: str,
            kept: tuple[int, int, int]) -> NoReturn:
    """The process of the program."""
    try:
        calls, replies, output = kept
        _keep_only(output, (calls, replies))
        os.chdir(work)
        os.environ.clear()
        tempfile.tempdir = work
        os.umask(0o077)
        confine(layers, limits, work)
    except BaseException as error:
        send(4, {"error": ["SandboxError", f"{type(error).__name__}: {error}", None, None]})
        os._exit(1)
    sides.run_submission(request["code"], request["name"], 3, 4)


def _keep_only(output: int, kept: tuple[int, ...]) -> None:
    """Leaves an empty stdin, `output` as stdout and stderr, and `kept` from 3 on."""
    os.setsid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    empty = os.open(os.devnull, os.O_RDONLY)
    moved = [os.dup(each) for each in (empty, output, output, *kept)]
    for place, descriptor in enumerate(moved):
        os.dup2(descriptor, place)
    os.closerange(len(moved), max(moved) + 1)


def _watch(output: int, result: int, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Waits for the check's result, the end of time or too much output."""
    deadline = time.monotonic() + limits.wall_secs
    poll, text = select.poll(), b""
    poll.register(output, select.POLLIN)
    poll.register(result, select.POLLIN)
    outcome = None
    while outcome is None:
        left = deadline - time.monotonic()
        if left <= 0:
            return {"verdict": sides.TIMEOUT, "detail": f"{limits.wall_secs:g} s of time"}, text
        ready = dict(poll.poll(left * 1000 + 1))
        if result in ready:
            try:
                outcome = receive(result)
            except EOFError:
                outcome = {"verdict": sides.FAILED, "detail": "the check ended", "lost": True}
            poll.unregister(result)
            ready = dict(poll.poll(0))      # what was written before it
        while output in ready:
            part = os.read(output, 1 << 16)
            if not part:
                poll.unregister(output)
            text += part
            if len(text) > limits.output_bytes:
                return {"verdict": sides.OUTPUT, "detail":
                        f"more than {limits.output_bytes} bytes"}, text[:limits.output_bytes]
            ready = dict(poll.poll(0)) if part and outcome is not None else {}
    return outcome, text


def _end(pid: int) -> tuple[int, resource.struct_rusage]:
    """Kills a process with its group, all at once; its status and what it used."""
    for kill in (os.killpg, os.kill):       # it may not have its own group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    return status, used


def _end_others() -> None:
    """Kills what programs have left, where no process namespace does.

    A process whose parent ended is this one's child (PR_SET_CHILD_SUBREAPER).
    """
    deadline = time.monotonic() + END_SECS
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        found = _descendants()
        for number in (signal.SIGSTOP, signal.SIGKILL):     # none starts another meanwhile
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.001)


def _descendants() -> list[int]:
    """Processes that this one started, with those that they did."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, ())
    return found[1:]


def _explain(status: int, used: resource.struct_rusage, limits: Limits) -> dict[str, str]:
    """Verdict and detail of a process that ended before its check did."""
    if not os.WIFSIGNALED(status):
        return {"verdict": sides.FAILED,
                "detail": f"ended by itself, with status {os.waitstatus_to_exitcode(status)}"}
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU or used.ru_utime + used.ru_stime >= limits.cpu_secs:
        return {"verdict": sides.TIMEOUT, "detail": f"{limits.cpu_secs} s of processor time"}
    if number == signal.SIGSYS:
        return {"verdict": sides.FORBIDDEN, "detail": "a system call of another architecture"}
    return {"verdict": sides.FAILED, "detail": f"ended by {signal.Signals(number).name}"}
