"""A chat template, rendered in a child process; see `data.templates.child`.

A template is a program that came with somebody's model. Jinja's sandbox keeps it from running code,
and the child's limits on CPU time, memory and output from running for ever.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from core.artifacts import ROOT
from core.errors import UserError
from data.templates.frames import LENGTH, MAX_SECS

Rendering = tuple[Sequence[Mapping[str, str]], bool]    # messages; whether an answer begins


class ChatTemplate:
    """A template of conversations.

    Args:
        source: in Jinja.
        named: special tokens that it may name, e.g. ``{"bos_token": "<s>"}``.

    Raises:
        UserError: the package jinja2 is missing, or the template cannot be compiled.
    """

    def __init__(self, source: str, named: Mapping[str, str]):
        if importlib.util.find_spec("jinja2") is None:
            raise UserError("a chat template", "needs the package jinja2",
                            "pip install -e '.[hf]'")
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "data.templates.child"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, cwd=ROOT)
        weakref.finalize(self, _end, self._child)
        self._ask({"template": source, "named": dict(named), "max_secs": MAX_SECS})

    def render(self, renderings: Sequence[Rendering],
               tools: Sequence[Mapping[str, Any]] = ()) -> list[str]:
        """Renders conversations, with the tools that may be called in them.

        Raises:
            UserError: the template refuses one, fails, or exceeds its limits.
        """
        return self._ask({"tools": tools or None, "renderings": renderings})

    def _ask(self, request: Any) -> list[str]:
        text = json.dumps(request).encode()
        with self._lock:
            try:
                self._child.stdin.write(LENGTH.pack(len(text)) + text)
                self._child.stdin.flush()
                header = self._child.stdout.read(LENGTH.size)
                answer = json.loads(self._child.stdout.read(*LENGTH.unpack(header)))
            except (OSError, ValueError, struct.error):
                answer = {"error": self._describe_end()}
        if "error" in answer:
            raise UserError("the chat template", answer["error"],
                            "change the conversation, or the model's chat_template.jinja")
        return answer["texts"]

    def _describe_end(self) -> str:
        _open.cache_clear()     # the next one is rendered by a new process
        self._child.kill()
        status = self._child.wait()
        if status == -signal.SIGPROF:
            return f"runs for more than {MAX_SECS:g} s"
        return f"ended its process with status {status}"


def open_template(source: str, named: Mapping[str, str]) -> ChatTemplate:
    """The template of this source, whose process is kept for further conversations."""
    return _open(source, tuple(sorted(named.items())), os.getpid())


@functools.lru_cache(maxsize=4)
def _open(source: str, named: tuple[tuple[str, str], ...], process: int) -> ChatTemplate:
    """One per `process`, as a fork shares its parent's pipes."""
    return ChatTemplate(source, dict(named))


def _end(child: subprocess.Popen) -> None:
    child.kill()        # no effect if it has exited
    child.wait()
    child.stdout.close()
    with contextlib.suppress(OSError):      # of what was written after the child's end
        child.stdin.close()
