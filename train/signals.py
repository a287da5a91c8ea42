"""SIGTERM and SIGINT: the first makes the run save and stop, the second ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from core.progress import log

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While entered, a first SIGTERM or SIGINT sets `requested`, and a second ends the process.

    A scheduler sends SIGTERM some time before SIGKILL, and a user Ctrl-C. Python runs its handlers
    between two bytecodes of the main thread, which may be compiling for minutes; so a separate
    thread reads the signals' numbers from a pipe, and acts at once. To be entered in the main
    thread only; on exit the previous handlers are restored.
    """

    def __init__(self) -> None:
        self._signum: int | None = None

    @property
    def requested(self) -> bool:
        """Whether to save and stop after this step."""
        return self._signum is not None

    def leave(self, step: int) -> NoReturn:
        """Logs the run's step and exits with a shell's status: 128 + the signal."""
        log(f"stopped at step {step}; run the same command again to go on")
        # The signal may have been sent to another process only.
        raise SystemExit(128 + (self._signum or signal.SIGTERM))

    def __enter__(self) -> StopRequest:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        self._old_descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers = {signum: signal.signal(signum, _ignore) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old_handlers.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        os.close(self._writer)      # ends the thread
        self._thread.join()
        os.close(self._reader)

    def _watch(self) -> None:
        while received := os.read(self._reader, 1):
            signum = received[0]
            if signum not in SIGNALS:
                continue
            name = signal.Signals(signum).name
            if self.requested:
                log(f"{name} again: ending at once")
                os._exit(128 + signum)
            self._signum = signum
            log(f"{name}: saving and stopping after this step; once more to end at once")


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Replaces the default handler, which would end the process before the pipe is read."""
