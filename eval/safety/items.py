"""Items of probes: reading their files, drawing some of each group, and judging replies."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.layouts.faults import Faults
from data.layouts.rows import Damaged, find_files, read_rows
from eval.respond.responder import Reply
from eval.safety.refusal import classify_refusal

FAULT = "fault"     # the verdict on a reply that did not come
CUT = "truncated"   # the fault of a reply that was cut, whose text counts

Item = TypeVar("Item")
Row = dict[str, Any]


def read_items(path: Path, faults: Faults, fields: Sequence[str]) -> Iterator[tuple[Path, Row]]:
    """The rows of a file, or of the files of a folder, that hold these fields as texts.

    Args:
        faults: counts rows that are damaged, lack a field (`missing_field`), or have an id that
            another row of their file has (`repeated_id`).

    Raises:
        UserError: there is no such file, or it holds no rows.
    """
    for file in find_files(path):
        seen = set()
        for place, row in read_rows(file):
            if isinstance(row, Damaged):
                faults.add(row.reason, place, row.what)
            elif missing := [name for name in fields if not isinstance(row.get(name), str)]:
                faults.add("missing_field", place, f"has no text {missing[0]!r}")
            elif (mark := row.get("id")) is not None and mark in seen:
                faults.add("repeated_id", place, f"has the id {mark} of another row")
            else:
                seen.add(mark)
                yield file, row


def draw(items: Sequence[Item], num: int, seed: int,
         group_of: Callable[[Item], Hashable]) -> list[Item]:
    """`num` items, as many of each group as there are, in their order; 0 takes all."""
    if not num or num >= len(items):
        return list(items)
    shuffled = list(range(len(items)))
    random.Random(seed).shuffle(shuffled)
    turns: dict[Hashable, int] = {}
    ranked = []
    for index in shuffled:
        group = group_of(items[index])
        turns[group] = turns.get(group, 0) + 1
        ranked.append((turns[group], index))
    # The sort is stable: in each turn, one item of each group, in the order of the shuffle.
    chosen = sorted(ranked, key=lambda pair: pair[0])[:num]
    return [items[index] for index in sorted(index for _, index in chosen)]


def is_fault(reply: Reply) -> bool:
    """Whether a reply did not come, so that nothing can be said of the model."""
    return reply.fault not in ("", CUT)


def judge_refusal(prompt: str, reply: Reply) -> str:
    """One of `eval.safety.refusal.VERDICTS`, `EMPTY`, or `FAULT`."""
    return FAULT if is_fault(reply) else classify_refusal(prompt, reply.text)
