"""Extraction in a child process with limits on time and memory.

Web pages can make HTML parsers hang, crash or exhaust memory. One child process extracts many pages
and is replaced when a page ends it, which takes a few hundredths of a second. The limit is on CPU
time, not wall-clock time, so results do not depend on the load of the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from core.artifacts import ROOT
from core.errors import UserError
from data.extraction.extract import MODES
from data.extraction.frames import READY, TEXT, Page, pack_batch, to_bytes, to_text

BATCH_PAGES, BATCH_BYTES = 256, 8 << 20
CHILD_PAGES = 4096                      # per child, since parsers leak memory
MAX_MEMORY_BYTES = 4 << 30              # address space of the child
STALL_FACTOR, STALL_SECS = 20, 60       # wall-clock limit, for a child that does not run

TIMED_OUT = "extract: timed out"
CRASHED = "extract: crashed"
TOO_LARGE = "extract: page is too large"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Reason why a page has no text."""

    reason: str


class _Stalled(Exception):
    """The child did not answer within the wall-clock limit."""


class GuardedExtractor:
    """Extracts pages in a child process; a page that ends the child is a `Failure`.

    Args:
        mode: "fast" or "quality", see `data.extraction.extract`.
        timeout_secs: CPU time of one page.
        max_page_bytes: a larger page is a failure and is not tried.
        emoji_names, punctuation: see `data.extraction.normalise`.

    Raises:
        UserError: an unknown mode.
    """

    def __init__(self, *, mode: str = "fast", timeout_secs: float, max_page_bytes: int,
                 emoji_names: bool = False, punctuation: bool = False):
        if mode not in MODES:
            raise UserError(f"mode={mode!r}", "no such extractor",
                            f"choose one of {', '.join(MODES)}")
        self._max_page_bytes = max_page_bytes
        self._stall_secs = STALL_FACTOR * timeout_secs + STALL_SECS
        self._command = [
            sys.executable, "-m", "data.extraction.child", f"--mode={mode}",
            f"--timeout-secs={timeout_secs}", f"--max-memory-bytes={MAX_MEMORY_BYTES}",
            *(["--emoji-names"] if emoji_names else []),
            *(["--punctuation"] if punctuation else [])]
        self._child: subprocess.Popen | None = None
        self._served = 0        # pages extracted by the child

    def __enter__(self) -> GuardedExtractor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def run(self, pages: Iterable[Page]) -> Iterator[str | Failure]:
        """Texts of pages, or failures, in order.

        Args:
            pages: content (bytes, or text) and content type of each; may be infinite.
        """
        batch, size = [], 0
        for content, content_type in pages:
            content_bytes = len(to_bytes(content))
            batch.append((content, content_type) if content_bytes <= self._max_page_bytes
                         else Failure(TOO_LARGE))
            size += content_bytes
            if len(batch) >= BATCH_PAGES or size >= BATCH_BYTES:
                yield from self._run_batch(batch)
                batch, size = [], 0
        yield from self._run_batch(batch)

    def _run_batch(self, batch: Sequence[Page | Failure]) -> list[str | Failure]:
        pages = [page for page in batch if not isinstance(page, Failure)]
        outcomes = []
        while len(outcomes) < len(pages):
            outcomes += self._extract(pages[len(outcomes):])
        answers = iter(outcomes)
        return [page if isinstance(page, Failure) else next(answers) for page in batch]

    def _extract(self, pages: Sequence[Page]) -> list[str | Failure]:
        """Outcomes of the first pages, up to one that ends the child.

        A page that ends a child which had extracted others is tried again in a new child, so that
        its outcome depends on the page alone.
        """
        if self._child is None or self._served >= CHILD_PAGES:
            self._end()
            self._start()
        outcomes = []
        try:
            self._child.stdin.writelines(pack_batch(pages))
            self._child.stdin.flush()
            for _ in pages:
                num_bytes, = TEXT.unpack(self._read(TEXT.size))
                outcomes.append(to_text(self._read(num_bytes)))
                self._served += 1
        except _Stalled:
            self._end()
            outcomes.append(Failure(TIMED_OUT))
        except (EOFError, BrokenPipeError):
            was_fresh = self._served == 0
            if self._end() == -signal.SIGPROF:
                outcomes.append(Failure(TIMED_OUT))
            elif was_fresh:
                outcomes.append(Failure(CRASHED))
        return outcomes

    def _start(self) -> None:
        # The order of sets in the extractors must not depend on a hash seed.
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, cwd=ROOT,
                                       env={**os.environ, "PYTHONHASHSEED": "0"})
        self._served = 0
        try:
            self._read(len(READY))
        except (EOFError, _Stalled):
            raise RuntimeError(f"the extraction process ended with {self._end()} before it was "
                               "ready; see its message above") from None

    def _end(self) -> int | None:
        """Ends the child, if any; returns its exit status, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()        # no effect if it has exited
        status = child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):      # unread pages
            child.stdin.close()
        return status

    def _read(self, num_bytes: int) -> bytes:
        """Reads `num_bytes` of the child's answers."""
        descriptor = self._child.stdout.fileno()
        poll, answer = select.poll(), bytearray()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + self._stall_secs
        while len(answer) < num_bytes:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise _Stalled
            chunk = os.read(descriptor, num_bytes - len(answer))
            if not chunk:
                raise EOFError
            answer += chunk
        return bytes(answer)
