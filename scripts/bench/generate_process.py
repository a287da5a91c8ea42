"""The processes of `scripts.bench.generate`, seen from the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.artifacts import ROOT
from core.errors import UserError

REQUEST_SECS = 600


class EngineStopped(Exception):
    """An engine could not answer; the text says why."""


class EngineProcess:
    """An engine of `generate_engine` in a process of its own.

    Args:
        command: that starts it.
        log: file that gets what it writes to stderr.

    Raises:
        UserError: the command cannot be run.
    """

    def __init__(self, command: Sequence[str], log: Path):
        self._log = log
        # All engines take their memory in huge pages, as scripts/environment.sh sets it.
        environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ,
                       "HF_HUB_OFFLINE": "1"}
        try:
            with log.open("w") as stderr:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=stderr)
        except OSError as error:
            raise UserError(command[0], f"cannot be run ({error.strerror})",
                            "give a Python with --peer_python or --llama_python") from None

    def ask(self, call: str, **args: Any) -> Any:
        """Sends a request, waits for its reply.

        Raises:
            EngineStopped: it failed, took too long, or the process has ended.
        """
        timer = threading.Timer(REQUEST_SECS, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"call": call, "args": args}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            raise EngineStopped(self._reason())
        reply = json.loads(line)
        if "error" in reply:
            raise EngineStopped(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _reason(self) -> str:
        status = self._process.wait()
        if status == -9:    # SIGKILL: by the timer, or by Linux when memory runs out
            return f"was killed: memory ran out, or a request took {REQUEST_SECS} s"
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return (lines or [f"exit status {status}"])[-1][:300]
