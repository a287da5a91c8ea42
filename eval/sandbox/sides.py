"""The two sides of a case: the process that runs the submitted code, and the one that checks it.

Submitted code never shares a process with its check. It can walk frames, patch builtins or end
itself; the check sees the literal values that its functions return, and nothing else.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import sys
import types
from typing import Any, NoReturn

from eval.sandbox.frames import decode, encode, receive, send

PASSED, FAILED, TIMEOUT, MEMORY, OUTPUT, FORBIDDEN = VERDICTS = (
    "passed", "failed", "timeout", "memory", "output", "forbidden")
DENIALS = (errno.EPERM, errno.EACCES, errno.EROFS)
MAX_DETAIL = 300


class Ended(BaseException):
    """The submitted code's process ended, or what it sent is no message."""


def run_submission(code: str, name: str, calls: int, replies: int) -> NoReturn:
    """Runs submitted code as the module `name`, then calls its functions as it is asked to."""
    for ours in [module for module in sys.modules if module.split(".")[0] == "eval"]:
        del sys.modules[ours]
    module = types.ModuleType(name)
    sys.modules[name] = module
    space = module.__dict__
    try:
        exec(compile(code, "<submitted>", "exec", dont_inherit=True), space)
        message = {"ready": True}
    except BaseException as error:
        message = {"error": _describe(error)}
    while True:
        _reply(replies, message)
        try:
            name, arguments, named = decode(receive(calls))
        except EOFError:
            os._exit(0)
        try:
            message = {"value": encode(space[name](*arguments, **named))}
        except BaseException as error:
            message = {"error": _describe(error)}


def _reply(replies: int, message: Any) -> None:
    with contextlib.suppress(BaseException):    # replaced or closed by the submitted code
        sys.stdout.flush()
    try:
        send(replies, message)
    except (OverflowError, MemoryError) as error:
        send(replies, {"error": _describe(error)})


def _describe(error: BaseException) -> list:
    """[type, text, errno, line of the submitted code] of an error."""
    try:
        text = str(error)[:MAX_DETAIL]
    except BaseException:
        text = "has no text"
    number = error.errno if isinstance(error, OSError) else None
    line, frame = None, error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == "<submitted>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return [type(error).__name__, text, number if type(number) is int else None, line]


def run_check(check: str, calls: int, replies: int) -> dict[str, Any]:
    """Runs a check of submitted code; without a text, the code need only run to its end.

    The check's `submitted(name)` is the function `name` of the submitted code. Arguments and
    results travel as literals (`eval.sandbox.frames`); an error of a builtin type is raised as
    such, any other as a RuntimeError.

    Returns:
        verdict and detail; `ended`, if the submitted code's process has.
    """
    def submitted(name: str):
        def call(*arguments, **named):
            try:
                send(calls, encode((name, arguments, named)))
            except OSError as error:
                raise Ended from error
            return _take(replies)
        return call

    try:
        _take(replies)
        if check:
            exec(compile(check, "<check>", "exec", dont_inherit=True),
                 {"submitted": submitted, "__name__": "check"})
    except Ended:
        return {"verdict": FAILED, "detail": "ended before its check did", "ended": True}
    except BaseException as error:
        return {"verdict": _verdict_of(error), "detail": _detail_of(error, check)}
    return {"verdict": PASSED, "detail": ""}


def _take(replies: int) -> Any:
    """The value of a reply; raises its error."""
    try:
        message = receive(replies)
        if "error" in message:
            error = _rebuild(*message["error"])
        else:
            return decode(message.get("value"))
    except (EOFError, OSError, ValueError, TypeError, AttributeError, RecursionError) as broken:
        raise Ended from broken
    raise error


def _rebuild(kind: str, text: str, number: int | None, line: int | None) -> BaseException:
    found = getattr(builtins, kind, None)
    where = f" (line {line})" if line else ""
    if isinstance(found, type) and issubclass(found, OSError) and number:
        return OSError(number, text.removeprefix(f"[Errno {number}] ") + where)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            return found(text + where)
        except TypeError:
            pass            # takes other arguments: UnicodeDecodeError
    return RuntimeError(f"{kind}: {text}{where}")


def _verdict_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError) and error.errno in DENIALS:
        return FORBIDDEN
    return FAILED


def _detail_of(error: BaseException, check: str) -> str:
    """Type and text of an error, and the line of the check where it came up."""
    line, frame = "", error.__traceback__
    while frame:
        if frame.tb_frame.f_code.co_filename == "<check>":
            line = check.splitlines()[frame.tb_lineno - 1].strip()
        frame = frame.tb_next
    text = f"{type(error).__name__}: {error}".removesuffix(": ")[:MAX_DETAIL]
    return f"{text} at: {line}"[:2 * MAX_DETAIL] if line else text
