"""Solved examples in front of a question, which never hold the question itself."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from core.errors import UserError
from eval.benchmarks.source import Source

T = TypeVar("T")


def pick_shots(source: Source, pool: Sequence[T], num: int, question_of: Callable[[T], str],
               asked: str) -> list[T]:
    """`num` examples of a pool, in the order in which they are shown.

    Args:
        source: says whether the first ones are taken or, for each question, seeded ones.
        question_of: an example's question; examples with the question asked are passed over.
        asked: the question.

    Raises:
        UserError: the pool has too few others, or the source names another way of choosing.
    """
    if source.examples not in ("first", "seeded"):
        raise UserError(f"examples={source.examples!r}", "is neither first nor seeded",
                        "choose one of them")
    order = iter(pool) if source.examples == "first" else _shuffled(pool, source.seed, asked)
    picked = list(itertools.islice((row for row in order if question_of(row) != asked), num))
    if len(picked) < num:
        raise UserError(f"num_shots={num}", f"the file has {len(picked)} examples beside the "
                        "question", "lower it")
    return picked


def _shuffled(pool: Sequence[T], seed: int, asked: str) -> Iterator[T]:
    """The pool in an order that depends on seed and question; its first items cost little."""
    rng, seen = random.Random(f"{seed}/{asked}"), set()
    while len(seen) < len(pool):
        place = rng.randrange(len(pool))
        if place not in seen:
            seen.add(place)
            yield pool[place]
