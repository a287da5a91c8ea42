"""The guard's child process: extracts pages from stdin to stdout.

No failure is caught here. A page that exceeds its CPU time (SIGPROF) or memory, overflows the stack
or makes a library raise ends the process; the guard derives the reason from the exit status.
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
    """Extracts batches of pages; see `data.extraction.frames` for the format."""
    options = _parse()
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # left to the guard, which closes stdin
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(options.max_memory_bytes)
    prepare(options.mode)
    pages, outcomes = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    outcomes.write(READY)
    outcomes.flush()
    silence = os.open(os.devnull, os.O_WRONLY)      # keeps the output of libraries off the pipe
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
