"""Extraction where a page can do no harm: in a child process with limits on time and memory.

HTML of the open web hangs, crashes and bloats its parsers. One child lives across pages and is
replaced when a page ends it, so that such a page costs itself and a few hundredths of a second.
Time is CPU time, not the clock's: what comes out does not depend on how busy the machine is.
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
CHILD_PAGES = 4096                      # then a fresh one: parsers leak
MAX_MEMORY_BYTES = 4 << 30              # address space of the child
STALL_FACTOR, STALL_SECS = 20, 60       # back-stop on the clock, for a child that does not even run

TIMED_OUT = "extract: timed out"
CRASHED = "extract: crashed"
TOO_LARGE = "extract: page is too large"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A page without text, and why."""

    reason: str


class _Stalled(Exception):
    """The child did not answer by the clock's back-stop."""


class GuardedExtractor:
    """Extracts pages in a child process; a page that ends the child is a named failure.

    Args:
        mode: "fast" or "quality", see `data.extraction.extract`.
        timeout_secs: CPU time of one page.
        max_page_bytes: a page of more is a failure without a try.
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
        self._served = 0        # pages that the child has answered

    def __enter__(self) -> GuardedExtractor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def run(self, pages: Iterable[Page]) -> Iterator[str | Failure]:
        """Texts of pages, or why there is none, in their order.

        Args:
            pages: content (bytes, or text) and content type of each; may be endless.
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
        """Outcomes of the first pages, as many as one child lives to give.

        A page that ends a child which had served others is tried again in a fresh one, so that
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
        # Sets of strings in the extractors must not depend on a hash seed.
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, cwd=ROOT,
                                       env={**os.environ, "PYTHONHASHSEED": "0"})
        self._served = 0
        try:
            self._read(len(READY))
        except (EOFError, _Stalled):
            raise RuntimeError(f"the extraction process ended with {self._end()} before it was "
                               "ready; its own message is above") from None

    def _end(self) -> int | None:
        """Ends the child if there is one; its exit status, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()        # of no effect on one that has ended itself
        status = child.wait()
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):      # pages that it did not read any more
            child.stdin.close()
        return status

    def _read(self, num_bytes: int) -> bytes:
        """So many bytes of the child's answers."""
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
