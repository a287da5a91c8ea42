"""The servers of `scripts.bench.serve`, each in a process of its own, and what is read of one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from core.artifacts import ROOT
from core.errors import UserError

NAME = "bench"          # of the model, for the server's clients
READY_SECS, END_SECS = 1800.0, 60.0     # until a server is ready, and until it has ended
GET_SECS = 10.0


class Command(NamedTuple):
    """How a server is started.

    Attributes:
        words: the command; `{port}` in it stands for the port.
        health: path that is answered with 200 once the server is ready.
        folder: that it runs in.
    """

    words: Sequence[str]
    health: str
    folder: Path


class Started(NamedTuple):
    """A server that is ready; `url` has no path, `process` is its number."""

    url: str
    process: int
    ready_secs: float


def find_program(flag: str, given: str) -> str:
    """The absolute path of a program; raises `UserError` if there is none."""
    if found := shutil.which(given):
        return os.path.abspath(found)
    raise UserError(f"--{flag}={given}", "is no program", "name another path")


def our_command(model: Path, concurrency: int, context_tokens: int) -> Command:
    """Our server, which compiles before it is ready."""
    return Command([sys.executable, "-m", "serve.run", f"--model={NAME}={model}", "--port={port}",
                    f"--batch_size={concurrency}", f"--context_tokens={context_tokens}",
                    "--max_queue=1024"], "/health", ROOT)


def python_command(python: str, gguf: Path, context_tokens: int, folder: Path) -> Command:
    """The server of llama-cpp-python.

    By default it breaks a stream off as soon as another request comes; that is turned off.
    """
    threads = len(os.sched_getaffinity(0))
    return Command([python, "-m", "llama_cpp.server", "--host=127.0.0.1", "--port={port}",
                    f"--model={gguf}", f"--model_alias={NAME}", f"--n_ctx={context_tokens}",
                    f"--n_threads={threads}", f"--n_threads_batch={threads}",
                    "--interrupt_requests=false", "--verbose=false"], "/v1/models", folder)


def program_command(program: str, gguf: Path, concurrency: int, context_tokens: int,
                    folder: Path) -> Command:
    """llama.cpp's own server, with a slot of `context_tokens` for each request at once."""
    threads = str(len(os.sched_getaffinity(0)))
    return Command([program, "--host", "127.0.0.1", "--port", "{port}", "--model", str(gguf),
                    "--alias", NAME, "--parallel", str(concurrency), "--cont-batching",
                    "--ctx-size", str(concurrency * context_tokens), "--threads", threads,
                    "--threads-batch", threads, "--offline"], "/health", folder)


@contextlib.contextmanager
def started(command: Command) -> Iterator[Started]:
    """Starts a server on a free port of this machine; ends it with a signal after the block.

    Raises:
        UserError: it cannot be run, or does not become ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("{port}", str(port)) for word in command.words]
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(words, cwd=command.folder, stdout=log, stderr=log)
        except OSError as error:
            raise UserError(words[0], f"cannot be run ({error.strerror})",
                            "name another program") from None
        try:
            while not _is_ready(url, command.health):
                if process.poll() is not None or time.monotonic() - began > READY_SECS:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").split("\n")
                    last = next((line for line in reversed(lines) if line.strip()), "no output")
                    raise UserError(" ".join(words[:3]), f"does not serve ({last.strip()[:300]})",
                                    "try the command alone")
                time.sleep(0.1)
            yield Started(url, process.pid, time.monotonic() - began)
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECS)
        finally:
            process.kill()
            process.wait()


def _is_ready(url: str, path: str) -> bool:
    try:
        return get(url, path)[0] == 200
    except (OSError, HTTPException):
        return False


def get(url: str, path: str) -> tuple[int, str]:
    """Status and text of a page; proxies of the environment are not used."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=GET_SECS)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def memory_bytes(process: int) -> int:
    """Memory that a process has allocated and touched; pages of files do not count."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * sum(int(re.search(rf"{name}:\s+(\d+)", status)[1])
                      for name in ("RssAnon", "VmSwap"))


def count_files(process: int) -> int:
    """Files and connections that a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))
