"""How fast a tokenizer is on one core, as far as this machine tells."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from data.tokenizers.tokenizer import Tokenizer

MAX_BYTES, NUM_ROUNDS = 300_000, 3


def measure_speed(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Megabytes of text per second of CPU time, one text after the other: medians of three rounds.

    Time of this process rather than of the clock, so that other programs count less.

    Args:
        texts: as many of the first as `MAX_BYTES` allow are read.
    """
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    chosen = [text for text, size in zip(texts, sizes) if size <= MAX_BYTES] or list(texts[:1])
    num_bytes = sum(len(text.encode()) for text in chosen)
    ids = [tokenizer.encode(text) for text in chosen]
    return {"bytes": num_bytes,
            "encode_mb_per_sec": num_bytes / 1e6 / _median_secs(tokenizer.encode, chosen),
            "decode_mb_per_sec": num_bytes / 1e6 / _median_secs(tokenizer.decode, ids)}


def _median_secs(work: Callable, items: Iterable) -> float:
    rounds = []
    for _ in range(NUM_ROUNDS):
        began = time.process_time()
        for item in items:
            work(item)
        rounds.append(time.process_time() - began)
    return max(statistics.median(rounds), 1e-9)


def in_turns(parts: Sequence[Sequence[str]]) -> list[str]:
    """Texts of all domains in turns, so that the first of them are of every domain."""
    turns = itertools.zip_longest(*parts)
    return [text for turn in turns for text in turn if text is not None]
