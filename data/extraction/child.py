"""The guard's child: extracts pages from stdin to stdout until it is ended, or ends itself.

Nothing is caught here. A page that uses up its CPU time (SIGPROF), asks for too much memory,
overflows the stack or makes a library raise ends the process, and the guard sees which it was.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys

from data.extraction.extract import extract, prepare
from data.extraction.frames import COUNT, READY, TEXT, read_page, to_bytes


def main() -> None:
    """Serves batches; see `data.extraction.frames` for what goes over the pipes."""
    options = _parse()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # the guard's to decide; it ends by closing
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(options.max_memory_bytes)
    prepare(options.mode)
    pages, outcomes = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    outcomes.write(READY)
    outcomes.flush()
    silence = os.open(os.devnull, os.O_WRONLY)      # what a library prints is no outcome
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    while count := pages.read(COUNT.size):
        for page in [read_page(pages.read) for _ in range(COUNT.unpack(count)[0])]:
            signal.setitimer(signal.ITIMER_PROF, options.timeout_secs)
            text = to_bytes(extract(*page, mode=options.mode, emoji_names=options.emoji_names,
                                    punctuation=options.punctuation))
            signal.setitimer(signal.ITIMER_PROF, 0)
            outcomes.write(TEXT.pack(len(text)) + text)
            outcomes.flush()


def _limit_memory(max_bytes: int) -> None:
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit == resource.RLIM_INFINITY or hard_limit > max_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", required=True)
    parser.add_argument("--timeout-secs", type=float, required=True)
    parser.add_argument("--max-memory-bytes", type=int, required=True)
    parser.add_argument("--emoji-names", action="store_true")
    parser.add_argument("--punctuation", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
