"""SIGTERM and SIGINT: the first makes the run save and stop, the second ends it at once.

A step is short, an evaluation is not, and a scheduler gives a process some 30 seconds: so an
evaluation asks between two of its batches, by `leave_if_stopping`, and is left there.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import ClassVar, NoReturn

import jax

from core.progress import log
from train.distributed import any_process

SIGNALS = (signal.SIGTERM, signal.SIGINT)
CALLS_BETWEEN_STOPS = 10    # at which several processes ask each other whether one got a signal


class Interrupted(Exception):
    """A long computation was left because of a signal; it is to be done again."""


def leave_if_stopping() -> None:
    """Raises `Interrupted` if a signal asked this run to stop; without a run it does nothing.

    Every process of the run must call it as often as the others: all leave at the same call.
    """
    if StopRequest.entered is not None:
        StopRequest.entered.leave_if_stopping()


class StopRequest:
    """While entered, a first SIGTERM or SIGINT sets `requested`, and a second ends the process.

    A scheduler sends SIGTERM some time before SIGKILL, and a user Ctrl-C. Python runs its handlers
    between two bytecodes of the main thread, which may be compiling for minutes; so a separate
    thread reads the signals' numbers from a pipe, and acts at once. To be entered in the main
    thread only; on exit the previous handlers are restored.
    """

    entered: ClassVar[StopRequest | None] = None    # handlers of signals are the process's, too

    def __init__(self) -> None:
        self._signum: int | None = None
        self._num_calls = 0

    def is_stopping(self) -> bool:
        """Whether a signal came, in any process; all must call this equally often.

        Several processes ask each other only at some of the calls.
        """
        self._num_calls += 1
        if jax.process_count() == 1:
            return self.requested
        return self._num_calls % CALLS_BETWEEN_STOPS == 1 and any_process(self.requested)

    def leave_if_stopping(self) -> None:
        """Raises `Interrupted` if a signal came; see `is_stopping`."""
        if self.is_stopping():
            raise Interrupted

    @property
    def requested(self) -> bool:
        """Whether this process got a signal."""
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
        StopRequest.entered = self
        return self

    def __exit__(self, *_: object) -> None:
        StopRequest.entered = None
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
